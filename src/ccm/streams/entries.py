"""The columns of a stream's cache, as plain tensors that can be cut, joined and moved.

Shapes: B streams in step with one another, K kv heads, D head dim, L columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache

from ccm.engine.rope import Rope

NO_ID = -1  # the token id of an entry that stands for many


@dataclass(frozen=True)
class Entries:
    """Columns of a cache, each at the position that its place says. Never changed: an update returns new ones.

    Attributes:
        keys: per layer (B, K, L, D), after the rotary embedding.
        values: per layer (B, K, L, D).
        ids: (B, L) token ids, :data:`NO_ID` at entries of the memory.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    ids: Tensor

    def __len__(self) -> int:
        return self.ids.shape[1]

    def __getitem__(self, columns: slice) -> Entries:
        keys, values = (tuple(x[:, :, columns] for x in each) for each in (self.keys, self.values))
        return Entries(keys, values, self.ids[:, columns])

    def rows(self, rows: list[int]) -> Entries:
        """Those of some streams of the batch."""
        keys, values = (tuple(x[rows] for x in each) for each in (self.keys, self.values))
        return Entries(keys, values, self.ids[rows])

    def moved(self, rope: Rope, delta: int | Tensor) -> Entries:
        """The same at positions that are greater by ``delta``, one number or (L,)."""
        by = torch.as_tensor(delta, device=self.ids.device).expand(len(self))
        if not by.any():
            return self
        turn = rope.by(by)
        return replace(self, keys=tuple(turn(layer, key) for layer, key in enumerate(self.keys)))

    @staticmethod
    def join(*parts: Entries) -> Entries:
        """One after the other. No tensor is shared with the parts, so that what they were cut from can go."""
        keys = tuple(torch.cat(layer, dim=2) for layer in zip(*(p.keys for p in parts), strict=True))
        values = tuple(torch.cat(layer, dim=2) for layer in zip(*(p.values for p in parts), strict=True))
        return Entries(keys, values, torch.cat([p.ids for p in parts], dim=1))

    def cache(self) -> DynamicCache:
        """A cache that begins with these, which stay as they are."""
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(key[:, :, :0], value[:, :, :0], layer)
            cache.layers[layer].keys, cache.layers[layer].values = (
                key,
                value,
            )  # not copied: a cache grows by new tensors
        return cache


@dataclass(frozen=True)
class Held:
    """What a stream holds between two passes.

    Attributes:
        entries: all of it.
        memory: M, how many of the columns after the sink are memory.
        evictions: how often room was made.
    """

    entries: Entries
    memory: int = 0
    evictions: int = 0
