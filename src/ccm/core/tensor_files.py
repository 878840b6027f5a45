"""Files of tensors that say what they hold: memories, streams, adapters, checkpoints.

Each is one safetensors file. Its metadata has one key, the kind of the file. The value is the manifest in JSON:
format_version, digest, and the fields of that kind (docs/files.md).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ccm.core.errors import CCMError, reason
from ccm.core.files import (
    FORMAT_VERSION,
    SafetensorError,
    TensorInfo,
    check_version,
    load_tensors,
    parse_json,
    save_tensors,
)

KINDS = {
    "ccm_memory": "a memory, as of a chat without a window",
    "ccm_stream": "a stream, as of a chat with a window",
    "ccm_encoder_memory": "a memory of an encoder-decoder",
    "ccm_adapter": "the tensors of an adapter",
    "ccm_checkpoint": "a checkpoint of a training",
}
Check = Callable[[dict[str, Any], dict[str, TensorInfo]], None]


def write_file(path: Path, kind: str, tensors: Mapping[str, Tensor], manifest: Mapping[str, Any]) -> None:
    """Write tensors with a manifest into one file, atomically.

    Raises:
        OSError: see :func:`ccm.core.files.write_atomically`.
    """
    plain = json.loads(json.dumps({"format_version": FORMAT_VERSION, **manifest}))  # values as a reader gets them
    save_tensors(path, tensors, {kind: json.dumps({**plain, "digest": digest(tensors, plain)})})


def read_file(
    path: Path,
    kind: str,
    error: type[CCMError],
    check: Check = lambda manifest, infos: None,
    *,
    bare: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of that kind: its tensors, as copies on the CPU, and its manifest.

    Args:
        path: a regular file.
        kind: one of :data:`KINDS`.
        error: the class of the errors.
        check: sees the manifest and the facts of every tensor before any tensor is read, and may raise.
        bare: read a file without a manifest as version 1, with its metadata as the manifest.

    Raises:
        error: when the file is absent or damaged, of another kind, or of a newer version.
    """
    manifest: dict[str, Any] = {}

    def begin(metadata: dict[str, str], infos: dict[str, TensorInfo]) -> None:
        manifest.update(_manifest(path, kind, metadata, error, bare))
        check(manifest, infos)

    try:
        tensors, _ = load_tensors(path, begin)
    except FileNotFoundError as cause:
        raise error(f"There is no file {path}.") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read ({reason(cause)}); name a file of {KINDS[kind]}.") from cause
    except SafetensorError as cause:
        raise error(f"{path} is no whole file of {KINDS[kind]}: {cause}. Name another, or copy it again.") from cause
    except MemoryError as cause:
        raise error(f"{path} is larger than the memory of this machine.") from cause
    written = manifest.pop("digest", None)
    if (written is not None or manifest["format_version"] > 1) and written != digest(tensors, manifest):
        raise error(f"{path} is damaged: it does not hold what was written; use another copy of it.")
    return tensors, manifest


def digest(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """SHA-256, in 64 hex digits, of the settings as JSON and of the name, dtype, shape and bytes of each tensor."""
    found = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _manifest(path: Path, kind: str, metadata: dict[str, str], error: type[CCMError], bare: bool) -> dict[str, Any]:
    if kind not in metadata:
        for other in KINDS.keys() & metadata.keys():
            raise error(f"{path} holds {KINDS[other]}; wanted is {KINDS[kind]}.")
        if bare:
            return {**metadata, "format_version": 1}
    try:
        manifest = parse_json(metadata[kind])
    except (KeyError, ValueError) as cause:
        raise error(f"{path} is not {KINDS[kind]}: its manifest is missing or damaged ({cause}).") from cause
    if not isinstance(manifest, dict):
        raise error(f"{path} has a damaged manifest: it is a {type(manifest).__name__}, not an object.")
    check_version(manifest.get("format_version"), path, error)
    return manifest
