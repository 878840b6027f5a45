"""Memory: the compressed context of conversations, in plain tensors. It is immutable by convention.

    columns   [ sink | padding | entries of step 1, 2, ... ]      a sink if the settings say so and there is no head
    read as   [ padding, head | the columns ]                     all memories under a head share it

Shapes: B conversations, L layers, K kv heads, M columns, H tokens of a head, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ccm.core.config import check_count
from ccm.core.errors import InputError, IrreversibleError, MemoryFileError
from ccm.core.rules import RULES
from ccm.core.sending import send_numbers
from ccm.engine.attention import CachedPass
from ccm.engine.key_values import BaseMemory, KeyValues
from ccm.engine.memory_files import LIMIT, Origin, Parts, read_memory

KIND = "ccm_memory"
COMPRESSED = -1  # position of an entry that stands for many tokens; sliding windows never hide it


@dataclass(frozen=True, eq=False)
class Head:
    """Raw text before all steps, such as a system message. It is read once, and many memories share it.

    :meth:`ccm.CCMModel.head` makes it.

    Attributes:
        ids: H token ids.
        keys: per layer (1, K, H, D), after the rotary embedding, at the positions 0 to H - 1; empty if H is 0.
        values: per layer (1, K, H, D).
        base: fingerprint of the base model that read it.
    """

    ids: tuple[int, ...] = ()
    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    base: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Head:
        """The same head on a device or in a dtype."""
        keys, values = (tuple(x.to(device=device, dtype=dtype) for x in side) for side in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


@dataclass(frozen=True, eq=False)
class Columns(KeyValues):
    """The S columns that text after a memory attends to: the head, padded on the left, then those of the memory.

    Attributes:
        keys: per layer (B, K, S, D).
        values: per layer (B, K, S, D).
        mask: (B, S) bool, False at padding.
        positions: (B, S) int64, see :class:`Memory`.
        raw: (B,) int64, how many first tokens stay visible to all text, whatever the reach of a layer.
    """

    parts: ClassVar[Parts] = {
        **KeyValues.parts,
        "mask": ("BM", "bool"),
        "positions": ("BM", "int64"),
        "raw": ("B", "int64"),
    }

    mask: Tensor
    positions: Tensor
    raw: Tensor


class StepRecord(NamedTuple):
    """The effect of one step: text tokens read, entries added (None if they were mixed), text positions taken."""

    tokens: int
    entries: int | None
    positions: int


@dataclass(frozen=True, eq=False)
class Memory(BaseMemory):
    """The compressed context of B conversations.

    Attributes:
        keys: per layer (B, K, M, D), after the rotary embedding.
        values: per layer (B, K, M, D).
        mask: (B, M) bool, False at padding.
        positions: (B, M) int64 text positions of raw entries, :data:`COMPRESSED` elsewhere.
        offset: (B,) int64 position of the next text token.
        origin: the model and the settings that made it.
        steps: per conversation, the effect of every step.
        heads: per conversation, the raw text before its steps; its keys and values are not among the columns.
        closed: whether the context was closed and compressed, under a rule that compresses once per context.
    """

    kind = KIND
    by_row = ("steps", "heads")
    shared = ("origin", "closed")

    steps: tuple[tuple[StepRecord, ...], ...]
    heads: tuple[Head, ...]
    closed: bool = False

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"Memory(entries={self.entries}, tokens={self.tokens}, rule={self.origin.config.rule!r}{state})"

    @property
    def tokens(self) -> tuple[int, ...]:
        """The number of text tokens that each conversation has read: the entries of full context."""
        return tuple(sum(step.tokens for step in row) for row in self.steps)

    @property
    def ends(self) -> list[int]:
        """The values of ``offset``; those of an open memory come from its records, without a wait for the device."""
        if self.closed:
            return self.offset.tolist()
        pairs = zip(self.heads, self.steps, strict=True)
        return [len(head) + sum(step.positions for step in row) for head, row in pairs]

    @property
    def begun(self) -> tuple[bool, ...]:
        """For each conversation, whether anything follows its head."""
        rows = zip(self.offset.tolist(), self.heads, self.entries, strict=True)
        return tuple(end > len(head) or entries > 0 for end, head, entries in rows)

    @property
    def live(self) -> int:
        """How many of the last steps of one conversation are still in the memory; earlier ones made room."""
        (row,) = self.steps
        rule = RULES[self.origin.config.rule]
        if rule.compresses == "never" and not rule.keeps_text:
            return len(row)  # no step takes a position
        return sum(step.positions > 0 for step in row)

    @property
    def sinks(self) -> int:
        """The number of sink columns, 0 or 1: a sink is the first token of a conversation without a head."""
        return int(self.origin.config.sink and not all(map(len, self.heads)))

    def cache(self) -> MemoryCache:
        """A cache that begins with this memory; the memory stays as it is.

        It is the seam for loops of your own: the stock forward, ``model.base(ids, past_key_values=cache)``, reads on
        from the memory (``cache=cache`` since transformers 5.24). So do ``model.generate`` and ``model.compress``.

        Raises:
            InputError: when the memory is open, and the rule compresses once per context.
        """
        if RULES[self.origin.config.rule].compresses == "context" and self.width and not self.closed:
            raise InputError(
                "This memory is open: its context is not compressed yet. Take model.close(memory).cache()."
            )
        return MemoryCache(self)

    def columns(self) -> Columns:
        """The columns of heads and memory, as later text reads them. Without heads, nothing is copied."""
        config, device = self.origin.config, self.mask.device
        rule = RULES[config.rule]
        raw = send_numbers([rule.raw(len(head), sink=config.sink) for head in self.heads], device)
        own = Columns(self.keys, self.values, self.mask, self.positions, raw)
        if not (width := max(map(len, self.heads))):
            return own
        missing = send_numbers([[width - len(head)] for head in self.heads], device)
        places = torch.arange(width, device=device) - missing

        def before(layer: int, x: Tensor, side: str) -> Tensor:
            heads = [getattr(head, side)[layer] if len(head) else x[:1, :, :0] for head in self.heads]
            return torch.cat([torch.cat([pad(h, (0, 0, width - h.shape[2], 0)) for h in heads]), x], dim=2)

        return Columns(
            tuple(before(i, x, "keys") for i, x in enumerate(own.keys)),
            tuple(before(i, x, "values") for i, x in enumerate(own.values)),
            torch.cat([places >= 0, own.mask], dim=1),
            torch.cat([places.clamp(min=0), own.positions], dim=1),
            raw,
        )

    def positions_of(self, mask: Tensor) -> Tensor:
        """Positions (B, T) of text that follows the memory; ``mask`` (B, T) is False at its padding."""
        return self.offset[:, None] + (mask.long().cumsum(1) - 1).clamp(min=0)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Memory:
        """The same memory on a device or in a dtype."""
        return replace(super().to(device, dtype), heads=tuple(head.to(device, dtype) for head in self.heads))

    def fork(self) -> Memory:
        """A copy that shares only the heads with this memory."""
        return replace(self.each(Tensor.clone), offset=self.offset.clone())

    def first(self, width: int) -> Memory:
        """The memory with its first ``width`` columns, or all if there are fewer."""
        return self.each(lambda x: x[:, :, :width])

    def without(self, begin: int, end: int) -> Memory:
        """The memory without the columns from ``begin`` to before ``end``."""
        return self.each(lambda x: torch.cat([x[:, :, :begin], x[:, :, max(begin, end) :]], dim=2))

    def without_sink(self) -> Memory:
        """One conversation without its sink."""
        records = [*self.steps[0]]
        if (first := next((i for i, step in enumerate(records) if step.entries), None)) is not None:
            records[first] = records[first]._replace(entries=(records[first].entries or 1) - 1)
        return replace(self.without(0, 1), steps=(tuple(records),))

    def after(self, records: Sequence[StepRecord]) -> Memory:
        """The memory with one more step on the record of every conversation, and the offset after it."""
        moved = send_numbers([record.positions for record in records], self.offset.device)
        steps = tuple((*row, record) for row, record in zip(self.steps, records, strict=True))
        return replace(self, offset=self.offset + moved, steps=steps)

    def rollback(self, steps: int = 1) -> Memory:
        """The memory before the last ``steps`` steps.

        Raises:
            IrreversibleError: when the rule mixes steps.
            InputError: when ``steps`` is no whole number, a conversation has fewer steps, or the memory was closed.
        """
        if self.closed:
            raise InputError("This memory was closed, and its steps cannot be told apart. Roll back the open memory.")
        if not 0 <= check_count(steps, "steps") <= min(map(len, self.steps)):
            raise InputError(f"Cannot roll back {steps} steps; the memory holds {min(map(len, self.steps))}.")
        if steps == 0:
            return self
        return Memory.stack([self[row]._without_last(steps) for row in range(self.batch)])

    def _without_last(self, count: int) -> Memory:
        kept, lost = self.steps[0][:-count], self.steps[0][-count:]
        width = self.width
        for step in lost:
            if step.entries is None:
                raise IrreversibleError(
                    f"The rule {self.origin.config.rule!r} does not keep its steps apart and cannot roll back. "
                    "Keep the earlier Memory instead: updates never change it, and under such a rule it stays small."
                )
            width -= step.entries
        return replace(self.first(width), offset=self.offset - sum(step.positions for step in lost), steps=(kept,))

    def _manifest(self) -> dict[str, Any]:
        heads = [head.ids for head in self.heads] if any(map(len, self.heads)) else None
        return {**super()._manifest(), "steps": self.steps, "closed": self.closed, "head": heads}

    @staticmethod
    def load(
        path: str | Path,
        origin: Origin,
        head: Callable[[tuple[int, ...]], Head] | None = None,
        sizes: Mapping[str, int] = MappingProxyType({}),
    ) -> Memory:
        """Read a memory that ``origin`` made.

        Args:
            path: the file.
            origin: the model and the settings that must have made it.
            head: reads the token ids of a head, as :meth:`CCMModel.head` does; needed only for memories with a head.
            sizes: sizes of the model, if it is known.

        Raises:
            MemoryFileError: when the file is absent or damaged, holds values that are not finite, or is of another
                version, model, adapter or rule.
        """
        tensors, manifest = read_memory(path, KIND, origin, Memory.parts, sizes, heads=True)
        heads = manifest.get("head") or [[] for _ in tensors["offset"]]
        if not isinstance(heads, list) or not all(isinstance(ids, list) and all(map(_is_count, ids)) for ids in heads):
            raise MemoryFileError(
                f"{path} has a damaged manifest: its head {heads!r} is no list of token ids for each conversation."
            )
        if head is None and any(heads):
            raise MemoryFileError("This memory has a head, which its model must read: use model.load_memory(path).")
        try:
            memory = Memory.from_tensors(
                tensors,
                steps=tuple(tuple(StepRecord(*step) for step in row) for row in manifest["steps"]),
                origin=origin,
                closed=manifest["closed"],
                heads=tuple(head(tuple(ids)) if head and ids else Head() for ids in heads),
            )
        except InputError as error:
            raise MemoryFileError(f"{path} is damaged: its head cannot be read. {error}") from error
        except (KeyError, TypeError) as error:
            raise MemoryFileError(f"{path} lacks a part of the memory: {error}.") from error
        _check_records(path, memory)
        return memory


def _check_records(path: str | Path, memory: Memory) -> None:
    """Refuse records that are no counts, or, in an open memory, do not add up to its entries and offset."""
    if not len(memory.steps) == len(memory.heads) == memory.batch:
        raise MemoryFileError(
            f"{path} is damaged: {memory.batch} conversations, steps of {len(memory.steps)}, heads of "
            f"{len(memory.heads)}."
        )
    if not isinstance(memory.closed, bool):
        raise MemoryFileError(f"{path} has a damaged manifest: closed is {memory.closed!r}, not true or false.")
    ends = memory.offset.tolist()
    for row, held, offset, head in zip(memory.steps, memory.entries, ends, memory.heads, strict=True):
        mixed = [step.entries is None for step in row]
        counts = [n for step in row for n in step if n is not None]
        if len(counts) != 3 * len(row) - sum(mixed) or not all(map(_is_count, counts)):
            raise MemoryFileError(f"{path} has a damaged manifest: the steps {row} are not three counts each.")
        entries, positions = sum(step.entries or 0 for step in row), len(head) + sum(step.positions for step in row)
        if not memory.closed and ((not any(mixed) and entries != held) or positions != offset):
            raise MemoryFileError(
                f"{path} is damaged: its steps add up to {entries} entries and {positions} positions, "
                f"but it holds {held} and ends at {offset}."
            )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < LIMIT


class MemoryCache(DynamicCache):
    """A growing cache that begins with a memory. All layers keep all columns, whatever their sliding window.

    Attributes:
        memory: the memory.
        columns: the columns of its heads and its own, with which the cache begins.
        read: (B, R) bool, False at padding: the text that :meth:`CCMModel.read` has read since. Text that others have
            read is not in it, and has no padding.
    """

    def __init__(self, memory: Memory, columns: Columns | None = None) -> None:
        super().__init__()
        self.memory, self.columns = memory, memory.columns() if columns is None else columns
        self.read = memory.mask[:, :0]
        self.columns.fill(self)

    def fork(self) -> MemoryCache:
        """A second cache that has read the same and grows by itself; nothing is copied."""
        twin = MemoryCache(self.memory, self.columns)
        twin.read = self.read
        for layer, own in zip(twin.layers, self.layers, strict=True):
            layer.keys, layer.values = own.keys, own.values
        return twin

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, for beams; the layers of transformers leave it out where they have no columns yet."""
        for layer in self.layers:
            layer.keys, layer.values = (x.repeat_interleave(repeats, 0) for x in (layer.keys, layer.values))

    def mask_before(self, rows: int, length: int) -> Tensor:
        """The mask (rows, S) bool of the memory, the text since, and ``length`` further tokens without padding.

        With beams, ``rows`` is a multiple of the rows of the memory.
        """
        known = torch.cat([self.columns.mask, self.read], dim=1).repeat_interleave(rows // self.memory.batch, 0)
        return torch.cat([known, known.new_ones(rows, self.get_seq_length() - known.shape[1] + length)], dim=1)

    def positions_of(self, mask: Tensor, length: int) -> Tensor:
        """Positions (B, T) of the last ``length`` tokens; ``mask`` (B, S) covers the memory and all text so far."""
        return self.memory.positions_of(mask[:, self.columns.width :])[:, -length:]

    def follows(self, positions: Tensor) -> bool:
        """Whether text at these positions (rows, T) comes after the memory; for ``rows``, see :meth:`mask_before`."""
        offset = self.memory.offset.repeat_interleave(positions.shape[0] // self.memory.batch)
        return bool((positions >= offset[:, None]).all())

    def view(self, positions: Tensor, mask: Tensor) -> CachedPass:
        """The pass for text at ``positions`` (B, T) that reads this cache; with beams, B is a multiple of its rows.

        ``mask`` (B, S) covers the memory and all text up to this one.
        """
        memory, columns, length = self.memory, self.columns, positions.shape[1]
        beams = positions.shape[0] // memory.batch
        entries, offset, raw = (x.repeat_interleave(beams, 0) for x in (columns.positions, memory.offset, columns.raw))
        read = replace(memory, offset=offset).positions_of(mask[:, columns.width :])[:, :-length]
        return CachedPass(mask.bool(), torch.cat([entries, read, positions], dim=1), positions, raw)
