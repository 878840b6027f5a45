"""JSON lists of objects, however large: read one item at a time, and any item again by its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccm.errors import DataError

CHUNK = 1 << 20  # characters that are read at a time
Place = tuple[int, int]  # of an item in its file: the first byte, and how many they are


def read_list(path: Path) -> Iterator[tuple[Place, Any]]:
    """The items of a file that holds one list, in order, each with its place.

    Raises:
        DataError: when the file is absent or not whole.
    """
    decoder, text, begin = json.JSONDecoder(), "", 0
    with readable(path), path.open(encoding="utf-8", newline="") as file:
        while True:
            rest = text.lstrip("[, \t\r\n")
            begin += len(text) - len(rest)  # what is between items is a byte a character
            if rest.startswith("]"):
                return
            try:
                item, end = decoder.raw_decode(rest)
            except ValueError:
                if not (more := file.read(CHUNK)):
                    raise
                text = rest + more
                continue
            size = len(rest[:end].encode())
            yield (begin, size), item
            text, begin = rest[end:], begin + size


def read_item(path: Path, place: Place) -> Any:
    """The item that stands there.

    Raises:
        DataError: when there is none; the file may have changed.
    """
    with readable(path), path.open("rb") as file:
        file.seek(place[0])
        return json.loads(file.read(place[1]))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read is said as a DataError."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; put the data set's files into that folder.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from None
