"""Tables of a store, wherever they are: rows that are read and written in transactions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ccm.core.errors import CCMError

VERSION = 3  # of all tables together
T = TypeVar("T")
Row = dict[str, Any]


class StoreError(CCMError):
    """What cannot be written: a disk or a memory is full."""


class StoreUnavailableError(StoreError):
    """A store that cannot be reached now; what it acknowledged is kept."""


@dataclass(frozen=True)
class Table:
    """Rows of one kind, each under an id.

    Attributes:
        name: of the table.
        fields: type of each; a value may be None but in the first.
        indexes: fields by whose values rows are found, and the field in whose order they come.
    """

    name: str
    fields: Mapping[str, type]
    indexes: Mapping[str, str] = field(default_factory=dict)


class Transaction(Protocol):
    """What is read and written together: as if nobody else wrote meanwhile, and all of it or nothing."""

    def get(self, table: Table, ids: Sequence[str], fields: Sequence[str] = ()) -> list[Row | None]:
        """Fields of rows, or all; None for each that is not there."""

    def find(
        self,
        table: Table,
        name: str,
        values: Sequence[Any],
        *,
        until: float = math.inf,
        most: int | None = None,
        watch: bool = True,
    ) -> list[list[str]]:
        """Ids of the rows that have each value in an indexed field, in the order of the index.

        Args:
            table: with an index of the field.
            name: of the field.
            values: of it.
            until: largest value of the field that gives the order.
            most: how many ids of each value, from the first on; from the last on where it is negative.
            watch: whether the answer has to hold to the end; else rows may come and go meanwhile.
        """

    def insert(self, table: Table, name: str, row: Row) -> None:
        """A row under a new id."""

    def update(self, table: Table, name: str, values: Row) -> None:
        """Give fields of a row that is there other values."""

    def delete(self, table: Table, name: str) -> None:
        """Take a row that is there away."""

    def held(self, owner: bytes) -> int:
        """The sum of what :meth:`hold` was told of an owner; others may change it meanwhile."""

    def hold(self, owner: bytes, more: int) -> None:
        """Count bytes of an owner, or fewer where it is negative."""

    def owners(self) -> dict[bytes, int]:
        """What :meth:`held` says of each owner."""


class Tables(Protocol):
    """Where the tables of a store are; methods may be called from any thread.

    Attributes:
        place: what messages call it.
    """

    place: str

    def run(self, work: Callable[[Transaction], T], *, overwrite: bool = False) -> T:
        """Do what ``work`` does in one transaction; it may be called again where others wrote what it had read.

        Args:
            work: reads and writes rows.
            overwrite: whether to take what was deleted out of journals, too, where that can be done.

        Raises:
            StoreError: when it cannot be written; then nothing is.
            StoreUnavailableError: when the tables cannot be reached: whether it was written, nobody knows.
            MemoryFileError: when the tables are damaged.
        """

    def compact(self) -> None:
        """Write all anew, so that nothing is left of what was deleted."""

    def warnings(self) -> list[str]:
        """What may lose turns that were acknowledged."""

    def close(self) -> None:
        """Let go of them."""
