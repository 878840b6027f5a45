"""From files as they are published to the folder that ccm reads: archives opened, texts unpacked, dialogues written."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from filecmp import cmp
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from ccm.core.errors import DataError
from ccm.core.extras import needs
from ccm.data.sources.catalogue import Source

_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError)


def arrange(source: Source, given: Path, work: Path, ready: Path, wanted: Callable[[str], bool], *, link: bool) -> None:
    """Fill a folder from published files, wherever they lie within another one.

    Args:
        source: which data set.
        given: the folder of published files.
        work: where archives are opened.
        ready: the folder to fill.
        wanted: which paths in it.
        link: whether files are linked rather than copied.

    Raises:
        DataError: when a file is damaged or would write elsewhere, or two would become the same.
    """
    opened = _open_archives(source, given, work)
    places = {**_found(source, opened), **_found(source, [given])}  # what lies there goes before what is in archives
    for place, path in places.items():
        if wanted(place):
            _put(path, ready / place, link)


def _open_archives(source: Source, given: Path, work: Path) -> list[Path]:
    """The folders of what the archives hold, inner ones too."""
    folders = [given]
    for folder in folders:  # they grow more
        for path in _files(folder):
            if any(fnmatch(path.name, pattern) for pattern in source.archives):
                folders.append(unpack(path, work / str(len(folders))))
    return folders[1:]


def _files(folder: Path) -> list[Path]:
    """The files within a folder, but those that are hidden or in hidden folders."""
    paths = sorted(folder.rglob("*"))
    return [p for p in paths if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def _found(source: Source, folders: Iterable[Path]) -> dict[str, Path]:
    """What becomes which path of the folder to fill."""
    found: dict[str, Path] = {}
    for folder in folders:
        for path in _files(folder):
            place = source.target(path.relative_to(folder).as_posix())
            if place in found and not cmp(found[place], path, shallow=False):
                raise DataError(f"{found[place]} and {path} would both become {place}; leave one of them.")
            if place is not None:
                found[place] = path
    return found


def unpack(archive: Path, into: Path) -> Path:
    """Open an archive, zip or tar.

    Returns:
        the folder of what it holds.

    Raises:
        DataError: when it is damaged, or would write outside of that folder.
    """
    into.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                for member in opened.infolist():
                    _refuse_escape(archive, member)
                opened.extractall(into)
        else:
            with tarfile.open(archive) as packed:
                packed.extractall(into, filter="data")
    except tarfile.FilterError as error:
        raise DataError(f"{archive} is refused: {error}.") from None
    except (*_DAMAGED, RuntimeError) as error:  # RuntimeError: it has a password
        raise DataError(f"{archive} cannot be opened: {error}; it may not be whole.") from error
    return into


def _refuse_escape(archive: Path, member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or stat.S_ISLNK(member.external_attr >> 16):
        raise DataError(f"{archive} is refused: {member.filename!r} would lie outside of its folder, or is a link.")


def _put(path: Path, place: Path, link: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.suffix == ".gz" and place.suffix != ".gz":
            with gzip.open(path) as packed, place.open("wb") as out:
                shutil.copyfileobj(packed, out)
        elif path.suffix == ".parquet" and place.suffix == ".txt":
            place.write_text("".join(_dialogues(path)), encoding="utf-8")
        elif link:
            link_or_copy(path, place)
        else:
            shutil.copyfile(path, place)
    except _DAMAGED as error:
        raise DataError(f"{path} cannot be read, or not be written to {place}: {error}.") from error


def link_or_copy(path: Path, place: Path) -> None:
    """A second name for a file, or a copy where the file system has no such thing."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def _dialogues(path: Path) -> Iterator[str]:
    """The rows of DailyDialog in Parquet as its publisher's lines: every turn ends in ``__eou__``."""
    needs("pyarrow", extra="data", what=f"{path}, a Parquet file,")
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error
    column = next((name for name in ("dialog", "utterances") if name in table.column_names), None)
    if column is None:
        raise DataError(f"{path} has neither a column 'dialog' nor 'utterances', the list of a dialogue's turns.")
    for turns in table.column(column).to_pylist():
        yield " ".join(f"{' '.join(turn.split())} __eou__" for turn in turns) + "\n"
