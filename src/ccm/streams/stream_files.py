"""Files of streams: the cache of a stream, how far it has read, and its settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ccm.core.config import build_settings
from ccm.core.errors import ConfigError, MemoryFileError
from ccm.engine.decoder import CCMModel
from ccm.engine.memory_files import LIMIT, Parts, read_memory, write_memory
from ccm.streams.entries import CacheState, Entries
from ccm.streams.evictions import StreamSettings

KIND = "ccm_stream"  # the key of the manifest in the file's metadata
_PARTS: Parts = {**Entries.parts, "last": ("BV", "entry")}
_COUNTS = ("memory", "evictions", "tokens")


@dataclass(frozen=True)
class StreamState:
    """A stream between two passes.

    Attributes:
        settings: the sizes of the stream.
        held: the state of the cache.
        tokens: the number of tokens read.
        last: (B, V) logits after the last token; None before the first token.
    """

    settings: StreamSettings
    held: CacheState
    tokens: int
    last: Tensor | None


def write_stream(path: str | Path, state: StreamState, model: CCMModel) -> None:
    """Write a stream to one file, atomically.

    Raises:
        MemoryFileError: if the path is a directory or another kind of file, or cannot be written.
    """
    entries, held = state.held.entries, state.held
    counts = dict(zip(_COUNTS, (held.memory, held.evictions, state.tokens), strict=True))
    tensors = {**entries.tensors(), **({} if state.last is None else {"last": state.last})}
    write_memory(path, KIND, tensors, {**model.origin.to_dict(), "settings": asdict(state.settings), **counts})


def read_stream(path: str | Path, model: CCMModel) -> StreamState:
    """Read a stream that the same model and adapter wrote; its tensors go to the model's device.

    Raises:
        MemoryFileError: if the file is absent or damaged, holds NaN, or has another version, model, adapter or rule.
    """
    tensors, manifest = read_memory(path, KIND, model.origin, _PARTS, model.part_sizes, optional={"last"})
    try:
        settings = build_settings(StreamSettings, manifest.get("settings"), "settings")
    except ConfigError as error:
        raise MemoryFileError(f"{path} has a damaged manifest: {error}") from error
    memory, evictions, tokens = (_count(path, manifest, name) for name in _COUNTS)
    if ("last" in tensors) != bool(tokens):
        raise MemoryFileError(f"{path} is damaged: its logits do not match its count of {tokens} tokens.")
    ids = tensors["ids"]
    least, most = min(tokens, settings.sink) + memory, min(tokens, settings.cache_size)
    if not least <= ids.shape[1] <= most or (tokens and not ids.shape[1]):
        raise MemoryFileError(
            f"{path} is damaged: it holds {ids.shape[1]} entries after {tokens} tokens; allowed: {least} to {most}."
        )
    tensors = {
        name: x.to(model.device, model.base.dtype if x.is_floating_point() else None) for name, x in tensors.items()
    }
    held = CacheState(Entries.from_tensors(tensors), memory, evictions)
    return StreamState(settings, held, tokens, tensors.get("last"))


def _count(path: str | Path, manifest: dict[str, Any], name: str) -> int:
    value = manifest.get(name)
    if type(value) is not int or not 0 <= value < LIMIT:
        raise MemoryFileError(f"{path} has a damaged manifest: {name} is {value!r}, not a count.")
    return value
