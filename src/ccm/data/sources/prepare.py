"""A data set, from its publisher or from local files, as the folder that training and evaluation read.

    OUTPUT.partial/downloads    as published; stays when a download breaks off, and is gone on with
    OUTPUT.partial/ready        becomes OUTPUT in one move, after it was read and counted
    OUTPUT/.ccm-data.json       what was made, so that the same command again only looks at it

So OUTPUT is whole or not there, and what was in it before is kept until something whole takes its place.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from ccm.core.errors import ConfigError, DataError, reason
from ccm.core.files import save_json, sha256, writing
from ccm.data.reading import RECORD
from ccm.data.sources.arrange import arrange, link_or_copy
from ccm.data.sources.catalogue import File, Source, source
from ccm.data.sources.counts import COUNTS, missing
from ccm.data.sources.download import FAILURES, download

NAMED = 6  # files that a message names


@dataclass(frozen=True)
class Record:
    """What a folder holds.

    Attributes:
        data: the name of the data set.
        only: patterns of the files that were asked for; none for all.
        files: sizes of the files in bytes, by path.
        counts: how much the files hold, by kind.
        notes: what else a user should know.
        missing: which files or tasks were asked for and are not there, as far as that is known.
    """

    data: str
    only: list[str]
    files: dict[str, int]
    counts: dict[str, int]
    notes: list[str]
    missing: list[str] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> Record | None:
        """The record of a folder; None where it has none."""
        try:
            return Record(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{folder / RECORD} cannot be read: {reason(error)}; remove the folder to prepare it anew."
            ) from None

    def intact(self, folder: Path) -> set[str]:
        """The paths that are as they were made, by their sizes."""
        places = {path: folder / path for path in self.files}
        return {path for path, place in places.items() if place.is_file() and place.stat().st_size == self.files[path]}

    def covers(self, only: Sequence[str]) -> bool:
        """Whether all that is asked for was asked for before."""
        return not self.only or (bool(only) and {*only} <= {*self.only})


@dataclass(frozen=True)
class Prepared:
    """A data set that is ready.

    Attributes:
        source: which.
        folder: where.
        record: what it holds.
        fresh: whether it was made now, or found as it was.
    """

    source: Source
    folder: Path
    record: Record
    fresh: bool

    def lines(self) -> list[tuple[str, int, str]]:
        """How much there is of each kind, and how that compares with what was published."""
        known, counts = self.source.known, self.record.counts
        lines = []
        for kind in [*counts, *(kind for kind in known if kind not in counts and not self.record.only)]:
            count, published = counts.get(kind, 0), known.get(kind)
            compared = (
                "" if published is None else "as published" if count == published else f"published: {published:,}"
            )
            lines.append((kind, count, compared))
        return lines


def prepare(
    name: str,
    output: Path,
    given: Path | None = None,
    only: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Prepared:
    """Make the folder of a data set, or look at it where it is there already.

    Args:
        name: of the data set (:data:`ccm.data.sources.catalogue.SOURCES`).
        output: the folder.
        given: a folder of published files that are taken instead of a download.
        only: patterns of the paths in the folder, such as "test/*"; all where there are none.
        progress: called with what is under way, the bytes that were downloaded so far, and about how many there are; 0
            where that is not known, or nothing is downloaded.

    Raises:
        ConfigError: when there is no such data set, or the output holds something else.
        DataError: when files cannot be had, or are damaged; what was in the folder is then as it was.
    """
    row, work = source(name), _beside(output)
    if (work / "before").is_dir() and not output.exists():  # a move was cut off
        (work / "before").replace(output)
    record = Record.read(output)
    if given is not None and not given.is_dir():
        raise DataError(f"There is no folder {given}; name the one that holds the files of {row.title} with given=DIR.")
    if record is None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(
            f"{output} holds something else already; name another output, or read it with given={output}."
        )
    if record is not None and record.data != name:
        raise ConfigError(f"{output} holds {record.data}, not {name}; name another output.")
    kept = record.intact(output) if record else set()
    if record and len(kept) == len(record.files) and record.covers(only) and not (given and record.missing):
        return Prepared(row, output, record, fresh=False)
    if record and only:
        only = [*only, *record.only] if record.only else []
    with writing(output, DataError, "Name another output; what was there is as it was."):
        made = _make(name, output, given, sorted({*only}), kept, progress)
    return Prepared(row, output, made, fresh=True)


def _beside(output: Path) -> Path:
    return output.absolute().with_name(output.absolute().name + ".partial")


def _make(
    name: str,
    output: Path,
    given: Path | None,
    only: list[str],
    kept: set[str],
    progress: Callable[[str, int, int], None],
) -> Record:
    row, work = source(name), _beside(output)
    ready, opened, downloads, before = (work / part for part in ("ready", "opened", f"downloads/{name}", "before"))

    def wanted(place: str | None) -> bool:
        if place is None:  # an archive
            return True
        return place not in kept and (not only or any(fnmatch(place, pattern) for pattern in only))

    try:
        _clear(ready, opened)
        ready.mkdir(parents=True)
        _keep(kept, output, ready)
        absent: list[str] = []
        if given is None:
            what = f"downloading {row.title}"
            absent = _download(
                row,
                name,
                downloads,
                lambda file: wanted(row.target(file.path)),
                lambda done: progress(what, done, row.size or 0),
            )
        progress(f"arranging {row.title}", 0, 0)
        arrange(row, given or downloads, opened, ready, wanted, link=given is None)
        files = {path: (ready / path).stat().st_size for path in _files(ready)}
        if not files:
            raise DataError(f"{given or downloads} holds nothing of {row.title}. {_wanted_files(row)}")
        progress(f"reading {row.title}", 0, 0)
        lacks = [] if only else missing(name, ready)
        record = Record(name, only, files, _counted(name, ready), [*_notes(row, ready), *_absent(absent)], lacks)
        save_json(ready / RECORD, asdict(record))
        if output.exists():
            _keep([path for path in _files(output) if not (ready / path).exists()], output, ready)
            output.replace(before)
        ready.replace(output)
        _clear(downloads, before)
        return record
    finally:
        _clear(ready, opened)
        if not _files(work):
            _clear(work)


def _counted(name: str, ready: Path) -> dict[str, int]:
    """How much is there. Errors name files by their paths within the folder, which goes away with the error."""
    try:
        return COUNTS[name](ready)
    except DataError as error:
        raise DataError(str(error).replace(f"{ready}{os.sep}", "")) from error


def _files(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _keep(paths: Iterable[str], folder: Path, ready: Path) -> None:
    for path in paths:
        (ready / path).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(folder / path, ready / path)


def _clear(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _download(
    row: Source, name: str, folder: Path, wanted: Callable[[File], bool], report: Callable[[int], None]
) -> list[str]:
    try:
        return download(row.files, folder, wanted, report)
    except FAILURES as error:
        reason = " ".join(str(error).split()) or repr(error)
        terms = f"\nFirst {row.terms}." if row.terms else ""
        raise DataError(
            f"{row.title} could not be downloaded: {reason}{terms}\n{_wanted_files(row)}\n"
            f"Try again, which goes on where it broke off; or bring them by other means into a folder DIR, under these "
            f"names, and prepare {name} with given=DIR"
        ) from error


def _wanted_files(row: Source) -> str:
    lines = [f"  {file.path} from {file.url}{' and what it lists' if file.lists else ''}" for file in row.files]
    more = [f"  and {len(lines) - NAMED} more that the catalogue lists"] if len(lines) > NAMED else []
    return "\n".join(["These files are wanted:", *lines[:NAMED], *more])


def _notes(row: Source, folder: Path) -> list[str]:
    """Files that bear a published one's name, and are others."""
    known = {row.target(file.path): file for file in row.files if file.sha256}
    there = {place: file for place, file in known.items() if place and (folder / place).is_file()}
    return [
        f"{place} is not the file that was published: its sha256 is another."
        for place, file in there.items()
        if sha256(folder / place) != file.sha256
    ]


def _absent(paths: list[str]) -> list[str]:
    named = ", ".join(paths[:NAMED]) + (" ..." if len(paths) > NAMED else "")
    return [f"The publisher lists {len(paths):,} files that are not there: {named}."] if paths else []
