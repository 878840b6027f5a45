"""The memory of an encoder-decoder. Immutable by convention: an update returns a new one.

A decoder reads an encoder's last hidden states, so that entries have those beside their keys and values; and an encoder
sees both ways, so that the text of a context which is compressed once is held as it is until it can be read whole.

Shapes: B conversations, L layers, H heads, M entries, D head dim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor

from ccm.core.errors import MemoryFileError
from ccm.engine.key_values import BaseMemory
from ccm.engine.memory_files import LIMIT, Origin, Parts, read_memory, write_memory

KIND = "ccm_encoder_memory"
Texts = tuple[tuple[int, ...], ...]  # token ids of the steps of one conversation


@dataclass(frozen=True, eq=False)
class EncoderMemory(BaseMemory):
    """The compressed context of B conversations.

    Attributes:
        keys: per layer of the encoder (B, H, M, D).
        values: per layer (B, H, M, D).
        mask: (B, M) bool, False at padding, which stands on the left.
        positions: (B, M) of the entries, COMP tokens counted.
        offset: (B,) position of the next token.
        origin: what made it.
        states: (B, M, hidden) last hidden states, which a decoder reads.
        text: per conversation, the steps that are not compressed, as they are.
        tokens: per conversation, text tokens read: what full context would hold.
    """

    parts: ClassVar[Parts] = {**BaseMemory.parts, "states": ("BMH", "entry")}
    by_row = ("text", "tokens")

    states: Tensor
    text: tuple[Texts, ...]
    tokens: tuple[int, ...]

    @property
    def entries(self) -> tuple[int, ...]:
        """Entries held per conversation, padding not counted; a token that is held as it is counts as one."""
        held = (sum(map(len, text)) for text in self.text)
        return tuple(count + raw for count, raw in zip(super().entries, held, strict=True))

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: tensors, and a manifest in its metadata.

        Raises:
            MemoryFileError: when the path is a directory, a file that is no such memory, or cannot be written.
        """
        manifest = {**self.origin.to_dict(), "text": self.text, "tokens": self.tokens}
        write_memory(path, KIND, self.tensors(), manifest)

    @staticmethod
    def load(path: str | Path, origin: Origin, sizes: Mapping[str, int] = MappingProxyType({})) -> EncoderMemory:
        """Read a memory that ``origin`` made, in those sizes of its model.

        Raises:
            MemoryFileError: when the file is absent, damaged, of another version, model, adapter or rule, or holds NaN.
        """
        tensors, manifest = read_memory(path, KIND, origin, EncoderMemory.parts, sizes)
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
    """Text and tokens must be of all conversations, all steps of tokens; ids and counts are whole numbers."""
    if {len(memory.text), len(memory.tokens)} != {memory.batch}:
        raise MemoryFileError(f"{path} is damaged: its text and tokens are not of {memory.batch} conversations.")
    steps = [*chain(*memory.text)]
    if not all(steps) or not all(
        type(number) is int and 0 <= number < LIMIT for number in chain(memory.tokens, *steps)
    ):
        raise MemoryFileError(
            f"{path} has a damaged manifest: its text and tokens are not whole numbers from 0, or a step has none."
        )
