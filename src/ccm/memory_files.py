"""Files of memories: tensors in safetensors, with a manifest that says what made them and alone can read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ccm.config import CCMConfig
from ccm.errors import CCMError, MemoryFileError
from ccm.files import SafetensorError, load_tensors, read_metadata, save_tensors

FORMAT_VERSION = 1
_FLOATS = ("float16", "bfloat16", "float32", "float64")  # dtypes of entries
_KINDS = {
    "ccm_memory": "a memory, as of a chat without --window",
    "ccm_stream": "a stream, as of a chat with --window",
    "ccm_encoder_memory": "a memory of an encoder-decoder",
}


@dataclass(frozen=True)
class Origin:
    """What made a memory, and alone can read it.

    Attributes:
        config: the settings.
        base: fingerprint of the base model, its stage-1 adapter included.
        adapter: fingerprint of the compression adapter.
    """

    config: CCMConfig
    base: str
    adapter: str

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it, with the version of the format."""
        made = {"base": self.base, "adapter": self.adapter, "config": self.config.to_dict()}
        return {"format_version": FORMAT_VERSION, **made}


def write_memory(path: str | Path, kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write one safetensors file, atomically: tensors, and the manifest in its metadata, under its ``kind``.

    Raises:
        MemoryFileError: when the path is a directory, a file of another kind, or cannot be written.
    """
    target = Path(path)
    if target.is_dir():
        raise MemoryFileError(f"{path} is a directory; name a file to save the memory in.")
    if not target.parent.is_dir():
        raise MemoryFileError(f"There is no folder {target.parent} to save {target.name} in; create it first.")
    try:
        if target.exists() and target.stat().st_size and not _holds(target, kind):
            raise MemoryFileError(f"{path} exists and is not a saved memory; name another file, or delete it first.")
        save_tensors(target, tensors, {kind: json.dumps(manifest)})
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"The memory cannot be saved as {path}: {error}.") from error


def read_memory(path: str | Path, kind: str, origin: Origin) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and manifest of a file of that kind, which ``origin`` made.

    Raises:
        MemoryFileError: when the file is absent, damaged, of another kind, version, model, adapter or rule.
    """
    try:
        tensors, metadata = load_tensors(Path(path))
        manifest = json.loads(metadata[kind])
    except IsADirectoryError as error:
        raise MemoryFileError(f"{path} is a directory; name the file that `save` wrote.") from error
    except FileNotFoundError as error:
        raise MemoryFileError(f"There is no file {path}.") from error
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"{path} is not a whole safetensors file ({error}); was its copying cut off?") from error
    except (KeyError, json.JSONDecodeError) as error:
        for other, what in _KINDS.items():
            if kind not in metadata and other in metadata:
                raise MemoryFileError(f"{path} holds {what}; wanted is {_KINDS[kind]}.") from error
        raise MemoryFileError(f"{path} holds tensors, but no memory: its manifest is missing or damaged.") from error
    _check_manifest(path, manifest, origin)
    return tensors, manifest


def check_tensor(path: str | Path, name: str, tensor: Tensor, wanted: tuple[int, str] | None) -> None:
    """Refuse a tensor that is no part of the memory, of other dimensions or dtype than that part, or not finite.

    Raises:
        MemoryFileError: naming it.
    """
    found = tensor.ndim, str(tensor.dtype).removeprefix("torch.")
    if found != wanted:
        raise MemoryFileError(f"{path} is damaged: {name} has dimensions and dtype {found}, expected {wanted}.")
    if not tensor.isfinite().all():
        raise MemoryFileError(f"{path} holds values that are not finite in {name}; it cannot be used.")


def check_parts(
    path: str | Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any], parts: Mapping[str, tuple[int, str]]
) -> None:
    """Refuse tensors that are no ``parts``: the dimensions and dtype of each; "entry" is the manifest's own dtype.

    A part may be of several tensors, ``NAME.0``, ``NAME.1`` and so on.

    Raises:
        MemoryFileError: naming the tensor, or the dtype that there cannot be.
    """
    entry = manifest.get("dtype")
    if entry not in _FLOATS:
        raise MemoryFileError(f"{path} has a damaged manifest: its dtype is {entry!r}, not one of floating point.")
    for name, tensor in tensors.items():
        wanted = parts.get(name.partition(".")[0])
        check_tensor(path, name, tensor, wanted and (wanted[0], entry if wanted[1] == "entry" else wanted[1]))


def _holds(path: Path, kind: str) -> bool:
    """Whether a file is of that kind, of whatever model: only such a one is overwritten."""
    try:
        return kind in read_metadata(path)
    except SafetensorError:
        return False


def _check_manifest(path: str | Path, manifest: dict[str, Any], origin: Origin) -> None:
    if not isinstance(manifest, dict):
        raise MemoryFileError(f"{path} has a damaged manifest: it is a {type(manifest).__name__}, not an object.")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise MemoryFileError(f"{path} has format version {version}; this ccm reads version {FORMAT_VERSION}.")
    if manifest.get("base") != origin.base:
        raise MemoryFileError(
            f"{path} was made with another base model ({manifest.get('base')}) than the one loaded ({origin.base}); "
            "a memory can be read only by the model and adapter that wrote it."
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
