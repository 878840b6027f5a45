"""Batches: conversations that generate together. They join and leave between two tokens.

    row 1   [  .    .   head  memory  text since ]  ->  next token
    row 2   [ head  memory    text since         ]  ->  next token       padded on the left to one width

Each row computes what its conversation computes alone, up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Columns, Memory, MemoryCache


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
        self._columns: Columns | None = None
        self._cache = DynamicCache()

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
        if len(caches) > 1:  # there is padding between memory and text, too
            order = columns.mask.long().argsort(dim=1, stable=True)[:, None, :, None]
            columns = columns.each(lambda x: x.take_along_dim(order, 2))
        self._set([columns] if self._columns is None else [self._columns, columns])
        self.rows += caches

    @torch.no_grad()
    def read(self, ids: Sequence[int]) -> Tensor:
        """Read one token of each row; returns the logits (B, V) of the next ones."""
        held = self._columns
        assert held is not None
        mask = torch.cat([held.mask, held.mask.new_ones(len(ids), 1)], dim=1)
        positions = torch.cat([held.positions, held.positions[:, -1:] + 1], dim=1)
        token = torch.tensor(ids, device=mask.device)[:, None]
        logits = self._model.read_columns(token, self._cache, mask, positions, held.raw, last=True)
        keys, values = _tensors(self._cache)
        self._columns = replace(held, keys=keys, values=values, mask=mask, positions=positions)
        return logits[:, -1]

    def leave(self, leaving: Collection[MemoryCache]) -> None:
        """Let rows go; their caches have then read what the rows read."""
        held = self._columns
        if held is None or not leaving:
            return
        stays = []
        for row, cache in enumerate(self.rows):
            if cache not in leaving:
                stays.append(row)
                continue
            keep = held.mask[row].nonzero().flatten()
            for layer, key, value in zip(cache.layers, held.keys, held.values, strict=True):
                layer.keys, layer.values = (x[row : row + 1].index_select(2, keep) for x in (key, value))
            cache.read = cache.read.new_ones(1, len(keep) - cache.columns.width)
        self.rows = [self.rows[row] for row in stays]
        if stays:
            self._set([replace(held.each(lambda x: x[stays]), raw=held.raw[stays])])
        else:
            self._columns, self._cache = None, DynamicCache()

    def _set(self, several: Sequence[Columns]) -> None:
        """Take columns of rows as those of the batch, with no more padding than the longest row needs."""
        width = max(int(columns.mask.sum(1).max()) for columns in several)
        self._columns = Columns.join(
            [columns.each(lambda x: pad(x, (0, 0, width - x.shape[2], 0))) for columns in several], "B"
        )
        self._cache = self._columns.fill(DynamicCache())


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
