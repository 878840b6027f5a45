"""A long list on disk: items are written once, as JSON, and read again when they are asked for."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from tempfile import TemporaryFile
from typing import Any, TypeVar, overload

T = TypeVar("T")


class Spool(Sequence[T]):
    """Items in a temporary file, which goes with the last list of them; in memory are 16 bytes for each.

    Args:
        items: what to keep; they are taken one by one.
        dump: a JSON value that says all of an item.
        load: the item of such a value, as JSON gives it back: with lists for tuples.
    """

    def __init__(self, items: Iterable[T], dump: Callable[[T], Any], load: Callable[[Any], T]) -> None:
        self._load, self._file = load, TemporaryFile()  # noqa: SIM115  open as long as the list is there
        self._begins, self._sizes = array("Q"), array("Q")
        for item in items:
            self._begins.append(self._file.tell())
            self._sizes.append(self._file.write(json.dumps(dump(item)).encode("ascii")))

    def only(self, numbers: Iterable[int]) -> Spool[T]:
        """The items of these numbers, counted from 0, in this order; the file is shared."""
        picked, numbers = copy(self), [*numbers]
        picked._begins = array("Q", (self._begins[number] for number in numbers))
        picked._sizes = array("Q", (self._sizes[number] for number in numbers))
        return picked

    def __len__(self) -> int:
        return len(self._begins)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Spool[T]: ...
    def __getitem__(self, index: int | slice) -> T | Spool[T]:
        if isinstance(index, slice):
            return self.only(range(len(self))[index])
        self._file.seek(self._begins[index])
        return self._load(json.loads(self._file.read(self._sizes[index])))
