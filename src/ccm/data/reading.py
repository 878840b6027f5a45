"""How data sets read files: folders, texts, rows of JSON lines or Parquet, JSON of any layout; gzipped under ``.gz``.

Endings of names may be in capitals. A warning of the log names the files of a folder that are not read.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TextIO, cast

from ccm.core.errors import DataError, listed, reason
from ccm.core.extras import needs
from ccm.core.processes import get_logger

ROWS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")  # what read_rows and read_values read
RECORD = ".ccm-data.json"  # says what was prepared into a folder: no data
Place = tuple[int, int]  # of an item in its file: its first byte, and its length in bytes
CHUNK = 1 << 20  # characters of a list that are read at a time, or more where an item is longer
_LOG = get_logger(__name__)
_BLANK = "\ufeff \t\r\n"
_SPACE, _LINE = re.compile(r"\s*"), re.compile(r"[^\n]*")
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32 begins with one of them, too


@cache
def warn_once(text: str) -> None:
    """Log a warning, unless it was logged before: one command may open the same data several times."""
    _LOG.warning(text)


def ends(path: Path, endings: Sequence[str]) -> bool:
    """Whether the name of a file has one of these endings, in small letters or capitals."""
    return path.name.lower().endswith(tuple(endings))


def find_files(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file of that path, or all files within the folder with these endings, in the order of their paths.

    Hidden files and folders are left out, and links to folders are not followed. A warning names what is left out, but
    for hidden files of other endings.

    Raises:
        DataError: when there is none.
    """
    if path.is_file():
        return [path]
    wanted = ", ".join("*" + ending for ending in endings)
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}; name the one that holds your data ({wanted}).")
    files: list[Path] = []
    others: list[str] = []
    for file in sorted(file for file in path.rglob("*") if file.is_symlink() or not file.is_dir()):
        name = file.relative_to(path)
        hidden, wanted_here = any(part.startswith(".") for part in name.parts), ends(file, endings)
        if wanted_here and not hidden and file.is_file():
            files.append(file)
        elif file.name != RECORD and (wanted_here or not hidden):
            others.append(str(name))
    if not files:
        raise DataError(f"The folder {path} holds none of {wanted}.")
    if others:
        warn_once(f"{path}: not read are {listed(others)}; read are {wanted}, but no hidden files and linked folders.")
    return files


def read_text(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        DataError: when it cannot be read, or is no UTF-8.
    """
    with readable(path), _open(path) as file:
        text = file.read()
    if "\0" in text:
        raise DataError(f"{path} holds null characters, as UTF-16 text does without its mark; save it as UTF-8.")
    return text


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file or of JSON lines, one after the other, with the named columns.

    Raises:
        DataError: when the file cannot be read, or a row lacks a column; with the row.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    return _parquet(path, columns) if ends(path, (".parquet",)) else _json_lines(path, columns)


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, or the values of a JSON file, each with its place in words, such as "line 3".

    JSON stands one value a line, over several lines, or as one list, whose items are then the values. What is no JSON
    is given as a DataError that says why; the next line is read after it.

    Raises:
        DataError: when the file cannot be read.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    if ends(path, (".parquet",)):
        yield from ((f"row {number}", row) for number, row in enumerate(_parquet(path), start=1))
        return
    for number, (line, value) in enumerate(_json_values(read_text(path))):
        if number == 0 and isinstance(value, list):
            yield from ((f"item {place}", item) for place, item in enumerate(value, start=1))
        else:
            yield f"line {line}", value


def _json_values(text: str) -> Iterator[tuple[int, Any]]:
    """The values that stand in a text one after the other, and the lines that they begin in."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    line, end = 1, 0
    while (begin := _end(_SPACE, text, end)) < len(text):
        line += text.count("\n", end, begin)
        try:
            value, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            value, end = DataError(_why(error, line)), _end(_LINE, text, begin)
        yield line, value
        line += text.count("\n", begin, end)


def _end(pattern: re.Pattern[str], text: str, begin: int) -> int:
    """Where what matches from there on ends."""
    found = pattern.match(text, begin)
    return found.end() if found else begin


def _why(error: ValueError | RecursionError, line: int) -> str:
    if not isinstance(error, json.JSONDecodeError):  # a key twice, a number of thousands of digits, braces without end
        return f"not readable as JSON: {error}"
    later = f"line {error.lineno}, " if error.lineno != line else ""
    return f"not JSON: {error.msg.removesuffix(' at')} at {later}column {error.colno}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands in one object twice")
    return found


def read_items(path: Path) -> Iterator[tuple[Place, Any]]:
    """The items of a file that is one JSON list, in order, each with its place; the file may be larger than memory.

    Raises:
        DataError: when the file cannot be read, or holds no whole list.
    """
    decoder = json.JSONDecoder()
    with readable(path), _open(path, "utf-8", "") as file:
        start = ""
        while not start.strip(_BLANK) and (more := file.read(CHUNK)):
            start += more
        text = start.lstrip(_BLANK)
        place = len(start.encode()) - len(text.encode())
        if not text.startswith("["):
            raise DataError(f"{path} holds no JSON list; it may be in another format than the publisher's.")
        while True:
            rest = text.lstrip("[, \t\r\n")
            place += len(text) - len(rest)  # what is between items is a byte a character
            if rest.startswith("]"):
                if (rest[1:] + file.read(CHUNK)).strip(_BLANK):
                    raise DataError(f"{path} goes on after its list; the file may be several in one.")
                return
            try:
                item, end = decoder.raw_decode(rest)
            except ValueError:  # the item may go on
                if not (more := file.read(max(CHUNK, len(rest)))):
                    raise
                text = rest + more
                continue
            size = len(rest[:end].encode())
            yield (place, size), item
            text, place = rest[end:], place + size


def read_item(path: Path, place: Place) -> Any:
    """The item that stands there, in a file that is not compressed.

    Raises:
        DataError: when there is none; the file may have changed.
    """
    with readable(path), path.open("rb") as file:
        file.seek(place[0])
        return json.loads(file.read(place[1]))


def count_rows(path: Path, column: str) -> int:
    """How many rows a Parquet file has, by its own account.

    Raises:
        DataError: when the file cannot be read, or lacks the column.
        ConfigError: when pyarrow is not installed.
    """
    with _parquet_file(path, [column]) as file:
        return file.metadata.num_rows


def _parquet(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    with _parquet_file(path, columns or ()) as file:
        for batch in file.iter_batches(columns=columns and [*columns]):
            yield from batch.to_pylist()


@contextmanager
def _parquet_file(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    """A Parquet file that has those columns."""
    needs("pyarrow", extra="data", what=f"{path}, a Parquet file,", instead="Or give JSON lines.")
    from pyarrow import ArrowException, parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if absent := sorted({*columns} - {*names}):
                raise DataError(f"{path} has no column {absent[0]!r}; it has {', '.join(names)}.")
            yield file
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; it may not be whole.") from error


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with readable(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                asked = {column: row[column] for column in columns}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}: no object with {' and '.join(map(repr, columns))} ({error!r}); the file "
                    "may not be whole."
                ) from None
            yield asked


def _open(path: Path, encoding: str = "utf-8-sig", newline: str | None = None) -> TextIO:
    if ends(path, (".gz",)):
        return cast(TextIO, gzip.open(path, "rt", encoding=encoding, newline=newline))
    return path.open(encoding=encoding, newline=newline)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raise what goes wrong while a file is read as a DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; put the data set's files into that folder.") from None
    except UnicodeDecodeError as error:
        what = "UTF-16 text" if error.object.startswith(_UTF16) else f"not UTF-8 text ({_stray(path)})"
        raise DataError(f"{path} is {what}; save it as UTF-8.") from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}; it may not be whole.") from error


def _stray(path: Path) -> str:
    """Where the first byte is that is not UTF-8; the error knows its place only in what was decoded at a time."""
    with gzip.open(path) if ends(path, (".gz",)) else path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}"
    return "where it was before"  # it has changed since its items were found
