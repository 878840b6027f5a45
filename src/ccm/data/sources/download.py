"""Downloads that may be broken off: from the Hugging Face Hub by its own library, from elsewhere by HTTP ranges.

    name.part   what has arrived        name.part.tag   of which version of the file, by the server's ETag

A file gets its name when it is whole, and its size and checksum are right where these are known.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.error import HTTPError

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined]  # of the client it uses
from huggingface_hub.errors import RemoteEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from ccm.core.errors import DataError
from ccm.core.files import sha256
from ccm.data.sources.catalogue import File

FAILURES = (OSError, HTTPException, HubError)  # of the network, of servers, of the Hub
TRIES, TIMEOUT, CHUNK, AT_A_TIME = 3, 60, 1 << 20, 8


class Meter:
    """Adds up the bytes of several files as they arrive, and reports the sum."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self._report, self._lock = report, Lock()
        self._total = 0
        self._arrived: dict[str, int] = {}

    def at(self, path: str, count: int) -> None:
        """Take note that so many bytes of a file are there now."""
        with self._lock:
            self._total += count - self._arrived.get(path, 0)
            self._arrived[path] = count
            self._report(self._total)


def download(
    files: Iterable[File], folder: Path, wanted: Callable[[File], bool], report: Callable[[int], None]
) -> list[str]:
    """Bring files, and those that they list, into a folder. What is there already stays.

    Args:
        files: as they are published.
        folder: where each has its own path.
        wanted: whether a file is wanted; lists are always brought.
        report: called with the bytes that are there so far.

    Returns:
        the files that a list names, but their server does not have.

    Raises:
        DataError: when a file is not what was published.
        FAILURES: when one cannot be had; the next download goes on where this one ended.
    """
    meter = Meter(report)
    listed: list[File] = []
    for file in files:
        for one in _matching(file):
            if one.lists is not None:
                listed += one.lists(_bring(one, folder, meter).read_text(encoding="utf-8"))
            elif wanted(one):
                _bring(one, folder, meter)
    pool = ThreadPoolExecutor(AT_A_TIME)  # they are many and small
    try:
        absent = pool.map(lambda one: _absent(one, folder, meter), filter(wanted, listed))
        return [path for path in absent if path]
    finally:
        pool.shutdown(cancel_futures=True)


def _absent(file: File, folder: Path, meter: Meter) -> str | None:
    """Bring a file; the name of one that is not there."""
    try:
        _bring(file, folder, meter)
    except RemoteEntryNotFoundError:
        return file.path
    except HTTPError as error:
        if error.code != 404:
            raise
        return file.path
    return None


def _matching(file: File) -> Iterator[File]:
    """The files of a pattern, by the Hub's listing."""
    if "*" not in file.path:
        yield file
        return
    names = HfApi().list_repo_files(file.where, repo_type="dataset", revision=file.revision)
    found = [replace(file, path=name) for name in names if fnmatch(name, file.path)]
    if not found:
        raise DataError(f"{file.where} on the Hub holds no {file.path} any more.")
    yield from found


def _bring(file: File, folder: Path, meter: Meter) -> Path:
    path = folder / file.path
    if path.is_file():
        meter.at(file.path, path.stat().st_size)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if file.on_hub:
        hf_hub_download(
            file.where,
            file.path,
            repo_type="dataset",
            revision=file.revision,
            local_dir=folder,
            tqdm_class=_bar(file.path, meter),
        )
        check(path, file)
    else:
        part = path.with_name(path.name + ".part")
        _fetch(file, part, meter)
        check(part, file)
        part.replace(path)
        _tag(part).unlink(missing_ok=True)
    return path


def _fetch(file: File, part: Path, meter: Meter) -> None:
    """Fetch the rest of a file; where the connection breaks, go on from there."""
    for attempt in range(TRIES):
        try:
            return _go_on(file, part, meter)
        except HTTPError as error:
            if error.code != 416 or attempt + 1 == TRIES:  # 416: there is nothing after what has arrived
                raise
            part.unlink()
        except (OSError, HTTPException):
            if attempt + 1 == TRIES:
                raise


def _go_on(file: File, part: Path, meter: Meter) -> None:
    arrived = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "ccm"}
    if arrived:
        headers["Range"] = f"bytes={arrived}-"
        if _tag(part).is_file():
            headers["If-Range"] = _tag(part).read_text()  # a file that has changed comes from its beginning
    with urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT) as answer:
        if answer.status != 206:
            arrived = 0
        length = answer.headers["Content-Length"]
        if tag := answer.headers["ETag"]:
            _tag(part).write_text(tag)
        with part.open("ab" if arrived else "wb") as out:
            whole = arrived + int(length) if length else None
            while chunk := answer.read(CHUNK):
                arrived += out.write(chunk)
                meter.at(file.path, arrived)
    if whole is not None and arrived != whole:
        raise OSError(f"the connection broke off after {arrived:,} of {whole:,} bytes")


def _tag(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def check(path: Path, file: File) -> None:
    """Remove a file that is not the published one.

    Raises:
        DataError: when it is not.
    """
    size, digest = path.stat().st_size, sha256(path) if file.sha256 else None
    if file.size not in (None, size):
        wrong = f"has {size:,} bytes, not {file.size:,}"
    elif digest != file.sha256:
        wrong = f"has the sha256 {digest}, not {file.sha256}"
    else:
        return
    path.unlink()
    raise DataError(
        f"{file.url} {wrong}: it was damaged on the way, or has been changed since. What arrived is removed; try again."
    )


def _bar(path: str, meter: Meter) -> type:
    """What the Hub's library takes for a progress bar."""

    class Bar(tqdm):
        def __init__(self, *args: Any, initial: int = 0, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.arrived = initial

        def update(self, n: float | None = 1) -> None:
            self.arrived += int(n or 0)
            meter.at(path, self.arrived)

        def update_transfer(self, n: float) -> None:
            """Of what comes compressed, only what it becomes is counted."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            """Nothing is shown here."""

    return Bar
