"""Keys and values in columns: the one form of what is kept of a text, whoever keeps it. An update returns a new one.

Shapes: B rows (conversations or streams), K kv heads, M columns, D head dim; K and D may differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from ccm.core.config import check_count
from ccm.core.errors import InputError, RowError
from ccm.engine.families import entry_sizes
from ccm.engine.memory_files import Origin, Parts

Cache = TypeVar("Cache", bound=DynamicCache)


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values in columns. A subclass adds parts: tensors with B rows, some of them with M columns.

    Attributes:
        parts: every tensor by name, with a letter for each dimension and its dtype; "entry" is that of the keys.
        keys: per layer (B, K, M, D), after the rotary embedding.
        values: per layer (B, K, M, D).
    """

    parts: ClassVar[Parts] = {"keys": ("BKMD", "entry"), "values": ("BKMD", "entry")}

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def batch(self) -> int:
        """B, the number of rows."""
        return self.keys[0].shape[0]

    @property
    def width(self) -> int:
        """M, the number of columns, padding included."""
        return self.keys[0].shape[2]

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Per layer (K, D)."""
        return tuple((x.shape[1], x.shape[3]) for x in self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, and of what else belongs to an entry."""
        return self.batch * self.width * self.entry_nbytes

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one column of one row, over all layers."""
        numbers = 2 * sum(heads * dim for heads, dim in self.sizes)
        numbers += sum(getattr(self, name).shape[2] for name, (letters, _) in self.parts.items() if letters == "BMH")
        return numbers * self.keys[0].element_size()

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Apply a change of rows, columns, dtype or device to all that has columns, each seen as (B, K, M, D)."""
        changed: dict[str, Any] = {"keys": tuple(map(change, self.keys)), "values": tuple(map(change, self.values))}
        for name, (letters, _) in self.parts.items():
            if letters == "BM":
                changed[name] = change(getattr(self, name)[:, None, :, None])[:, 0, :, 0]
            elif letters == "BMH":
                changed[name] = change(getattr(self, name)[:, None])[:, 0]
        return replace(self, **changed)

    @classmethod
    def join(cls, several: Sequence[Self], dim: str = "M") -> Self:
        """One after the other, by columns or by rows ("B"); what is no tensor is the first one's.

        No tensor is shared with the parts, so that what they were cut from can go.
        """
        joined: dict[str, Any] = {}
        for name, (letters, _) in cls.parts.items():
            parts, axis = [getattr(one, name) for one in several], letters.find(dim)
            if name in ("keys", "values"):
                joined[name] = tuple(torch.cat(layer, axis) for layer in zip(*parts, strict=True))
            elif axis >= 0:
                joined[name] = torch.cat(parts, axis)
        return replace(several[0], **joined)

    def fill(self, cache: Cache) -> Cache:
        """The empty cache, which begins with these. Nothing is copied: a cache grows by new tensors."""
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(key[:, :, :0], value[:, :, :0], layer)
            cache.layers[layer].keys, cache.layers[layer].values = key, value
        return cache

    def tensors(self) -> dict[str, Tensor]:
        """All parts as a file holds them: ``keys.0``, ``values.0`` and so on by layer, the others by their names."""
        layers = {f"{side}.{i}": x for side in ("keys", "values") for i, x in enumerate(getattr(self, side))}
        return layers | {name: getattr(self, name) for name in self.parts if name not in ("keys", "values")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **others: Any) -> Self:
        """The inverse of :meth:`tensors`, of tensors that hold every part; ``others`` are the fields that are none."""
        layers = range(sum(name.startswith("keys.") for name in tensors))
        fields: dict[str, Any] = {name: tensors[name] for name in cls.parts if name in tensors}
        for side in ("keys", "values"):
            fields[side] = tuple(tensors[f"{side}.{i}"] for i in layers)
        return cls(**fields, **others)


@dataclass(frozen=True, eq=False)
class BaseMemory(KeyValues):
    """What the memories of decoders and of encoder-decoders have in common: B conversations, padded to one width.

    Attributes:
        mask: (B, M) bool, False at padding.
        positions: (B, M) text positions of the entries.
        offset: (B,) position of the next text token.
        origin: what made it.
    """

    parts: ClassVar[Parts] = {
        **KeyValues.parts,
        "mask": ("BM", "bool"),
        "positions": ("BM", "int64"),
        "offset": ("B", "int64"),
    }
    by_row: ClassVar[tuple[str, ...]] = ()  # the fields that hold one item a conversation

    mask: Tensor
    positions: Tensor
    offset: Tensor
    origin: Origin

    @property
    def entries(self) -> tuple[int, ...]:
        """Entries held per conversation, padding not counted."""
        return tuple(self.mask.sum(1).tolist())

    @property
    def sinks(self) -> int:
        """Columns before any padding."""
        return 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same memory on a device or in a dtype."""
        moved = self.each(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))
        return replace(moved, offset=self.offset.to(device))

    def __getitem__(self, row: int) -> Self:
        """One conversation of the batch, without the batch's padding.

        Raises:
            RowError: when the batch has no such row; iterating over a memory ends by it.
            InputError: when it is no whole number.
        """
        if not 0 <= check_count(row, "row") < self.batch:
            raise RowError(f"There is no conversation {row}; the memory holds {self.batch}, counted from 0.")
        keep = self.mask[row].nonzero().flatten()
        one = self.each(lambda x: x[row : row + 1].index_select(2, keep))
        items: dict[str, Any] = {name: (getattr(self, name)[row],) for name in self.by_row}
        return replace(one, offset=self.offset[row : row + 1], **items)

    @classmethod
    def stack(cls, memories: Sequence[Self]) -> Self:
        """One batch of several memories of whatever lengths, in order.

        Raises:
            InputError: when there are none, or they differ in base model, adapter or settings.
        """
        if not memories:
            raise InputError("There is no memory to stack; give at least one.")
        if any(m._must_agree() != memories[0]._must_agree() for m in memories):
            raise InputError("Only memories of the same model, adapter and settings, all open or all closed, stack.")
        leads = [min(m.sinks, m.width) for m in memories]
        width = max(leads) + max(m.width - lead for m, lead in zip(memories, leads, strict=True))
        items: dict[str, Any] = {
            name: tuple(item for m in memories for item in getattr(m, name)) for name in cls.by_row
        }
        return replace(cls.join([m._padded(width) for m in memories], "B"), **items)

    def _must_agree(self) -> tuple[Any, ...]:
        """What memories of one batch have in common."""
        return (self.origin,)

    def _padded(self, width: int) -> Self:
        """Widened with padding between the sinks and the steps' entries."""
        lead, missing = min(self.sinks, self.width), width - self.width
        return self.each(lambda x: torch.cat([x[:, :, :lead], pad(x[:, :, lead:], (0, 0, missing, 0))], dim=2))


def no_entries(base: PreTrainedModel, batch: int) -> tuple[Tensor, ...]:
    """The keys, or the values, of ``batch`` rows that hold nothing: per layer (B, K, 0, D)."""
    table: dict[str, Any] = {"device": base.device, "dtype": base.dtype}
    return tuple(torch.zeros(batch, heads, 0, dim, **table) for heads, dim in entry_sizes(base))
