"""Keys and values in columns: the base of memories, streams and caches. They are immutable; an update returns a copy.

Shapes: B rows (conversations or streams), K kv heads, M columns, D head dim; K and D may differ from layer to layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel

from ccm.core.config import check_count
from ccm.core.errors import InputError, RowError
from ccm.engine.families import entry_sizes
from ccm.engine.memory_files import Origin, Parts, write_memory

Cache = TypeVar("Cache", bound=DynamicCache)


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys and values in columns. A subclass adds parts: tensors with B rows, some of them with M columns.

    Attributes:
        parts: the dimensions and the dtype of each tensor by name: a letter for each dimension, and the dtype, or
            "entry" for that of the keys.
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
        """Bytes of all keys and values, and of other floats that belong to entries."""
        return self.batch * self.width * self.entry_nbytes

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one column of one row, over all layers."""
        numbers = 2 * sum(heads * dim for heads, dim in self.sizes)
        numbers += sum(getattr(self, name).shape[2] for name, (letters, _) in self.parts.items() if letters == "BMH")
        return numbers * self.keys[0].element_size()

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """Change rows, columns, dtype or device of all tensors with columns; ``change`` gets each as (B, K, M, D)."""
        changed: dict[str, Any] = {"keys": tuple(map(change, self.keys)), "values": tuple(map(change, self.values))}
        for name, (letters, _) in self.parts.items():
            if letters == "BM":
                changed[name] = change(getattr(self, name)[:, None, :, None])[:, 0, :, 0]
            elif letters == "BMH":
                changed[name] = change(getattr(self, name)[:, None])[:, 0]
        return replace(self, **changed)

    @classmethod
    def join(cls, several: Sequence[Self], dim: str = "M") -> Self:
        """Join several along their columns "M" or their rows "B"; other fields are those of the first.

        The result shares no tensor with them, so that the tensors that they were cut from can be freed.
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
        """Begin an empty cache with these, and return it. Nothing is copied: a cache grows by new tensors."""
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(key[:, :, :0], value[:, :, :0], layer)
            cache.layers[layer].keys, cache.layers[layer].values = key, value
        return cache

    def tensors(self) -> dict[str, Tensor]:
        """All parts as a file has them: ``keys.0``, ``values.0`` and so on by layer, the others by name."""
        layers = {f"{side}.{i}": x for side in ("keys", "values") for i, x in enumerate(getattr(self, side))}
        return layers | {name: getattr(self, name) for name in self.parts if name not in ("keys", "values")}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], **others: Any) -> Self:
        """The inverse of :meth:`tensors`; ``others`` are the fields that are no tensors."""
        layers = range(sum(name.startswith("keys.") for name in tensors))
        fields: dict[str, Any] = {name: tensors[name] for name in cls.parts if name in tensors}
        for side in ("keys", "values"):
            fields[side] = tuple(tensors[f"{side}.{i}"] for i in layers)
        return cls(**fields, **others)


@dataclass(frozen=True, eq=False)
class BaseMemory(KeyValues):
    """The base of the memories of decoders and of encoder-decoders: B conversations, padded to one width.

    Attributes:
        kind: the kind of its files (a key of :data:`ccm.core.tensor_files.KINDS`).
        by_row: names of the fields with one item for each conversation.
        shared: names of the fields that must agree in a batch.
        mask: (B, M) bool, False at padding.
        positions: (B, M) int64 text positions of the entries.
        offset: (B,) int64 position of the next text token.
        origin: the model and the settings that made it.
    """

    parts: ClassVar[Parts] = {
        **KeyValues.parts,
        "mask": ("BM", "bool"),
        "positions": ("BM", "int64"),
        "offset": ("B", "int64"),
    }
    kind: ClassVar[str]
    by_row: ClassVar[tuple[str, ...]] = ()
    shared: ClassVar[tuple[str, ...]] = ("origin",)

    mask: Tensor
    positions: Tensor
    offset: Tensor
    origin: Origin

    @property
    def entries(self) -> tuple[int, ...]:
        """The number of entries of each conversation, without padding."""
        return tuple(self.mask.sum(1).tolist())

    @property
    def sinks(self) -> int:
        """The number of columns before any padding."""
        return 0

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same memory on a device or in a dtype."""
        moved = self.each(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))
        return replace(moved, offset=self.offset.to(device))

    def __getitem__(self, row: int) -> Self:
        """One conversation of the batch, without padding.

        Raises:
            RowError: when the batch has no such row; this also ends an iteration over a memory.
            InputError: when ``row`` is no whole number.
        """
        if not 0 <= check_count(row, "row") < self.batch:
            raise RowError(f"There is no conversation {row}; the memory holds {self.batch}, counted from 0.")
        keep = self.mask[row].nonzero().flatten()
        one = self.each(lambda x: x[row : row + 1].index_select(2, keep))
        items: dict[str, Any] = {name: (getattr(self, name)[row],) for name in self.by_row}
        return replace(one, offset=self.offset[row : row + 1], **items)

    @classmethod
    def stack(cls, memories: Sequence[Self]) -> Self:
        """One batch of several memories, in order; their lengths may differ.

        Raises:
            InputError: when there are none, or they differ in base model, adapter or settings.
        """
        if not memories:
            raise InputError("There is no memory to stack; give at least one.")
        if any(getattr(m, name) != getattr(memories[0], name) for m in memories for name in cls.shared):
            raise InputError("Only memories of the same model, adapter and settings, all open or all closed, stack.")
        leads = [min(m.sinks, m.width) for m in memories]
        width = max(leads) + max(m.width - lead for m, lead in zip(memories, leads, strict=True))
        items: dict[str, Any] = {
            name: tuple(item for m in memories for item in getattr(m, name)) for name in cls.by_row
        }
        return replace(cls.join([m._padded(width) for m in memories], "B"), **items)

    def save(self, path: str | Path) -> None:
        """Write the memory into one safetensors file, atomically.

        Raises:
            MemoryFileError: when ``path`` is no path or cannot be written, or another kind of file is there.
        """
        write_memory(path, self.kind, self.tensors(), self._manifest())

    def _manifest(self) -> dict[str, Any]:
        return self.origin.to_dict()

    def _padded(self, width: int) -> Self:
        """The memory with ``width`` columns: the padding stands between the sinks and the entries of the steps."""
        lead, missing = min(self.sinks, self.width), width - self.width
        return self.each(lambda x: torch.cat([x[:, :, :lead], pad(x[:, :, lead:], (0, 0, missing, 0))], dim=2))


def no_entries(base: PreTrainedModel, batch: int) -> tuple[Tensor, ...]:
    """The keys, or the values, of ``batch`` rows without entries: per layer (B, K, 0, D)."""
    table: dict[str, Any] = {"device": base.device, "dtype": base.dtype}
    return tuple(torch.zeros(batch, heads, 0, dim, **table) for heads, dim in entry_sizes(base.config))
