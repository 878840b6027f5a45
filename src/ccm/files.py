"""Files: written whole or not at all, and only tensors and JSON are ever read."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, then put it in place in one move.

    Raises:
        OSError: when the folder does not exist or cannot be written; an existing file is then as it was.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as done:
            os.fsync(done.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_atomically(folder: Path, fill: Callable[[Path], object]) -> None:
    """Let ``fill`` write into a temporary folder beside ``folder``, then put it in place in one move.

    Raises:
        OSError: when there is something at the path, or the folder around it cannot be written; nothing is left behind.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda p: save_file(contiguous, p, metadata=dict(metadata or {})))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a safetensors file.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the file is not whole.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a safetensors file.")
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file, its tensors unread.

    Raises:
        OSError: when there is no such file.
        SafetensorError: when the file is not whole.
    """
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def save_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


__all__ = [
    "SafetensorError",
    "load_tensors",
    "make_atomically",
    "read_metadata",
    "save_json",
    "save_tensors",
    "write_atomically",
]
