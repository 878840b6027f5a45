"""What data sets read: files in folders, texts, rows of JSON lines or Parquet, JSON lists; gzipped under a .gz name."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from ccm.errors import ConfigError, DataError

ROWS = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz")  # what read_rows reads
Place = tuple[int, int]  # of an item in its file: the first byte, and how many they are
_BLANK = "\ufeff \t\r\n"
CHUNK = 1 << 20  # characters that are read of a list at a time, or more where an item is longer


def find_files(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file of that path, or all files within the folder whose names end so, in the order of their paths.

    Raises:
        DataError: when there is none.
    """
    if path.is_file():
        return [path]
    wanted = ", ".join("*" + ending for ending in endings)
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}; name the one that holds your data ({wanted}).")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(tuple(endings)) and file.is_file())
    if not files:
        raise DataError(f"The folder {path} holds none of {wanted}.")
    return files


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: when it cannot be read, or is no UTF-8.
    """
    with readable(path), _open(path) as file:
        return file.read()


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file or of JSON lines, one after the other; of each, the columns that are asked for.

    Raises:
        DataError: when the file cannot be read, or a row lacks a column; with the row.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    return _parquet(path, columns) if path.suffix == ".parquet" else _json_lines(path, columns)


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


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError(
            f"{path} is a Parquet file, which pyarrow reads; say pip install pyarrow, or give JSON lines."
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            if absent := sorted({*columns} - {*file.schema_arrow.names}):
                raise DataError(f"{path} has no column {absent[0]!r}; it has {', '.join(file.schema_arrow.names)}.")
            for batch in file.iter_batches(columns=[*columns]):
                yield from batch.to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error


def _json_lines(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with readable(path), _open(path) as file:
        for number, line in enumerate(file, start=1):
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
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding=encoding, newline=newline))
    return path.open(encoding=encoding, newline=newline)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read is said as a DataError."""
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; put the data set's files into that folder.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error
