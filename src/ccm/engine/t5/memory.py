"""The memory of an encoder-decoder. It is immutable by convention; an update returns a copy.

A decoder reads the last hidden states of an encoder: entries have them beside their keys and values. An encoder sees
both ways: under a rule that compresses a context once, the memory keeps its text until the context is complete.

Shapes: B conversations, L layers, H heads, M entries, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from torch import Tensor

from ccm.core.errors import MemoryFileError
from ccm.engine.key_values import BaseMemory
from ccm.engine.memory_files import LIMIT, Origin, Parts, read_memory

Steps = tuple[tuple[int, ...], ...]  # the token ids of each step of a conversation


@dataclass(frozen=True, eq=False)
class EncoderMemory(BaseMemory):
    """The compressed context of B conversations.

    Attributes:
        keys: per layer of the encoder (B, H, M, D).
        values: per layer (B, H, M, D).
        mask: (B, M) bool, False at padding, which is on the left.
        positions: (B, M) int64 positions of the entries; COMP tokens count too.
        offset: (B,) int64 position of the next token.
        origin: the model and the settings that made it.
        states: (B, M, hidden) last hidden states, for the decoder.
        text: per conversation, the token ids of the steps that are not compressed yet.
        tokens: per conversation, the number of text tokens read so far.
    """

    parts: ClassVar[Parts] = {**BaseMemory.parts, "states": ("BMH", "entry")}
    kind = "ccm_encoder_memory"
    by_row = ("text", "tokens")

    states: Tensor
    text: tuple[Steps, ...]
    tokens: tuple[int, ...]

    @property
    def entries(self) -> tuple[int, ...]:
        """The number of entries of each conversation, without padding; a token that is not compressed counts as one."""
        return tuple(n + sum(map(len, text)) for n, text in zip(super().entries, self.text, strict=True))

    def _manifest(self) -> dict[str, Any]:
        return {**super()._manifest(), "text": self.text, "tokens": self.tokens}

    @staticmethod
    def load(path: str | Path, origin: Origin, sizes: Mapping[str, int] = MappingProxyType({})) -> EncoderMemory:
        """Read a memory that ``origin`` made; ``sizes`` are those of its model, if it is known.

        Raises:
            MemoryFileError: when the file is absent or damaged, holds values that are not finite, or is of another
                version, model, adapter or rule.
        """
        tensors, manifest = read_memory(path, EncoderMemory.kind, origin, EncoderMemory.parts, sizes)
        try:
            memory = EncoderMemory.from_tensors(
                tensors,
                text=tuple(tuple(tuple(step) for step in text) for text in manifest["text"]),
                tokens=tuple(manifest["tokens"]),
                origin=origin,
            )
        except (KeyError, TypeError) as error:
            raise MemoryFileError(f"{path} lacks a part of the memory: {error}.") from error
        _check_text(path, memory)
        return memory


def _check_text(path: str | Path, memory: EncoderMemory) -> None:
    """Refuse a memory whose text and tokens are not those of all conversations, or are no whole numbers."""
    if {len(memory.text), len(memory.tokens)} != {memory.batch}:
        raise MemoryFileError(f"{path} is damaged: its text and tokens are not those of {memory.batch} conversations.")
    steps = [*chain(*memory.text)]
    if not all(steps) or not all(
        type(number) is int and 0 <= number < LIMIT for number in chain(memory.tokens, *steps)
    ):
        raise MemoryFileError(
            f"{path} has a damaged manifest: its text and tokens are not whole numbers from 0, or a step is empty."
        )
