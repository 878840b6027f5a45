"""The columns of a stream's cache as tensors that can be sliced, joined, and moved to other positions.

Shapes: B streams that are read together, K kv heads, D head dim, L columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ccm.engine.key_values import KeyValues
from ccm.engine.memory_files import Parts
from ccm.engine.rope import Rope

NO_ID = -1  # the id of a memory entry, which stands for many tokens


@dataclass(frozen=True, eq=False)
class Entries(KeyValues):
    """Columns of a cache; the position of each entry is the index of its column.

    Attributes:
        keys: keys of shape (B, K, L, D) for each layer, with rotary embedding.
        values: values of shape (B, K, L, D) for each layer.
        ids: (B, L) int64 token ids; :data:`NO_ID` at entries of the memory.
    """

    parts: ClassVar[Parts] = {**KeyValues.parts, "ids": ("BM", "int64")}

    ids: Tensor

    def __len__(self) -> int:
        return self.width

    def __getitem__(self, columns: slice) -> Entries:
        return self.each(lambda x: x[:, :, columns])

    def moved(self, rope: Rope, delta: int | Tensor) -> Entries:
        """The entries at positions that are larger by ``delta``, a number or a tensor (L,)."""
        by = torch.as_tensor(delta, device=self.ids.device).expand(len(self))
        if not by.any():
            return self
        turn = rope.by(by)
        return replace(self, keys=tuple(turn(layer, key) for layer, key in enumerate(self.keys)))


@dataclass(frozen=True)
class CacheState:
    """The state of a stream's cache between two passes.

    Attributes:
        entries: all entries in the cache.
        memory: M, the number of memory entries; they follow the sink.
        evictions: how often the stream has made room.
    """

    entries: Entries
    memory: int = 0
    evictions: int = 0
