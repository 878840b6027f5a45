"""Files of memories: tensors, with a manifest that names the model and the adapter that can read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ccm.core.config import CCMConfig
from ccm.core.errors import CCMError, MemoryFileError, listed
from ccm.core.files import SafetensorError, TensorInfo, as_path, check_regular, read_metadata, writing
from ccm.core.tensor_files import KINDS, read_file, write_file

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # dtypes of entries
LIMIT = 1 << 63  # above all counts and ids in a manifest, since they become int64
Parts = Mapping[str, tuple[str, str]]  # see KeyValues.parts


@dataclass(frozen=True)
class Origin:
    """The model and the settings that made a memory; only they can read it.

    Attributes:
        config: the settings.
        base: fingerprint of the base model with its stage-1 adapter.
        adapter: fingerprint of the compression adapter.
        model: name of the base, for messages only.
    """

    config: CCMConfig
    base: str
    adapter: str
    model: str = field(default="", compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The fields of a manifest, for a memory without a head."""
        named = {"base": self.base, "model": self.model, "adapter": self.adapter}
        return {**named, "config": self.config.to_dict(), "head": None}


def kind_of(path: Path) -> str | None:
    """The kind of a file (a key of :data:`ccm.core.tensor_files.KINDS`); None if it is not one of them.

    Raises:
        OSError: when there is no such file.
    """
    try:
        metadata = read_metadata(path)
    except SafetensorError:
        return None
    return next((kind for kind in KINDS if kind in metadata), None)


def write_memory(path: str | Path, kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write a memory into a file, atomically. It replaces an empty file or one of the same ``kind``, and no other.

    Raises:
        MemoryFileError: when ``path`` is no path or cannot be written, or another file is there.
    """
    target = as_path(path, MemoryFileError)
    with writing(target, MemoryFileError, "Name another file for the memory, in a folder that exists."):
        if target.exists() and check_regular(target).st_size and (found := kind_of(target)) != kind:
            what = f"holds {KINDS[found]}, and what is saved is {KINDS[kind]}" if found else "is not a saved memory"
            raise MemoryFileError(f"{path} exists and {what}; name another file, or delete it first.")
        write_file(target, kind, tensors, manifest)


def read_memory(
    path: str | Path,
    kind: str,
    origin: Origin,
    parts: Parts,
    sizes: Mapping[str, int],
    *,
    optional: Collection[str] = (),
    heads: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of that kind: its tensors and its manifest.

    Args:
        path: the file.
        kind: one of :data:`ccm.core.tensor_files.KINDS`.
        origin: the model and the settings that must have made it.
        parts: the tensors of that kind.
        sizes: sizes of the model by letter (:attr:`ccm.engine.adapted.AdaptedModel.part_sizes`); the sizes of other
            letters may be any.
        optional: parts that may be absent.
        heads: whether memories of that kind may have a head.

    Raises:
        MemoryFileError: when the file is absent or damaged, holds values that are not finite, or is of another kind,
            version, model, adapter or rule.
    """

    def check(manifest: dict[str, Any], infos: dict[str, TensorInfo]) -> None:
        _check_manifest(path, manifest, origin)
        if not heads and (head := manifest.get("head")) is not None:
            raise MemoryFileError(f"{path} names a head ({head}); files of its kind have none.")
        _check_parts(path, infos, parts, sizes, optional)

    tensors, manifest = read_file(as_path(path, MemoryFileError), kind, MemoryFileError, check)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise MemoryFileError(f"{path} holds values that are not finite in {name}; it cannot be used.")
    return tensors, manifest


def _check_parts(
    path: str | Path,
    infos: Mapping[str, TensorInfo],
    parts: Parts,
    sizes: Mapping[str, int],
    optional: Collection[str],
) -> None:
    """Refuse tensors that are not the ``parts``, or whose sizes disagree.

    A letter stands for one size in all parts, except that heads K and head dims D may differ from layer to layer. A
    part with K is one tensor for each layer: ``NAME.0``, ``NAME.1`` and so on. "entry" is one dtype in all parts.

    Raises:
        MemoryFileError: with the tensor.
    """
    floats = {dtype for dtype, _ in infos.values() if dtype in _FLOATS}
    if len(floats) != 1:
        raise MemoryFileError(f"{path} is damaged: it needs one floating-point dtype, and has {sorted(floats)}.")
    (entry,) = floats
    layers = sizes.get("L", sum(name.startswith("keys.") for name in infos))
    wanted = {
        f"{part}.{layer}" if "K" in letters else part
        for part, (letters, _) in parts.items()
        for layer in range(layers if "K" in letters else 1)
    }
    if missing := wanted - infos.keys() - {*optional}:
        raise MemoryFileError(f"{path} lacks a part of the memory: {listed(missing)}.")
    if unknown := infos.keys() - wanted:
        raise MemoryFileError(f"{path} is damaged: it holds {listed(unknown)} beside its parts.")
    known = dict(sizes)
    for name, (dtype, shape) in infos.items():
        part, _, layer = name.partition(".")
        letters, kind = parts[part]
        expected = len(letters), entry if kind == "entry" else kind
        if (len(shape), dtype) != expected:
            raise MemoryFileError(
                f"{path} is damaged: {name} has dimensions and dtype {(len(shape), dtype)}, expected {expected}."
            )
        for letter, size in zip(letters, shape, strict=True):
            if known.setdefault(f"{letter}{layer}" if letter in "KD" else letter, size) != size:
                raise MemoryFileError(
                    f"{path} is damaged: its sizes disagree: {name} is {shape}, unlike other parts or the model."
                )


def _check_manifest(path: str | Path, manifest: dict[str, Any], origin: Origin) -> None:
    if manifest.get("base") != origin.base:
        theirs, mine = (
            f"{name}, fingerprint {base}" if name else base
            for name, base in ((manifest.get("model"), manifest.get("base")), (origin.model, origin.base))
        )
        raise MemoryFileError(
            f"{path} was made with another base model ({theirs}) than the one loaded ({mine}); a memory can be read "
            "only by the model and adapter that wrote it."
        )
    try:
        config = CCMConfig.from_dict(manifest["config"])
    except (CCMError, KeyError, TypeError, AttributeError) as error:
        raise MemoryFileError(f"{path} has a damaged manifest: {error}") from error
    for name in ("rule", "rule_options", "n_tok", "recurrent", "sink", "positions"):
        theirs, mine = getattr(config, name), getattr(origin.config, name)
        if theirs != mine:
            raise MemoryFileError(
                f"{path} was made with {name} {theirs!r}, but the model runs with {name} {mine!r}; "
                f"load the model with {name}={theirs!r}."
            )
    if manifest.get("adapter") != origin.adapter:
        raise MemoryFileError(
            f"{path} was made with another adapter ({manifest.get('adapter')}) than the one loaded ({origin.adapter}); "
            "load that adapter to read it."
        )
