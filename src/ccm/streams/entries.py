"""The columns of a stream's cache, as plain tensors that can be cut, joined and moved.

Shapes: B streams in step with one another, K kv heads, D head dim, L columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ccm.engine.key_values import KeyValues
from ccm.engine.memory_files import Parts
from ccm.engine.rope import Rope

NO_ID = -1  # the token id of an entry that stands for many


@dataclass(frozen=True, eq=False)
class Entries(KeyValues):
    """Columns of a cache, each at the position that its place says.

    Attributes:
        keys: per layer (B, K, L, D), after the rotary embedding.
        values: per layer (B, K, L, D).
        ids: (B, L) token ids, :data:`NO_ID` at entries of the memory.
    """

    parts: ClassVar[Parts] = {**KeyValues.parts, "ids": ("BM", "int64")}

    ids: Tensor

    def __len__(self) -> int:
        return self.width

    def __getitem__(self, columns: slice) -> Entries:
        return self.each(lambda x: x[:, :, columns])

    def moved(self, rope: Rope, delta: int | Tensor) -> Entries:
        """The same at positions that are greater by ``delta``, one number or (L,)."""
        by = torch.as_tensor(delta, device=self.ids.device).expand(len(self))
        if not by.any():
            return self
        turn = rope.by(by)
        return replace(self, keys=tuple(turn(layer, key) for layer, key in enumerate(self.keys)))


@dataclass(frozen=True)
class CacheState:
    """What a stream holds between two passes.

    Attributes:
        entries: all of it.
        memory: M, how many of the columns after the sink are memory.
        evictions: how often room was made.
    """

    entries: Entries
    memory: int = 0
    evictions: int = 0
