"""What a server keeps: turns of conversations, in SQLite, each with its memory.

    turn      id, owner, the turn before it, what was asked and answered, when      ->  part
    part      what a turn did to the memory before it: text, and keys and values    ->  part before it, or none

Under rules that only add, the data of a part are the columns that its turn added: each entry is kept once, however many
turns hold it. Under rules that fold, they are a whole memory; the newest of a conversation are kept, and every
sixteenth. Of others the text alone stays, from which the memory is made again. A turn and its part are written in one
transaction, and what is deleted is overwritten.
"""

from __future__ import annotations

import json
import math
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ccm.core.errors import CCMError, ConfigError, MemoryFileError
from ccm.serving import sql

VERSION = 2
ERASED = sql.ERASED  # the text of a part whose turn was deleted, while later parts hold what it said
_USED = 60.0  # seconds within which another use is not written down: it would wait for the disk
FILE = "turns.sqlite3"
NEWEST = 8  # whole memories of a conversation that are kept, counted from its last turn
LANDMARK = 16  # of older ones, each so many turns; between two, memories are made from text again


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
        created: Unix time.
        chain: digest of all exchanges up to its own, where it can be found by them.
        part: of the store, the last of its memory; 0 before it is kept.
    """

    id: str
    previous: str | None
    answer: dict[str, Any]
    asked: list[Any]
    system: str
    created: float
    chain: bytes | None = None
    part: int = 0


@dataclass(frozen=True)
class Part:
    """What a turn did to the memory before it.

    Attributes:
        before: the part that it follows; None at the beginning.
        steps: how many steps it added.
        whole: whether ``data`` are the whole memory, and not what was added to the one before.
        text: the :class:`ccm.serving.transcripts.Transcript` as JSON; None where it is not known, and :data:`ERASED`.
        data: as :func:`ccm.serving.packing.pack` makes them; None where the text alone is kept.
        id: of the store; 0 before it is kept.
    """

    before: int | None
    steps: int
    whole: bool
    text: str | None
    data: bytes | None
    id: int = 0

    @property
    def text_digest(self) -> bytes:
        """Of the text."""
        return sha256((self.text or "").encode()).digest()

    @property
    def data_digest(self) -> bytes:
        """Of the data."""
        return sha256(self.data or b"").digest()

    @property
    def size(self) -> int:
        """Bytes of text and data."""
        return len((self.text or "").encode()) + len(self.data or b"")


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
            self._overwrite()  # a process that was killed may have left it to this one
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
        for setting in sql.SETTINGS:
            self._base.execute(f"PRAGMA {setting}")
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version == 0 and origin is not None:
            with self.writing():
                for statement in filter(str.strip, sql.SCHEMA.split(";")):
                    self._base.execute(statement)
                self._base.execute("INSERT INTO about VALUES ('origin', ?)", (origin,))
                self._base.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION:
            raise ConfigError(f"The store {folder} is of version {version}; this ccm reads version {VERSION}.")
        (self.origin,) = self._base.execute("SELECT value FROM about WHERE name = 'origin'").fetchone()
        if origin is not None and self.origin != origin:
            raise ConfigError(
                f"The store {folder} holds memories of another model, adapter or rule; name another folder, or make "
                "them again from their text: ccm memory rebuild."
            )

    def close(self) -> None:
        """Write all to the file itself, and let go of it."""
        with self._lock:
            self._base.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all of it, or nothing. One that begins in another is a part of it."""
        with self._lock:
            if self._base.in_transaction:
                yield
                return
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    def add(self, owner: bytes, turn: KeptTurn, part: Part) -> int:
        """Keep a turn with its part; returns the number of the part.

        Raises:
            sqlite3.Error: when it cannot be written; then nothing is. IntegrityError where the part before is gone.
            QuotaError: when it alone, with the memory that it follows, is more than the quota.
        """
        answer, asked, now = json.dumps(turn.answer), json.dumps(turn.asked), time.time()
        size = len(answer) + len(asked) + len(turn.system.encode("utf-8", "surrogatepass"))
        with self.writing():
            depth = 0
            if part.before is not None:
                row = self._base.execute(
                    "SELECT depth + 1 FROM parts WHERE id = ? AND owner = ?", (part.before, owner)
                ).fetchone()
                if row is None:
                    raise sqlite3.IntegrityError(f"there is no part {part.before}")
                (depth,) = row
            number = self._base.execute(
                "INSERT INTO parts (owner, before, depth, steps, whole, text, data, text_digest, data_digest, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (owner, part.before, depth, *_values(part)),
            ).lastrowid
            assert number is not None
            values = (turn.id, owner, turn.previous, turn.chain, turn.created, now, turn.system, asked, answer)
            self._base.execute(
                "INSERT INTO turns (id, owner, previous, chain, created, used, system, asked, answer, part, size) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, number, size),
            )
            self._thin(number)
            self._make_room(owner, turn.id)
        return number

    def _thin(self, number: int) -> None:
        """Let go of a memory that is old and can be made from text again, where a part was added."""
        for row in self._base.execute(sql.OLD, (number, NEWEST, LANDMARK)).fetchall():
            with suppress(MemoryFileError):  # a damaged one stays as it is
                self._write(replace(_part(row), whole=True, data=None))

    def _write(self, part: Part) -> None:
        """Change what a part holds."""
        self._base.execute(
            "UPDATE parts SET steps = ?, whole = ?, text = ?, data = ?, text_digest = ?, data_digest = ?, size = ? "
            "WHERE id = ?",
            (*_values(part), part.id),
        )

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
                "SELECT id, previous, answer, asked, system, created, chain, part, used FROM turns "
                f"WHERE owner = ? AND {where} AND used > ? ORDER BY created DESC LIMIT 1",
                (owner, value, now - self._seconds),
            ).fetchone()
            if row is None:
                return None
            name, previous, answer, asked, *others, used = row
            if now - used > _USED:
                with suppress(sqlite3.OperationalError):  # a full disk can still be read
                    self._base.execute("UPDATE turns SET used = ? WHERE id = ?", (now, name))
        return KeptTurn(name, previous, json.loads(answer), json.loads(asked), *others)

    def owner_of(self, name: str) -> bytes:
        """Whose the turn of an id is; nobody's where there is none."""
        with self._lock:
            row = self._base.execute("SELECT owner FROM turns WHERE id = ?", (name,)).fetchone()
        return row[0] if row else b""

    def rows(self) -> Iterator[dict[str, Any]]:
        """What there is, turn by turn, in the order of time; a key is told by 8 hex digits of its digest."""
        with self._lock:
            rows = self._base.execute(
                "SELECT t.id, t.previous, t.owner, t.created, t.used, t.size + p.size FROM turns t "
                "JOIN parts p ON p.id = t.part ORDER BY t.created, t.rowid"
            ).fetchall()
        for name, previous, owner, created, used, held in rows:
            told = {"id": name, "previous": previous, "key": owner.hex()[:8], "created": created, "used": used}
            yield {**told, "size": held}

    def chain(self, owner: bytes, number: int, *, whole: bool = False) -> list[Part]:
        """The parts of a memory in order, from the nearest whole memory on, or from the beginning if ``whole``.

        Raises:
            MemoryFileError: when one is not what was written, or was deleted.
        """
        with self._lock:
            rows = self._base.execute(sql.CHAIN, (number, owner, whole)).fetchall()
        if not rows:
            raise MemoryFileError("This memory was deleted meanwhile. Begin anew.")
        return [_part(row) for row in sorted(rows)]  # by id: a part is later than the one before it

    def damaged(self) -> list[str]:
        """Ids of turns whose memory is not what was written. Each part is read once.

        Raises:
            MemoryFileError: when the file itself is torn, so that not all of it can be read.
        """
        lost: set[int] = set()
        with self._lock, _torn():
            for (number,) in self._base.execute("SELECT id FROM parts ORDER BY id").fetchall():
                try:
                    part = _part(self._base.execute(sql.ONE, (number,)).fetchone())
                except MemoryFileError:
                    lost.add(number)
                else:
                    if part.before in lost and not (part.whole and part.data):
                        lost.add(number)
            rows = self._base.execute("SELECT id, part FROM turns ORDER BY created, rowid").fetchall()
        return [name for name, number in rows if number in lost]

    def following(self, number: int) -> list[tuple[bytes, Part]]:
        """A part and all that follow it, with their owner, each after the one before it."""
        with self._lock:
            rows = self._base.execute(sql.TREE, (number,)).fetchall()
        return [(row[-1], _part(row[:-1])) for row in sorted(rows)]

    def change(
        self, parts: Iterable[Part], *, gone: Iterable[str] = (), blank: Iterable[str] = (), hidden: Iterable[str] = ()
    ) -> None:
        """Change what parts hold, delete turns, take the text of some out, and hide some: all of it, or nothing.

        Args:
            parts: as they are to be.
            gone: ids of turns to delete.
            blank: ids of turns whose text goes.
            hidden: ids of turns that are no longer found by their exchanges, and keep no copy of earlier ones.
        """
        with self.writing():
            for part in parts:
                self._write(part)
                self._thin(part.id)
            for name in hidden:
                self._hide(name)
            for name in blank:
                self._base.execute(
                    "UPDATE turns SET asked = '[]', answer = '{}', size = length(system) WHERE id = ?", (name,)
                )
            for name in gone:
                self._drop(name)
        self._overwrite()

    def _hide(self, name: str) -> None:
        """Keep of a turn its own exchange alone: no items that came again, no compaction item, no digest."""
        row = self._base.execute("SELECT asked, answer FROM turns WHERE id = ?", (name,)).fetchone()
        asked, answer = map(json.loads, row)
        replies = [i for i, one in enumerate(asked, 1) if one.get("role") == "assistant" and "tool_calls" not in one]
        asked = json.dumps(asked[max(replies, default=0) :])
        if "output" in answer:
            answer["output"] = [item for item in answer["output"] if item["type"] != "compaction"]
        answer = json.dumps(answer)
        self._base.execute(
            "UPDATE turns SET chain = NULL, asked = ?, answer = ?, size = ? + length(system) WHERE id = ?",
            (asked, answer, len(asked) + len(answer), name),
        )

    def unmade(self, *, thinned: bool) -> list[tuple[bytes, int]]:
        """Owners and numbers of parts without data, each after the one before it.

        Args:
            thinned: also those whose data are let go of once they are old.
        """
        with self._lock:
            rows = self._base.execute("SELECT owner, id, before, depth, data IS NULL FROM parts ORDER BY id").fetchall()
        later: dict[int, int] = {}  # turns that follow a part
        for _, number, before, *_ in reversed(rows):
            if before is not None:
                later[before] = max(later.get(before, 0), later.get(number, 0) + 1)
        return [
            (owner, number)
            for owner, number, _, depth, unmade in rows
            if unmade and (thinned or depth % LANDMARK == 0 or later.get(number, 0) < NEWEST)
        ]

    def part(self, number: int) -> Part:
        """A part by its number.

        Raises:
            MemoryFileError: when it is not what was written.
        """
        with self._lock:
            return _part(self._base.execute(sql.ONE, (number,)).fetchone())

    def compact(self) -> None:
        """Write the whole file anew, so that nothing is left of what was deleted, wherever it was moved before."""
        with self._lock:
            self._base.execute("VACUUM")
        self._overwrite()

    def in_need(self, name: str) -> list[tuple[bytes, int]]:
        """Owners and numbers of parts whose data must be there before a turn can be deleted: they need its text."""
        with self._lock:
            return self._base.execute(sql.IN_NEED, (name,)).fetchall()

    def turns_of(self, numbers: Iterable[int]) -> list[tuple[str, int]]:
        """Turns whose memory ends with one of the parts: id and part."""
        with self._lock:
            rows = (
                self._base.execute("SELECT id, part FROM turns WHERE part = ?", (number,)).fetchall()
                for number in numbers
            )
            return [row for several in rows for row in several]

    def textless(self) -> list[str]:
        """Ids of turns whose memory cannot be made from text: of them or of turns before, none was kept."""
        with self._lock:
            rows = self._base.execute(sql.TEXTLESS).fetchall()
        return [row[0] for row in rows]

    def give_up_damaged(self) -> None:
        """Let go of data that are damaged, where their text is whole: they can be made again from it."""
        with self.writing():
            for (number,) in self._base.execute("SELECT id FROM parts WHERE data IS NOT NULL").fetchall():
                part, (text, data) = _read(self._base.execute(sql.ONE, (number,)).fetchone())
                if data and not text and part.text:
                    self._write(replace(part, whole=True, data=None))

    def adopt(self, origin: str, renew: Callable[[str], str]) -> None:
        """Make this the store of another model: all data go, and the text of each part takes a new form.

        Args:
            origin: identity of the model.
            renew: gives the new form of a text.
        """
        with self.writing():
            self._base.execute("UPDATE about SET value = ? WHERE name = 'origin'", (origin,))
            for (number,) in self._base.execute("SELECT id FROM parts WHERE text IS NOT NULL").fetchall():
                part = _part(self._base.execute(sql.ONE, (number,)).fetchone())
                self._write(replace(part, whole=True, text=renew(part.text or ""), data=None))
        self.origin = origin

    def delete(self, owner: bytes, name: str, *, cascade: bool = False) -> tuple[list[str], int]:
        """Delete a turn, and with ``cascade`` all that follow it; see :meth:`in_need`.

        Returns:
            The ids that are gone, and how many turns are left that follow and hold what it said.
        """
        with self.writing():
            following = [row[0] for row in self._base.execute(sql.FOLLOWING, (name, owner))]
            gone = following if cascade else following[:1]
            for one in gone:
                self._erase(one)
                self._drop(one)
        self._overwrite()
        return gone, len(following) - len(gone)

    def expire(self) -> None:
        """Delete what was not used for too long."""
        with self.writing():
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

    def _erase(self, name: str) -> None:
        """Take the text of a turn out of its part, and the data where no other part is what was added to them."""
        *row, adds = self._base.execute(sql.OF_TURN, (name,)).fetchone()
        part, (_, damaged) = _read(row)
        kept = None if part.text is None else ERASED
        self._write(replace(part, text=kept, data=part.data if adds else None))
        if adds and damaged:  # later memories are damaged as before
            self._base.execute("UPDATE parts SET data_digest = x'' WHERE id = ?", (part.id,))

    def _drop(self, name: str) -> int:
        """Delete a turn, and of its memory what no other holds; returns their bytes.

        Turns that followed it follow the one before it.
        """
        self._base.execute(
            "UPDATE turns SET previous = (SELECT previous FROM turns WHERE id = ?1) WHERE previous = ?1", (name,)
        )
        part, freed = self._base.execute("DELETE FROM turns WHERE id = ? RETURNING part, size", (name,)).fetchone()
        while part is not None:  # as far as nothing else holds it
            row = self._base.execute(sql.DROP_UNHELD, (part,)).fetchone()
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
                raise QuotaError(
                    f"This conversation takes {held} bytes, and the quota of a key is {self._quota}. Begin anew, or "
                    "serve with a larger quota."
                )
            held -= self._drop(oldest[0])


def _values(part: Part) -> tuple[Any, ...]:
    return part.steps, part.whole, part.text, part.data, part.text_digest, part.data_digest, part.size


def _read(row: Sequence[Any]) -> tuple[Part, tuple[bool, bool]]:
    """The part of a row, and whether its text and its data are not what was written."""
    number, before, steps, whole, text, data, *digests = row
    part = Part(before, steps, bool(whole), text, data, number)
    return part, (part.text_digest != digests[0], part.data_digest != digests[1])


@contextmanager
def _torn() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise MemoryFileError(
            f"The store is damaged: {error}. Save what is left with the command .recover of sqlite3, or begin anew."
        ) from error


def _part(row: Sequence[Any]) -> Part:
    """The part of a row.

    Raises:
        MemoryFileError: when it is not what was written.
    """
    part, damaged = _read(row)
    if any(damaged):
        raise MemoryFileError(
            "A kept memory is damaged: it is not what was written. Begin anew, or mend the store by ccm memory rebuild."
        )
    return part
