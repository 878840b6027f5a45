"""Tables that do not hold up the engine: a request waits for its own transaction, and the others go on."""

from __future__ import annotations

from collections.abc import Callable

from ccm.serving.engine import elsewhere
from ccm.serving.tables import T, Tables, Transaction


class TablesElsewhere:
    """See :class:`ccm.serving.tables.Tables`.

    Args:
        tables: where the rows are.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables, self.place = tables, tables.place

    def run(self, work: Callable[[Transaction], T], *, overwrite: bool = False) -> T:
        return elsewhere(lambda: self._tables.run(work, overwrite=overwrite))

    def compact(self) -> None:
        elsewhere(self._tables.compact)

    def warnings(self) -> list[str]:
        return elsewhere(self._tables.warnings)

    def close(self) -> None:
        self._tables.close()
