"""The tables of a store in SQLite: a file that one process has, or the memory of the process."""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccm.core.errors import ConfigError, MemoryFileError
from ccm.serving.tables import VERSION, Row, StoreError, T, Table, Transaction

FILE = "turns.sqlite3"
_SETTINGS = (
    "locking_mode = EXCLUSIVE",  # one process has the file
    "journal_mode = WAL",
    "synchronous = FULL",  # what was acknowledged outlives a loss of power
    "secure_delete = ON",
    "temp_store = MEMORY",  # files of its own, it does not overwrite
)
_TYPES = {bytes: "BLOB", str: "TEXT", int: "INTEGER", bool: "INTEGER", float: "REAL"}


class SQLiteTransaction:
    """See :class:`ccm.serving.tables.Transaction`."""

    def __init__(self, base: sqlite3.Connection) -> None:
        self._base = base

    def get(self, table: Table, ids: Sequence[str], fields: Sequence[str] = ()) -> list[Row | None]:
        names = fields or [*table.fields]
        query = f"SELECT {', '.join(names)} FROM {table.name} WHERE id = ?"
        rows = (self._base.execute(query, (one,)).fetchone() for one in ids)
        return [None if row is None else dict(zip(names, row, strict=True)) for row in rows]

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
        order, last = table.indexes[name], most is not None and most < 0
        way, limit = "DESC" if last else "ASC", -1 if most is None else abs(most)
        query = (
            f"SELECT id FROM {table.name} WHERE {name} = ? AND {order} <= ? ORDER BY {order} {way}, rowid {way} LIMIT ?"
        )
        found = [[row[0] for row in self._base.execute(query, (one, until, limit))] for one in values]
        return [ids[::-1] for ids in found] if last else found

    def insert(self, table: Table, name: str, row: Row) -> None:
        places = ", ".join("?" * (len(row) + 1))
        self._base.execute(f"INSERT INTO {table.name} (id, {', '.join(row)}) VALUES ({places})", (name, *row.values()))

    def update(self, table: Table, name: str, values: Row) -> None:
        told = ", ".join(f"{one} = ?" for one in values)
        self._base.execute(f"UPDATE {table.name} SET {told} WHERE id = ?", (*values.values(), name))

    def delete(self, table: Table, name: str) -> None:
        self._base.execute(f"DELETE FROM {table.name} WHERE id = ?", (name,))

    def held(self, owner: bytes) -> int:
        row = self._base.execute("SELECT held FROM owners WHERE id = ?", (owner,)).fetchone()
        return row[0] if row else 0

    def hold(self, owner: bytes, more: int) -> None:
        self._base.execute(
            "INSERT INTO owners VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET held = held + ?2", (owner, more)
        )

    def owners(self) -> dict[bytes, int]:
        return dict(self._base.execute("SELECT id, held FROM owners ORDER BY rowid"))


class SQLiteTables:
    """See :class:`ccm.serving.tables.Tables`.

    Args:
        folder: of the file; None keeps the tables in the process alone.
        tables: what there is to be.
        make: whether the file is made where it is missing.

    Raises:
        ConfigError: when the folder cannot be used, or is of another version, or another process has it open.
    """

    def __init__(self, folder: Path | None, tables: Sequence[Table], *, make: bool = True) -> None:
        self._lock, self.place = threading.RLock(), "the process" if folder is None else str(folder)
        if folder is not None and folder.exists() and not folder.is_dir():
            raise ConfigError(f"The store is {folder}, a file; name a folder, new or of a server before.")
        if folder is not None and not make and not (folder / FILE).is_file():
            raise ConfigError(f"{folder} holds no store: {FILE} is missing. Name the folder of a server, as its store.")
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.close(os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600))  # its journal gets the same mode
            self._base = sqlite3.connect(
                ":memory:" if folder is None else folder / FILE,
                timeout=1,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"The store {folder} cannot be opened: {error}.") from error
        try:
            self._open(tables)
            self._overwrite()  # a process that was killed may have left it to this one
        except sqlite3.Error as error:
            self._base.close()
            busy = (
                "another process has it; end that, or take another folder." if "locked" in str(error) else f"{error}."
            )
            raise ConfigError(f"The store {folder} cannot be opened: {busy}") from error
        except ConfigError:
            self._base.close()
            raise

    def _open(self, tables: Sequence[Table]) -> None:
        for setting in _SETTINGS:
            self._base.execute(f"PRAGMA {setting}")
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version not in (0, VERSION):
            raise ConfigError(f"The store {self.place} is of version {version}; this ccm reads version {VERSION}.")
        self._base.execute("BEGIN IMMEDIATE")  # also takes the file
        if version == 0:
            self._base.execute("CREATE TABLE owners (id BLOB PRIMARY KEY, held INTEGER NOT NULL)")
            for table in tables:
                columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in table.fields.items())
                self._base.execute(f"CREATE TABLE {table.name} (id TEXT PRIMARY KEY, {columns})")
                for name, order in table.indexes.items():
                    self._base.execute(f"CREATE INDEX {table.name}_{name} ON {table.name} ({name}, {order})")
            self._base.execute(f"PRAGMA user_version = {VERSION}")
        self._base.execute("COMMIT")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.IntegrityError) as error:
            raise StoreError(f"The store cannot be written: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise MemoryFileError(
                f"The store is damaged: {error}. Save what is left with the command .recover of sqlite3, or begin anew."
            ) from error

    def run(self, work: Callable[[Transaction], T], *, overwrite: bool = False) -> T:
        with self._lock, self._told():
            self._base.execute("BEGIN")
            try:
                done = work(SQLiteTransaction(self._base))
                self._base.execute("COMMIT")
            except BaseException:
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
                raise
            if overwrite:
                self._overwrite()
        return done

    def _overwrite(self) -> None:
        """Write the journal's pages into the file, and begin it anew."""
        self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def compact(self) -> None:
        with self._lock, self._told():
            self._base.execute("VACUUM")
            self._overwrite()

    def warnings(self) -> list[str]:
        return []  # each transaction waits for the disk

    def close(self) -> None:
        with self._lock:
            self._base.close()
