"""Batches: conversations that generate together. They join and leave between two tokens.

    slot 1   [ head  memory  text since  .   .  ]  ->  next token
    slot 2   [ head  memory  text since         ]  ->  next token       each row is written at its own end

Each row computes what its conversation computes alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Columns, Memory, MemoryCache

_BLOCK = 64  # columns by which slots grow


class Batch:
    """Caches of B conversations that read one token each at a time.

    Args:
        model: the model that reads.

    Attributes:
        rows: the cache of each row. While a row is in the batch, its cache lacks what was read since it joined.
    """

    def __init__(self, model: CCMModel) -> None:
        self._model = model
        self.rows: list[MemoryCache] = []
        self._slots: _Slots | None = None

    @torch.no_grad()
    def begin(self, caches: Sequence[MemoryCache], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Read the prompts of rows that join; returns the logits (B', V) of their first tokens.

        Args:
            caches: of open or closed memories as queries read them, which have read nothing yet.
            prompts: token ids for each.
        """
        closed = any(cache.memory.closed for cache in caches)  # one that is empty has nothing to close, and is as good
        stacked = Memory.stack([replace(cache.memory, closed=closed) for cache in caches]).cache()
        ids, mask = padded(prompts)
        logits = self._model.read(stacked.memory, ids, mask, cache=stacked, last=True)[:, -1]
        self._add(caches, stacked)
        return logits

    def join(self, cache: MemoryCache) -> None:
        """Take in a row that has read its prompt by itself."""
        self._add([cache], cache)

    def _add(self, caches: Sequence[MemoryCache], read: MemoryCache) -> None:
        columns = _read_so_far(read)
        if self._slots is None:
            self._slots = _Slots(columns)
        self._slots.put(columns)
        self.rows += caches

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Read one token of each row; returns the logits (B, V) of the next ones."""
        slots = self._slots
        assert slots is not None
        own, token = slots.open(), torch.tensor(ids, device=slots.mask.device)[:, None]
        logits = self._model.read_columns(token, own, slots.cache, slots.mask, slots.positions, slots.raw, last=True)
        return logits[:, -1]

    def leave(self, leaving: Collection[MemoryCache]) -> None:
        """Let rows go; their caches have then read what the rows read."""
        for row in reversed(range(len(self.rows))):
            if (cache := self.rows[row]) in leaving:
                assert self._slots is not None
                keys, values = self._slots.take(row)
                for layer, key, value in zip(cache.layers, keys, values, strict=True):
                    layer.keys, layer.values = key, value
                cache.read = cache.read.new_ones(1, keys[0].shape[2] - cache.columns.width)
                self.rows[row] = self.rows[-1]  # as its slot
                self.rows.pop()
        if not self.rows:
            self._slots = None


class _Slots:
    """Columns of B rows in place: each row fills its slot from the left, and nothing moves as others come and go.

    Args:
        like: columns of the model.

    Attributes:
        cache: what the model reads, and writes the next column of each row to.
    """

    def __init__(self, like: Columns) -> None:
        self._ends: list[int] = []  # how many columns each row has
        self._all = replace(like.each(lambda x: x.new_zeros(0, x.shape[1], 0, x.shape[3])), raw=like.raw[:0])
        self.cache = DynamicCache()
        self.cache.layers = [_SlotLayer(self, number) for number in range(len(like.keys))]

    @property
    def width(self) -> int:
        """Columns of the longest row."""
        return max(self._ends)

    @property
    def mask(self) -> Tensor:
        """(B, S) bool, True where a row has a column."""
        return self._all.mask[: len(self._ends), : self.width]

    @property
    def positions(self) -> Tensor:
        """(B, S) int64, as :attr:`Columns.positions`."""
        return self._all.positions[: len(self._ends), : self.width]

    @property
    def raw(self) -> Tensor:
        """(B,) int64, as :attr:`Columns.raw`."""
        return self._all.raw[: len(self._ends)]

    def put(self, columns: Columns) -> None:
        """Take rows of columns in behind the others, without their padding: all of them, or none."""
        keep, first = [row.nonzero().flatten() for row in columns.mask], len(self._ends)
        ends = [*self._ends, *map(len, keep)]
        self._fit(len(ends), max(ends))
        for row, kept in enumerate(keep):
            for held, given in zip(_tensors_of(self._all), _tensors_of(columns), strict=True):
                held[first + row, :, : len(kept)] = given[row].index_select(1, kept)
                held[first + row, :, len(kept) :] = 0  # an infinity that another row left would become NaN
        self._all.raw[first : len(ends)] = columns.raw
        self._ends = ends

    def take(self, row: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Take a row out; the last takes its slot. Returns the keys and the values (1, K, S, D) of each layer."""
        held, end, last = self._all, self._ends[row], len(self._ends) - 1
        keys, values = (tuple(x[row : row + 1, :, :end].clone() for x in side) for side in (held.keys, held.values))
        for tensor in _tensors_of(held) if row != last else ():
            tensor[row] = tensor[last]
        held.raw[row] = held.raw[last]
        self._ends[row] = self._ends[last]
        self._ends.pop()
        return keys, values

    def open(self) -> Tensor:
        """Open a column for the next token of each row; returns their text positions (B, 1)."""
        self._fit(len(self._ends), self.width + 1)
        rows, ends = torch.arange(len(self._ends)), torch.tensor(self._ends)
        self._all.positions[rows, ends] = self._all.positions[rows, ends - 1] + 1
        self._all.mask[rows, ends] = True
        self._ends = [end + 1 for end in self._ends]
        return self._all.positions[rows, ends][:, None]

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, K, 1, D) to the open columns; returns all of a layer (B, K, S, D)."""
        rows, ends = torch.arange(len(self._ends)), torch.tensor(self._ends) - 1
        sides = self._all.keys[layer], self._all.values[layer]
        for held, new in zip(sides, (key, value), strict=True):
            held[rows, :, ends] = new[:, :, 0]
        keys, values = (held[: len(self._ends), :, : self.width] for held in sides)
        return keys, values

    def _fit(self, rows: int, width: int) -> None:
        """Make room for so many rows and columns, and let go of room where most is not needed."""
        had, columns = self._all.mask.shape
        if rows <= had and width <= columns <= 4 * width + _BLOCK:
            return
        more, wide = max(had, 1 << (rows - 1).bit_length()), -(-width // _BLOCK) * _BLOCK
        fitted = self._all.each(lambda x: pad(x, (0, 0, 0, wide - columns, 0, 0, 0, more - had)))
        self._all = replace(fitted, raw=pad(self._all.raw, (0, more - had)))


class _SlotLayer(DynamicLayer):
    """A layer of a cache whose rows are slots."""

    is_sliding = False

    def __init__(self, slots: _Slots, number: int) -> None:
        super().__init__()
        self._slots, self._number = slots, number

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self._slots.write(self._number, key_states, value_states)

    def get_seq_length(self, *_: Any) -> int:
        return self._slots.width - 1  # the open column is that of the pass


def _tensors_of(columns: Columns) -> list[Tensor]:
    """All that has columns, as views (B, K, S, D)."""
    others = (x[:, None, :, None] for x in (columns.mask, columns.positions))
    return [*columns.keys, *columns.values, *others]


def compress_together(
    model: CCMModel,
    memories: Sequence[Memory],
    steps: Sequence[Sequence[int]],
    caches: Sequence[MemoryCache | None],
) -> list[Memory]:
    """Compress a step of each of several conversations in one pass, as :meth:`CCMModel.compress` does of one.

    Args:
        model: the model.
        memories: the memory of each.
        steps: token ids of each step.
        caches: what has read the beginning of each step; used where all conversations have one that fits.
    """
    stacked, (ids, mask) = Memory.stack(memories), padded(steps)
    known = [
        cache
        for cache, memory, step in zip(caches, memories, steps, strict=True)
        if cache is not None and cache.memory is memory and cache.read.shape[1] <= len(step)
    ]
    cache = _stacked(stacked, known, [len(step) for step in steps]) if len(known) == len(memories) else None
    together = model.compress(stacked, ids, mask, cache)
    return [together[row] for row in range(len(memories))]


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) of rows, padded on the left, and their mask, False at padding; on the CPU."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + [*row] for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def _stacked(memory: Memory, caches: Sequence[MemoryCache], lengths: Sequence[int]) -> MemoryCache:
    """Caches that have read the beginnings of texts as one; all but equally many tokens of each text are in it.

    Args:
        memory: those of the caches, stacked.
        caches: of one row each.
        lengths: tokens of each text.
    """
    rest = max(length - cache.read.shape[1] for cache, length in zip(caches, lengths, strict=True))
    counts = [max(length - rest, 0) for length in lengths]
    one, width = MemoryCache(memory), max(counts)

    def text(side: str, layer: int) -> Tensor:
        parts = (
            (getattr(cache.layers[layer], side), cache.columns.width, n)
            for cache, n in zip(caches, counts, strict=True)
        )
        return torch.cat([pad(x[:, :, begin : begin + n], (0, 0, width - n, 0)) for x, begin, n in parts])

    for number, layer in enumerate(one.layers):
        layer.keys = torch.cat([layer.keys, text("keys", number)], dim=2)
        layer.values = torch.cat([layer.values, text("values", number)], dim=2)
    one.read = torch.cat([pad(cache.read[:, :n], (width - n, 0)) for cache, n in zip(caches, counts, strict=True)])
    return one


def _read_so_far(cache: MemoryCache) -> Columns:
    """The columns of a cache, those of the text that it has read included."""
    columns, (keys, values) = cache.columns, _tensors(cache)
    mask = torch.cat([columns.mask, cache.read], dim=1)
    positions = torch.cat([columns.positions, cache.memory.positions_of(cache.read)], dim=1)
    return Columns(keys, values, mask, positions, columns.raw)


def _tensors(cache: DynamicCache) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The keys and the values of a cache, by layer."""
    return tuple(layer.keys for layer in cache.layers), tuple(layer.values for layer in cache.layers)
