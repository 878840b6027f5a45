"""Files of memories: tensors, with a manifest that says what made them and alone can read them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ccm.core.config import CCMConfig
from ccm.core.errors import CCMError, MemoryFileError, listed, reason
from ccm.core.files import SafetensorError, Stated, as_path, check_regular, read_metadata
from ccm.core.tensor_files import KINDS, read_file, write_file

_FLOATS = ("float16", "bfloat16", "float32", "float64")  # dtypes of entries
LIMIT = 1 << 63  # counts and ids in a manifest are below: they go into int64, and into messages
Parts = Mapping[str, tuple[str, str]]  # by name: a letter for each dimension, and the dtype, or "entry"


@dataclass(frozen=True)
class Origin:
    """What made a memory, and alone can read it.

    Attributes:
        config: the settings.
        base: fingerprint of the base model, its stage-1 adapter included.
        adapter: fingerprint of the compression adapter.
        model: what the base is called, for messages alone.
    """

    config: CCMConfig
    base: str
    adapter: str
    model: str = field(default="", compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it, of what has no head."""
        named = {"base": self.base, "model": self.model, "adapter": self.adapter}
        return {**named, "config": self.config.to_dict(), "head": None}


def kind_of(path: Path) -> str | None:
    """The kind of a file (:data:`ccm.core.tensor_files.KINDS`), whatever model wrote it; None where it is of none.

    Raises:
        OSError: when there is no such file.
    """
    try:
        metadata = read_metadata(path)
    except SafetensorError:
        return None
    return next((kind for kind in KINDS if kind in metadata), None)


def write_memory(path: str | Path, kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write one file, atomically; a file that is there is overwritten where it is of that ``kind``.

    Raises:
        MemoryFileError: when there is anything else at the path, it is none, or it cannot be written.
    """
    target = as_path(path, MemoryFileError)
    try:
        if target.is_dir():
            raise MemoryFileError(f"{path} is a directory; name a file to save the memory in.")
        if not target.parent.is_dir():
            raise MemoryFileError(f"There is no folder {target.parent} to save {target.name} in; create it first.")
        if target.exists() and check_regular(target).st_size and (held := kind_of(target)) != kind:
            what = f"holds {KINDS[held]}, and what is saved is {KINDS[kind]}" if held else "is not a saved memory"
            raise MemoryFileError(f"{path} exists and {what}; name another file, or delete it first.")
        write_file(target, kind, tensors, manifest)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"The memory cannot be saved as {path}: {reason(error)}.") from error


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
    """Tensors and manifest of a file of that kind, which ``origin`` made; the values are finite.

    Args:
        path: of the file.
        kind: one of :data:`ccm.core.tensor_files.KINDS`.
        origin: what must have made it.
        parts: the tensors of that kind.
        sizes: of the model (see :meth:`ccm.engine.adapted.AdaptedModel.part_sizes`); those of other letters may be any.
        optional: parts that may be absent.
        heads: whether memories of that kind may stand under a head.

    Raises:
        MemoryFileError: when the file is absent, damaged, of another kind, version, model, adapter or rule.
    """

    def fits(manifest: dict[str, Any], stated: dict[str, Stated]) -> None:
        _check_manifest(path, manifest, origin)
        if not heads and (head := manifest.get("head")) is not None:
            raise MemoryFileError(f"{path} says that it was written under a head ({head}); its kind has none.")
        check_parts(path, stated, parts, sizes, optional)

    tensors, manifest = read_file(as_path(path, MemoryFileError), kind, MemoryFileError, fits)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise MemoryFileError(f"{path} holds values that are not finite in {name}; it cannot be used.")
    return tensors, manifest


def check_parts(
    path: str | Path,
    stated: Mapping[str, Stated],
    parts: Parts,
    sizes: Mapping[str, int],
    optional: Collection[str] = (),
) -> None:
    """Refuse tensors that are not the ``parts``, or whose sizes do not go together.

    A letter stands for the same size wherever it is; heads K and head dims D may differ from layer to layer. A part
    that has them is one tensor a layer, ``NAME.0``, ``NAME.1`` and so on. The dtype "entry" is the same in all parts.

    Raises:
        MemoryFileError: naming the tensor.
    """
    floats = {dtype for dtype, _ in stated.values() if dtype in _FLOATS}
    if len(floats) != 1:
        raise MemoryFileError(f"{path} is damaged: its dtypes of floating point are {sorted(floats)}, not one.")
    (entry,) = floats
    layers = sizes.get("L", sum(name.startswith("keys.") for name in stated))
    wanted = {
        f"{part}.{layer}" if "K" in letters else part
        for part, (letters, _) in parts.items()
        for layer in range(layers if "K" in letters else 1)
    }
    if missing := wanted - stated.keys() - {*optional}:
        raise MemoryFileError(f"{path} lacks a part of what it should hold: {listed(missing)}.")
    if unknown := stated.keys() - wanted:
        raise MemoryFileError(f"{path} is damaged: it holds {listed(unknown)} beside its parts.")
    known = dict(sizes)
    for name, (dtype, shape) in stated.items():
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
