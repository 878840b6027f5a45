"""Files of streams: what a stream holds, where it stands, and the settings under which it goes on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ccm.core.config import build_settings
from ccm.core.errors import ConfigError, MemoryFileError
from ccm.core.files import Stated
from ccm.engine.decoder import CCMModel
from ccm.engine.families import entry_sizes
from ccm.engine.memory_files import LIMIT, Parts, read_memory, write_memory
from ccm.streams.entries import Entries, Held
from ccm.streams.evictions import StreamSettings

KIND = "ccm_stream"  # what the manifest of such a file is filed under
_PARTS: Parts = {
    "keys": ("BKMD", "entry"),
    "values": ("BKMD", "entry"),
    "ids": ("BM", "int64"),
    "last": ("BV", "entry"),
}
_COUNTS = ("memory", "evictions", "tokens")


@dataclass(frozen=True)
class StreamState:
    """A stream between two passes.

    Attributes:
        settings: its sizes.
        held: what is in the cache.
        tokens: how many were read.
        last: (B, V) the logits after the last of them; None before the first.
    """

    settings: StreamSettings
    held: Held
    tokens: int
    last: Tensor | None


def write_stream(path: str | Path, state: StreamState, model: CCMModel) -> None:
    """Write one file, atomically.

    Raises:
        MemoryFileError: when the path is a directory, a file that is no stream, or cannot be written.
    """
    entries, held = state.held.entries, state.held
    counts = dict(zip(_COUNTS, (held.memory, held.evictions, state.tokens), strict=True))
    tensors = {f"keys.{i}": x for i, x in enumerate(entries.keys)}
    tensors |= {f"values.{i}": x for i, x in enumerate(entries.values)}
    tensors |= {"ids": entries.ids, **({} if state.last is None else {"last": state.last})}
    write_memory(path, KIND, tensors, {**model.origin.to_dict(), "settings": asdict(state.settings), **counts})


def read_stream(path: str | Path, model: CCMModel) -> StreamState:
    """A stream that this model and adapter made, on the model's device.

    Raises:
        MemoryFileError: when the file is absent, damaged, of another version, model, adapter or rule, or holds NaN.
    """
    tensors, manifest = read_memory(path, KIND, model.origin, _PARTS, partial(_check_sizes, path, model))
    try:
        settings = build_settings(StreamSettings, manifest.get("settings"), "settings")
    except ConfigError as error:
        raise MemoryFileError(f"{path} has a damaged manifest: {error}") from error
    memory, evictions, tokens = (_count(path, manifest, name) for name in _COUNTS)
    ids = tensors["ids"]
    least, most = min(tokens, settings.sink) + memory, min(tokens, settings.cache_size)
    if not least <= ids.shape[1] <= most or (tokens and not ids.shape[1]):
        raise MemoryFileError(
            f"{path} is damaged: {ids.shape[1]} entries after {tokens} tokens, where {least} to {most} can be."
        )
    place: dict[str, Any] = {"device": model.device, "dtype": model.base.dtype}
    layers = range(len(entry_sizes(model.base)))
    keys, values = (tuple(tensors[f"{part}.{i}"].to(**place) for i in layers) for part in ("keys", "values"))
    held = Held(Entries(keys, values, ids.to(model.device)), memory, evictions)
    return StreamState(settings, held, tokens, tensors["last"].to(**place) if tokens else None)


def _count(path: str | Path, manifest: dict[str, Any], name: str) -> int:
    value = manifest.get(name)
    if type(value) is not int or not 0 <= value < LIMIT:
        raise MemoryFileError(f"{path} has a damaged manifest: {name} is {value!r}, no count.")
    return value


def _check_sizes(path: str | Path, model: CCMModel, manifest: dict[str, Any], stated: dict[str, Stated]) -> None:
    """There must be all parts, in the model's sizes."""
    if "ids" not in stated:
        raise MemoryFileError(f"{path} lacks a part of the stream: 'ids'.")
    batch, length = stated["ids"].shape
    wanted: dict[str, tuple[int, ...]] = {"ids": (batch, length)}
    wanted |= {"last": (batch, model.vocab_size)} if _count(path, manifest, "tokens") else {}
    for layer, (heads, dim) in enumerate(entry_sizes(model.base)):
        wanted |= {f"{part}.{layer}": (batch, heads, length, dim) for part in ("keys", "values")}
    found = {name: shape for name, (_, shape) in stated.items()}
    if found != wanted:
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        expected = ", ".join(f"{name} {found.get(name)}, expected {wanted.get(name)}" for name in names[:3])
        raise MemoryFileError(f"{path} is damaged: {expected}.")
