"""What a server keeps: turns of conversations, in SQLite, each with its memory.

    turn      id, owner, the turn before it, what was asked and answered, when      ->  part
    part      the columns that a step added, after those of the part before it      ->  part, or none

Under rules that only add, a turn's part holds what its step added, and its memory is the chain of parts: each entry is
kept once, however many turns hold it. Under rules that fold, a part is a whole memory. A turn and its part are written
in one transaction, and what is deleted is overwritten.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ccm.core.errors import CCMError, ConfigError, MemoryFileError

VERSION = 1
_USED = 60.0  # seconds within which another use is not written down: it would wait for the disk
FILE = "turns.sqlite3"
_SETTINGS = (
    "locking_mode = EXCLUSIVE",  # one process has the file
    "journal_mode = WAL",
    "synchronous = FULL",  # what was acknowledged outlives a loss of power
    "secure_delete = ON",
    "foreign_keys = ON",
)
_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE parts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, owner BLOB NOT NULL, before INTEGER REFERENCES parts, depth INTEGER NOT NULL,
    data BLOB NOT NULL, digest BLOB NOT NULL, size INTEGER NOT NULL
);
CREATE INDEX parts_before ON parts (before);
CREATE INDEX parts_owner ON parts (owner, size);
CREATE TABLE turns (
    id TEXT PRIMARY KEY, owner BLOB NOT NULL, previous TEXT, chain BLOB, created REAL NOT NULL, used REAL NOT NULL,
    system TEXT NOT NULL, asked TEXT NOT NULL, answer TEXT NOT NULL, read BLOB NOT NULL,
    part INTEGER NOT NULL REFERENCES parts, size INTEGER NOT NULL
);
CREATE INDEX turns_chain ON turns (owner, chain);
CREATE INDEX turns_previous ON turns (previous);
CREATE INDEX turns_part ON turns (part);
CREATE INDEX turns_used ON turns (owner, used, size);
"""


class QuotaError(CCMError):
    """A conversation is larger than the quota of its owner."""


@dataclass(frozen=True)
class KeptTurn:
    """A turn that is kept.

    Attributes:
        id: what clients call it.
        previous: id of the turn before it; None at the beginning, or where that was no kept turn.
        answer: what the client got, as JSON.
        asked: the items that came with it.
        system: messages that came among the items and stand before all steps.
        part: of the store, the last of its memory.
        created: Unix time.
        read: token ids of the steps that the turn read.
        chain: digest of all exchanges up to its own, where it can be found by them.
    """

    id: str
    previous: str | None
    answer: dict[str, Any]
    asked: list[Any]
    system: str
    part: int
    created: float
    read: list[list[int]] = field(default_factory=list)
    chain: bytes | None = None


class Store:
    """Turns and memories, of many owners; methods may be called from any thread.

    Args:
        folder: where they are; None keeps them in the process alone.
        origin: identity of the model, its adapter and rule: of no other can a memory be used. None takes any store.
        seconds: that an unused turn is kept.
        quota: most bytes of one owner; the least recently used turns go first.

    Attributes:
        origin: of the store.

    Raises:
        ConfigError: when the folder cannot be used, or holds a store of another version or model, or another process
            has it open.
    """

    def __init__(
        self, folder: Path | None, origin: str | None, *, seconds: float = math.inf, quota: float = math.inf
    ) -> None:
        self._lock, self._seconds, self._quota = threading.RLock(), seconds, quota
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
            self._open(str(folder), origin)
            self.expire()
        except sqlite3.Error as error:
            self._base.close()
            busy = (
                "another process has it; end that, or take another folder." if "locked" in str(error) else f"{error}."
            )
            raise ConfigError(f"The store {folder} cannot be opened: {busy}") from error
        except ConfigError:
            self._base.close()
            raise

    def _open(self, folder: str, origin: str | None) -> None:
        for setting in _SETTINGS:
            self._base.execute(f"PRAGMA {setting}")
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version == 0 and origin is not None:
            with self._writing():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._base.execute(statement)
                self._base.execute("INSERT INTO about VALUES ('origin', ?)", (origin,))
                self._base.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise ConfigError(f"The store {folder} is of version {version}; this ccm reads version {VERSION}.")
        (self.origin,) = self._base.execute("SELECT value FROM about WHERE name = 'origin'").fetchone()
        if origin is not None and self.origin != origin:
            raise ConfigError(
                f"The store {folder} holds memories of another model, adapter or rule; name another folder."
            )

    def close(self) -> None:
        """Write all to the file itself, and let go of it."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction: all of it, or nothing."""
        with self._lock:
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def add(self, owner: bytes, turn: KeptTurn, data: bytes, before: int | None) -> int:
        """Keep a turn; returns its part.

        Args:
            owner: whose it is.
            turn: its own part is not read.
            data: of its memory, or of what its step added to ``before``.
            before: the part that ``data`` follows.

        Raises:
            sqlite3.Error: when it cannot be written; then nothing is. IntegrityError where ``before`` is gone.
            QuotaError: when it alone, with the memory that it follows, is more than the quota.
        """
        answer, asked = json.dumps(turn.answer), json.dumps(turn.asked)
        read, now = json.dumps(turn.read).encode(), time.time()
        size = len(answer) + len(asked) + len(read) + len(turn.system)
        with self._writing():
            depth = 0
            if before is not None:
                row = self._base.execute(
                    "SELECT depth + 1 FROM parts WHERE id = ? AND owner = ?", (before, owner)
                ).fetchone()
                if row is None:
                    raise sqlite3.IntegrityError(f"there is no part {before}")
                (depth,) = row
            part = self._base.execute(
                "INSERT INTO parts (owner, before, depth, data, digest, size) VALUES (?, ?, ?, ?, ?, ?)",
                (owner, before, depth, data, sha256(data).digest(), len(data)),
            ).lastrowid
            values = (turn.id, owner, turn.previous, turn.chain, turn.created, now, turn.system, asked, answer, read)
            self._base.execute(
                "INSERT INTO turns (id, owner, previous, chain, created, used, system, asked, answer, read, part, size)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, part, size),
            )
            self._make_room(owner, turn.id)
        assert part is not None
        return part

    def get(self, owner: bytes, name: str) -> KeptTurn | None:
        """The turn of that id, if it is the owner's and has not expired."""
        return self._one("id = ?", owner, name)

    def find(self, owner: bytes, chains: Sequence[bytes]) -> KeptTurn | None:
        """The latest turn of the longest prefix that is kept; ``chains`` has each prefix's digest, shortest first."""
        for chain in reversed(chains):
            if (found := self._one("chain = ?", owner, chain)) is not None:
                return found
        return None

    def _one(self, where: str, owner: bytes, value: object) -> KeptTurn | None:
        with self._lock:
            now = time.time()
            row = self._base.execute(
                "SELECT id, previous, answer, asked, system, part, created, read, chain, used FROM turns "
                f"WHERE owner = ? AND {where} AND used > ? ORDER BY created DESC LIMIT 1",
                (owner, value, now - self._seconds),
            ).fetchone()
            if row is None:
                return None
            name, previous, answer, asked, system, part, created, read, chain, used = row
            if now - used > _USED:
                self._base.execute("UPDATE turns SET used = ? WHERE id = ?", (now, name))
        return KeptTurn(
            name, previous, json.loads(answer), json.loads(asked), system, part, created, json.loads(read), chain
        )

    def owner_of(self, name: str) -> bytes:
        """Whose the turn of an id is; nobody's where there is none."""
        with self._lock:
            row = self._base.execute("SELECT owner FROM turns WHERE id = ?", (name,)).fetchone()
        return row[0] if row else b""

    def rows(self) -> Iterator[dict[str, Any]]:
        """What there is, turn by turn, in the order of time; a key is told by 8 hex digits of its digest."""
        with self._lock:
            rows = self._base.execute(
                "SELECT t.id, t.previous, t.owner, t.created, t.used, t.size FROM turns t ORDER BY t.created, t.rowid"
            ).fetchall()
        for name, previous, owner, created, used, held in rows:
            told = {"id": name, "previous": previous, "key": owner.hex()[:8], "created": created, "used": used}
            yield {**told, "size": held}

    def parts(self, owner: bytes, part: int) -> list[bytes]:
        """The data of a memory, part by part.

        Raises:
            MemoryFileError: when one is not what was written.
        """
        with self._lock:
            rows = self._base.execute(
                "WITH RECURSIVE chain(id, before, depth, data, digest) AS ("
                "SELECT id, before, depth, data, digest FROM parts WHERE id = ? AND owner = ? UNION ALL "
                "SELECT p.id, p.before, p.depth, p.data, p.digest FROM parts p JOIN chain ON p.id = chain.before) "
                "SELECT data, digest FROM chain ORDER BY depth",
                (part, owner),
            ).fetchall()
        if not rows:
            raise MemoryFileError("This memory was deleted meanwhile. Begin anew.")
        if any(sha256(data).digest() != held for data, held in rows):
            raise MemoryFileError("A kept memory is damaged: it is not what was written. Begin anew.")
        return [data for data, _ in rows]

    def delete(self, owner: bytes, name: str, *, cascade: bool = False) -> tuple[list[str], int]:
        """Delete a turn, and with ``cascade`` all that follow it.

        Returns:
            The ids that are gone, and how many turns are left that follow and hold what it said.
        """
        with self._writing():
            following = [
                row[0]
                for row in self._base.execute(
                    "WITH RECURSIVE chain(id) AS (SELECT id FROM turns WHERE id = ? AND owner = ? UNION "
                    "SELECT t.id FROM turns t JOIN chain ON t.previous = chain.id WHERE t.owner = ?) "
                    "SELECT id FROM chain",
                    (name, owner, owner),
                )
            ]
            gone = following if cascade else following[:1]
            for one in gone:
                self._drop(one)
        self._overwrite()
        return gone, len(following) - len(gone)

    def expire(self) -> None:
        """Delete what was not used for too long."""
        with self._writing():
            expired = self._base.execute("SELECT id FROM turns WHERE used <= ?", (time.time() - self._seconds,))
            names = [row[0] for row in expired.fetchall()]
            for name in names:
                self._drop(name)
        if names:
            self._overwrite()

    def _overwrite(self) -> None:
        """Take what was deleted out of the journal, too."""
        with self._lock:
            self._base.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _drop(self, name: str) -> int:
        """Delete a turn, and of its memory what no other holds; returns their bytes.

        Turns that followed it follow the one before it.
        """
        self._base.execute(
            "UPDATE turns SET previous = (SELECT previous FROM turns WHERE id = ?1) WHERE previous = ?1", (name,)
        )
        part, freed = self._base.execute("DELETE FROM turns WHERE id = ? RETURNING part, size", (name,)).fetchone()
        while part is not None:  # as far as nothing else holds it
            row = self._base.execute(
                "DELETE FROM parts WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM turns WHERE part = ?1) "
                "AND NOT EXISTS (SELECT 1 FROM parts WHERE before = ?1) RETURNING before, size",
                (part,),
            ).fetchone()
            part, size = row or (None, 0)
            freed += size
        return freed

    def _make_room(self, owner: bytes, but: str) -> None:
        """Delete what was used longest ago, as far as the quota wants it."""
        held = sum(
            self._base.execute(f"SELECT coalesce(sum(size), 0) FROM {table} WHERE owner = ?", (owner,)).fetchone()[0]
            for table in ("turns", "parts")
        )
        while held > self._quota:
            oldest = self._base.execute(
                "SELECT id FROM turns WHERE owner = ? AND id != ? ORDER BY used LIMIT 1", (owner, but)
            ).fetchone()
            if oldest is None:
                raise QuotaError(f"This conversation takes {held} bytes, and the quota of a key is {self._quota}.")
            held -= self._drop(oldest[0])
