"""What data sets read: files in folders, texts, and rows of JSON lines or Parquet; gzipped where a name ends in .gz."""

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


def find_files(path: Path, endings: Sequence[str]) -> list[Path]:
    """The file of that path, or all files within the folder whose names end so, in the order of their paths.

    Raises:
        DataError: when there is none.
    """
    if path.is_file():
        return [path]
    wanted = ", ".join("*" + ending for ending in endings)
    if not path.is_dir():
        raise DataError(f"There is no file or folder {path}; set data.path to where your data ({wanted}) is.")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(tuple(endings)) and file.is_file())
    if not files:
        raise DataError(f"The folder {path} holds none of {wanted}.")
    return files


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
        DataError: when it cannot be read, or is no UTF-8.
    """
    with _readable(path), _open(path) as file:
        return file.read()


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file or of JSON lines, one after the other; of each, the columns that are asked for.

    Raises:
        DataError: when the file cannot be read, or a row lacks a column; with the row.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    return _parquet(path, columns) if path.suffix == ".parquet" else _json_lines(path, columns)


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
    with _readable(path), _open(path) as file:
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


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8-sig"))
    return path.open(encoding="utf-8-sig")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error
