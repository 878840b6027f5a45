"""The memory of an encoder-decoder. Immutable by convention: an update returns a new one.

A decoder reads an encoder's last hidden states, so that entries have those beside their keys and values; and an encoder
sees both ways, so that the text of a context which is compressed once is held as it is until it can be read whole.

Shapes: B conversations, L layers, H heads, M entries, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccm.core.config import check_count
from ccm.core.errors import InputError, MemoryFileError, RowError
from ccm.engine.memory_files import LIMIT, Origin, Parts, read_memory, write_memory

KIND = "ccm_encoder_memory"
_PARTS: Parts = {
    "keys": ("BKMD", "entry"),
    "values": ("BKMD", "entry"),
    "states": ("BMH", "entry"),
    "mask": ("BM", "bool"),
    "positions": ("BM", "int64"),
    "offset": ("B", "int64"),
}
Texts = tuple[tuple[int, ...], ...]  # token ids of the steps of one conversation


@dataclass(frozen=True)
class EncoderMemory:
    """The compressed context of B conversations.

    Attributes:
        keys: per layer of the encoder (B, H, M, D).
        values: per layer (B, H, M, D).
        states: (B, M, hidden) last hidden states, which a decoder reads.
        mask: (B, M) bool, False at padding, which stands on the left.
        positions: (B, M) of the entries, COMP tokens counted.
        offset: (B,) position of the next token.
        text: per conversation, the steps that are not compressed, as they are.
        tokens: per conversation, text tokens read: what full context would hold.
        origin: what made it.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    states: Tensor
    mask: Tensor
    positions: Tensor
    offset: Tensor
    text: tuple[Texts, ...]
    tokens: tuple[int, ...]
    origin: Origin

    @property
    def batch(self) -> int:
        """B, the number of conversations."""
        return self.mask.shape[0]

    @property
    def entries(self) -> tuple[int, ...]:
        """Entries held per conversation, padding not counted; a token that is held as it is counts as one."""
        held = (sum(map(len, text)) for text in self.text)
        return tuple(int(count) + raw for count, raw in zip(self.mask.sum(1), held, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all keys, values and hidden states."""
        return sum(x.nbytes for x in (*self.keys, *self.values, self.states))

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one entry of one conversation: keys and values of all layers, and the hidden state."""
        numbers = sum(x.shape[1] * x.shape[3] for x in (*self.keys, *self.values)) + self.states.shape[2]
        return numbers * self.states.element_size()

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Heads and head dim of every layer."""
        return tuple((x.shape[1], x.shape[3]) for x in self.keys)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> EncoderMemory:
        """The same memory on a device or in a dtype."""
        moved = self._each(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))
        return replace(moved, offset=self.offset.to(device))

    def __getitem__(self, row: int) -> EncoderMemory:
        """One conversation of the batch, without the batch's padding.

        Raises:
            RowError: when the batch has no such row; iterating over a memory ends by it.
            InputError: when it is no whole number.
        """
        if not 0 <= check_count(row, "row") < self.batch:
            raise RowError(f"There is no conversation {row}; the memory holds {self.batch}, counted from 0.")
        keep = self.mask[row].nonzero().flatten()
        one = self._each(lambda x: x[row : row + 1].index_select(2, keep))
        return replace(one, offset=self.offset[row : row + 1], text=(self.text[row],), tokens=(self.tokens[row],))

    @staticmethod
    def stack(memories: Sequence[EncoderMemory]) -> EncoderMemory:
        """One batch of several memories of whatever lengths, in order.

        Raises:
            InputError: when there are none, or they differ in base model, adapter or settings.
        """
        if not memories:
            raise InputError("There is no memory to stack; give at least one.")
        if any(m.origin != memories[0].origin for m in memories):
            raise InputError("Only memories of the same model, adapter and settings stack.")
        width = max(m.mask.shape[1] for m in memories)
        padded = [m._padded(width) for m in memories]
        return replace(
            memories[0],
            keys=tuple(map(torch.cat, zip(*(m.keys for m in padded), strict=True))),
            values=tuple(map(torch.cat, zip(*(m.values for m in padded), strict=True))),
            states=torch.cat([m.states for m in padded]),
            mask=torch.cat([m.mask for m in padded]),
            positions=torch.cat([m.positions for m in padded]),
            offset=torch.cat([m.offset for m in memories]),
            text=tuple(text for m in memories for text in m.text),
            tokens=tuple(count for m in memories for count in m.tokens),
        )

    def _padded(self, width: int) -> EncoderMemory:
        missing = width - self.mask.shape[1]
        return self._each(lambda x: pad(x, (0, 0, missing, 0)))

    def _each(self, change: Callable[[Tensor], Tensor]) -> EncoderMemory:
        """Apply a change of rows or columns to all entries, each part seen as (B, H, M, D)."""
        return replace(
            self,
            keys=tuple(map(change, self.keys)),
            values=tuple(map(change, self.values)),
            states=change(self.states[:, None])[:, 0],
            mask=change(self.mask[:, None, :, None])[:, 0, :, 0],
            positions=change(self.positions[:, None, :, None])[:, 0, :, 0],
        )

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically: tensors, and a manifest in its metadata.

        Raises:
            MemoryFileError: when the path is a directory, a file that is no such memory, or cannot be written.
        """
        manifest = {**self.origin.to_dict(), "text": self.text, "tokens": self.tokens}
        tensors = {f"keys.{i}": x for i, x in enumerate(self.keys)}
        tensors |= {f"values.{i}": x for i, x in enumerate(self.values)}
        tensors |= {name: getattr(self, name) for name in ("states", "mask", "positions", "offset")}
        write_memory(path, KIND, tensors, manifest)

    @staticmethod
    def load(path: str | Path, origin: Origin) -> EncoderMemory:
        """Read a memory that ``origin`` made.

        Raises:
            MemoryFileError: when the file is absent, damaged, of another version, model, adapter or rule, or holds NaN.
        """
        tensors, manifest = read_memory(path, KIND, origin, _PARTS)
        layers = range(sum(name.startswith("keys.") for name in tensors))
        try:
            memory = EncoderMemory(
                keys=tuple(tensors[f"keys.{i}"] for i in layers),
                values=tuple(tensors[f"values.{i}"] for i in layers),
                states=tensors["states"],
                mask=tensors["mask"],
                positions=tensors["positions"],
                offset=tensors["offset"],
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
