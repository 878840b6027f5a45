"""What a server keeps: turns of conversations, each with its memory, in the tables of a file or of Redis.

Under rules that only add, the data of a part are the columns that its turn added: each entry is kept once, however many
turns hold it. Under rules that fold, they are a whole memory; the newest of a conversation are kept, and every
sixteenth. Of others the text alone stays, from which the memory is made again. A turn and its part are written in one
transaction; two servers that go on from one turn write two turns that follow it.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ccm.core.errors import CCMError, ConfigError, MemoryFileError
from ccm.core.extras import needs
from ccm.serving.kept import (
    ABOUT,
    ERASED,
    PARTS,
    TURNS,
    ChangedError,
    KeptTurn,
    Part,
    deleted,
    in_need,
    is_added_to,
    is_made,
    is_told,
    part_back,
    parts_of,
    read_part,
    read_turn,
    size_of,
    tree_of,
)
from ccm.serving.sqlite import SQLiteTables
from ccm.serving.tables import Row, StoreError, StoreUnavailableError, T, Table, Tables, Transaction

NEWEST = 8  # whole memories of a conversation that are kept, counted from its last turn
LANDMARK = 16  # of older ones, each so many turns; between two, memories are made from text again
_USED = 60.0  # seconds within which another use is not written down: it would wait for the disk
_MANY = 64  # rows that are read or deleted at a time
_LATEST = 4  # turns with the same exchanges that are looked at: many conversations begin alike
_REDIS = ("redis://", "rediss://", "unix://")
_ORIGIN = "origin"


class QuotaError(CCMError):
    """A conversation is larger than the quota of its owner."""


def open_tables(place: str | Path | None, *, make: bool = True) -> Tables:
    """The tables of a store.

    Args:
        place: a folder, or the address of a Redis or Valkey; None keeps them in the process alone.
        make: whether there may be none yet.

    Raises:
        ConfigError: when they cannot be opened.
    """
    scheme, address, _ = str(place).partition("://")
    if re.match(r"(rediss?|valkeys?|unix):(?!//)", str(place)):
        raise ConfigError(f"The store {place} lacks a slash: an address begins with {', '.join(_REDIS)}.")
    if address and not str(place).startswith(_REDIS):
        raise ConfigError(f"A store has no address {scheme}://; name a folder, or begin with {', '.join(_REDIS)}.")
    if not address:
        return SQLiteTables(None if place is None else Path(place), (TURNS, PARTS, ABOUT), make=make)
    needs("redis", what="a store in Redis", extra="serve")
    from ccm.serving.redis import RedisTables  # it takes 0.1 s to import, and most stores are folders

    return RedisTables(str(place), make=make)


class Store:
    """Turns and memories, of many owners; methods may be called from any thread.

    Args:
        tables: where they are.
        origin: identity of the model, its adapter and rule: of no other can a memory be used. None takes any store.
        seconds: that an unused turn is kept.
        quota: most bytes of one owner; the least recently used turns go first.

    Attributes:
        tables: where they are.
        origin: of the store.

    Raises:
        ConfigError: when the store is of another model, or there is none.
        StoreError: when the tables cannot be read or written.
    """

    def __init__(
        self, tables: Tables, origin: str | None, *, seconds: float = math.inf, quota: float = math.inf
    ) -> None:
        self.tables, self._seconds, self._quota = tables, seconds, quota
        self.origin = tables.run(lambda t: self._adopted(t, origin))
        self.expire()

    def _adopted(self, t: Transaction, origin: str | None) -> str:
        """The model whose store this is; that of this server where it is new."""
        (row,) = t.get(ABOUT, [_ORIGIN])
        if row is None and origin is not None:
            t.insert(ABOUT, _ORIGIN, {"value": origin})
            return origin
        if row is None:
            raise ConfigError(f"{self.tables.place} holds no store. Name that of a server, as its store.")
        if origin is not None and row["value"] != origin:
            raise ConfigError(
                f"The store {self.tables.place} holds memories of another model, adapter or rule; name another store, "
                "or make them again from their text: ccm memory rebuild."
            )
        return row["value"]

    def check(self) -> None:
        """Whether the store is there, and of this model.

        Raises:
            StoreUnavailableError: when it is not.
        """
        self._run(lambda _: None)

    def close(self) -> None:
        """Let go of the tables."""
        self.tables.close()

    def _run(self, work: Callable[[Transaction], T], *, overwrite: bool = False) -> T:
        """A transaction, as long as the store is of this model; see :meth:`Tables.run`.

        Raises:
            StoreUnavailableError: when it was given to another, which ccm memory rebuild does.
        """

        def checked(t: Transaction) -> T:
            (row,) = t.get(ABOUT, [_ORIGIN])
            if row is None:
                raise StoreUnavailableError("The store is empty: all of it was deleted. Start the server anew.")
            if row["value"] != self.origin:
                raise StoreUnavailableError("The store was given to another model; start the server with that.")
            return work(t)

        return self.tables.run(checked, overwrite=overwrite)

    def add(self, owner: bytes, kept: Sequence[tuple[KeptTurn, Part]], changed: int = 0) -> int:
        """Keep turns with their parts, each after the one before it: all of them, or none.

        Args:
            owner: whose they are.
            kept: in order.
            changed: of the part before the first, when its memory was read.

        Returns:
            How many turns made way, where the quota was used up.

        Raises:
            StoreError: when they cannot be written.
            ChangedError: when the turn or the part before is gone, or its memory is another now.
            QuotaError: when they, with the memory that they follow, are more than the quota.
        """

        def work(t: Transaction) -> int:
            now, expected = time.time(), changed
            for turn, part in kept:
                if turn.previous is not None and t.get(TURNS, [turn.previous], ("owner",)) == [None]:
                    raise _left()
                place: Row = {"depth": 0, "path": ""}
                if part.before is not None:
                    (before,) = t.get(PARTS, [part.before], ("owner", "depth", "path", "changed"))
                    if before is None or before["owner"] != owner:
                        raise _left()
                    if before["changed"] != expected:
                        raise ChangedError("A step of this conversation was forgotten meanwhile. Ask again.")
                    path = part.before if before["depth"] % LANDMARK == 0 else f"{before['path']} {part.before}"
                    place = {"depth": before["depth"] + 1, "path": path}
                t.insert(PARTS, part.id, {"owner": owner, "before": part.before, **place, **part.row})
                row = turn.row
                t.insert(TURNS, turn.id, {"owner": owner, "used": now, **row})
                t.hold(owner, row["size"] + part.size)
                self._thin(t, part.id)
                expected = part.changed
            return self._make_room(t, owner, {turn.id for turn, _ in kept})

        return self._run(work)

    def _thin(self, t: Transaction, name: str) -> None:
        """Let go of a memory that is old and can be made from text again, where a part was added."""
        old = part_back(t, name, NEWEST)
        if old is None:
            return
        (row,) = t.get(PARTS, [old], ("before", "depth", "data_digest", "text_digest"))
        if row is None or row["depth"] % LANDMARK == 0 or not is_made(row) or not is_told(row):
            return
        if row["before"] is not None:
            (before,) = t.get(PARTS, [row["before"]], ("data_digest", "text_digest"))
            if before is None or not (is_made(before) or is_told(before)):
                return
        if is_added_to(t, old):
            return
        with suppress(MemoryFileError):  # a damaged one stays as it is
            (part,) = parts_of(t, [old])
            self._write(t, replace(part, whole=True, data=None))

    def _write(self, t: Transaction, part: Part) -> None:
        """Change what a part holds.

        Raises:
            ChangedError: when it was deleted meanwhile.
        """
        (row,) = t.get(PARTS, [part.id], ("owner", "size"))
        if row is None:
            raise ChangedError(f"There is no part {part.id}.")
        t.update(PARTS, part.id, part.row)
        t.hold(row["owner"], part.size - row["size"])

    def _rewrite(self, t: Transaction, name: str, **values: str | None) -> None:
        """Change the texts of a turn."""
        (row,) = t.get(TURNS, [name], ("owner", "system", "asked", "answer", "size"))
        if row is None:
            raise ChangedError(f"There is no turn {name}.")
        row |= values
        size = size_of(row)
        t.update(TURNS, name, {**values, "size": size})
        t.hold(row["owner"], size - row["size"])

    def get(self, owner: bytes, name: str) -> KeptTurn | None:
        """The turn of that id, if it is the owner's and has not expired."""
        return self._used(self._run(lambda t: self._first(t, owner, [name])))

    def find(self, owner: bytes, chains: Sequence[bytes]) -> KeptTurn | None:
        """The latest turn of the longest prefix that is kept; ``chains`` has each prefix's digest, shortest first."""

        def work(t: Transaction) -> tuple[KeptTurn, float] | None:
            for end in range(len(chains), 0, -_MANY):
                for names in reversed(t.find(TURNS, "chain", chains[max(0, end - _MANY) : end], most=-_LATEST)):
                    if (found := self._first(t, owner, names[::-1])) is not None:
                        return found
            return None

        return self._used(self._run(work))

    def _first(self, t: Transaction, owner: bytes, names: Sequence[str]) -> tuple[KeptTurn, float] | None:
        """The first of turns that is the owner's and has not expired, and when it was used."""
        fields = ("owner", "previous", "answer", "asked", "system", "created", "chain", "used")
        for name, row in zip(names, t.get(TURNS, names, fields), strict=True):
            if row is not None and row["owner"] == owner and row["used"] > time.time() - self._seconds:
                return read_turn(name, row), row["used"]
        return None

    def _used(self, found: tuple[KeptTurn, float] | None) -> KeptTurn | None:
        """A turn that was found; that it is used is written down."""
        if found is None:
            return None
        turn, used = found
        if time.time() - used > _USED:

            def work(t: Transaction) -> None:
                if t.get(TURNS, [turn.id], ("owner",)) != [None]:
                    t.update(TURNS, turn.id, {"used": time.time()})

            with suppress(StoreError):  # a full disk can still be read
                self._run(work)
        return turn

    def held(self) -> dict[bytes, int]:
        """Bytes that the turns of each owner take."""
        return {owner: held for owner, held in self._run(lambda t: t.owners()).items() if held}

    def owner_of(self, name: str) -> bytes:
        """Whose the turn of an id is; nobody's where there is none."""
        (row,) = self._get(TURNS, [name], ("owner",))
        return row["owner"] if row else b""

    def _rows(self, table: Table, fields: Sequence[str]) -> Iterator[tuple[str, Row]]:
        """Ids and fields of all rows: owner by owner, in the order of their index."""
        for owner in self._run(lambda t: t.owners()):
            (names,) = self._find(table, "owner", owner)
            for begin in range(0, len(names), _MANY):
                some = names[begin : begin + _MANY]
                for name, row in zip(some, self._get(table, some, fields), strict=True):
                    if row is not None:
                        yield name, row

    def _find(self, table: Table, name: str, value: object, until: float = math.inf) -> list[list[str]]:
        return self._run(lambda t: t.find(table, name, [value], until=until, watch=False))

    def _get(self, table: Table, names: Sequence[str], fields: Sequence[str] = ()) -> list[Row | None]:
        return self._run(lambda t: t.get(table, names, fields))

    def rows(self) -> Iterator[dict[str, Any]]:
        """What there is, turn by turn, in the order of time; a key is told by 8 hex digits of its digest."""
        parts = dict(self._rows(PARTS, ("size", "depth")))
        turns = self._rows(TURNS, ("owner", "previous", "created", "used", "size"))
        held = [(row["created"], parts[name]["depth"], name, row) for name, row in turns if name in parts]
        for created, _, name, row in sorted(held, key=lambda one: one[:3]):
            told = {"id": name, "previous": row["previous"], "key": row["owner"].hex()[:8], "created": created}
            yield {**told, "used": row["used"], "size": row["size"] + parts[name]["size"]}

    def chain(self, owner: bytes, name: str, *, whole: bool = False) -> list[Part]:
        """The parts of a memory in order, from the nearest whole memory on, or from the beginning if ``whole``.

        Raises:
            MemoryFileError: when one is not what was written.
            ChangedError: when one was deleted.
        """

        def work(t: Transaction) -> list[Part]:
            names, some = list[str](), [name]
            while some:
                rows = t.get(PARTS, some, ("owner", "path", "whole", "data_digest"))
                if any(row is None or row["owner"] != owner for row in rows):
                    raise deleted()
                told = [row for row in rows if row is not None]
                wholes = [at for at, row in enumerate(told) if row["whole"] and is_made(row)]
                if wholes and not whole:
                    return parts_of(t, [*some[wholes[-1] :], *names])
                names = [*some, *names]
                some = told[0]["path"].split()
            return parts_of(t, names)

        return self._run(work)

    def changes(self, owner: bytes, name: str) -> int:
        """How many times the memory that ends with a part was changed.

        Raises:
            ChangedError: when it was deleted.
        """
        (row,) = self._get(PARTS, [name], ("owner", "changed"))
        if row is None or row["owner"] != owner:
            raise deleted()
        return row["changed"]

    def damaged(self, progress: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """Ids of turns whose memory is not what was written. Each part is read once.

        Args:
            progress: called with how many parts were read, and of how many.

        Raises:
            MemoryFileError: when the tables themselves are torn, so that not all of them can be read.
        """
        lost: set[str] = set()
        parts = [*self._rows(PARTS, ("owner",))]
        for done, (name, _) in enumerate(parts):  # those before it come before
            progress(done, len(parts))
            (row,) = self._get(PARTS, [name])
            if row is not None:
                part, damage = read_part(name, row)
                if any(damage) or (part.before in lost and not (part.whole and part.data)):
                    lost.add(name)
        return [row["id"] for row in self.rows() if row["id"] in lost]

    def following(self, name: str) -> list[tuple[bytes, Part]]:
        """A part and all that follow it, with their owner, each after the one before it."""

        def work(t: Transaction) -> list[tuple[bytes, Part]]:
            names = tree_of(t, PARTS, "before", name)
            owners = [row["owner"] for row in t.get(PARTS, names, ("owner",)) if row is not None]
            return [*zip(owners, parts_of(t, names), strict=True)]

        return self._run(work)

    def change(
        self,
        parts: Iterable[Part],
        *,
        was: Sequence[Part] = (),
        tree: bool = False,
        gone: Iterable[str] = (),
        blank: Iterable[str] = (),
        hidden: Iterable[str] = (),
    ) -> None:
        """Change what parts hold, delete turns, take the text of some out, and hide some: all of it, or nothing.

        Args:
            parts: as they are to be.
            was: parts from which the change was made, as they were read.
            tree: whether they are a part and all that follow it.
            gone: ids of turns to delete.
            blank: ids of turns whose text goes.
            hidden: ids of turns that are no longer found by their exchanges, and keep no copy of earlier ones.

        Raises:
            ChangedError: when the parts that were read are others now, or a part or turn is gone.
        """
        parts, gone, blank, hidden = [*parts], [*gone], [*blank], [*hidden]

        def work(t: Transaction) -> None:
            names = tree_of(t, PARTS, "before", was[0].id) if tree else [part.id for part in was]
            rows = zip(names, t.get(PARTS, names), strict=True)
            if [None if row is None else read_part(name, row)[0] for name, row in rows] != [*was]:
                raise ChangedError("What the change was made from is another now. Ask again.")
            for part in parts:
                self._write(t, part)
                self._thin(t, part.id)
            for name in hidden:
                self._hide(t, name)
            for name in blank:
                self._rewrite(t, name, asked="[]", answer="{}")
            for name in gone:
                self._drop(t, name)

        self._run(work, overwrite=True)

    def _hide(self, t: Transaction, name: str) -> None:
        """Keep of a turn its own exchange alone: no items that came again, no compaction item, no digest."""
        (row,) = t.get(TURNS, [name], ("asked", "answer"))
        if row is None:
            raise ChangedError(f"There is no turn {name}.")
        asked, answer = json.loads(row["asked"]), json.loads(row["answer"])
        replies = [i for i, one in enumerate(asked, 1) if one.get("role") == "assistant" and "tool_calls" not in one]
        if "output" in answer:
            answer["output"] = [item for item in answer["output"] if item["type"] != "compaction"]
        asked = asked[max(replies, default=0) :]
        self._rewrite(t, name, asked=json.dumps(asked), answer=json.dumps(answer))
        t.update(TURNS, name, {"chain": None})

    def unmade(self, *, thinned: bool) -> list[tuple[bytes, str]]:
        """Owners and ids of parts without data, each after the one before it.

        Args:
            thinned: also those whose data are let go of once they are old.
        """
        rows = dict(self._rows(PARTS, ("owner", "before", "depth", "path", "data_digest")))
        later: dict[str, int] = {}  # turns that follow a part
        after: dict[str | None, list[str]] = {}
        for name, row in reversed(rows.items()):
            before = row["before"]
            after.setdefault(before, []).append(name)
            if before is not None:
                later[before] = max(later.get(before, 0), later.get(name, 0) + 1)
        ordered, left = list[str](), after.get(None, [])
        while left:  # a conversation to its end, then the next: each memory is made from the last
            ordered.append(left.pop())
            left += after.get(ordered[-1], [])
        return [
            (rows[name]["owner"], name)
            for name in ordered
            if not is_made(rows[name])
            and (thinned or rows[name]["depth"] % LANDMARK == 0 or later.get(name, 0) < NEWEST)
        ]

    def part(self, name: str) -> Part:
        """A part by its id.

        Raises:
            MemoryFileError: when it is not what was written.
            ChangedError: when it was deleted.
        """
        (part,) = self._run(lambda t: parts_of(t, [name]))
        return part

    def in_need(self, name: str) -> list[tuple[bytes, str]]:
        """Owners and ids of parts whose data must be there before a turn can be deleted: they need its text."""
        return self._run(lambda t: in_need(t, name))

    def turns_of(self, names: Sequence[str]) -> list[str]:
        """Those of the ids of parts that are ids of turns still."""
        rows = self._get(TURNS, names, ("owner",))
        return [name for name, row in zip(names, rows, strict=True) if row is not None]

    def textless(self) -> list[str]:
        """Ids of turns whose memory cannot be made from text: of them or of turns before, none was kept."""
        lost: set[str] = set()
        for name, row in self._rows(PARTS, ("before", "text")):  # those before it come before
            if row["text"] is None or row["before"] in lost:
                lost.add(name)
        return [row["id"] for row in self.rows() if row["id"] in lost]

    def give_up_damaged(self) -> None:
        """Let go of data that are damaged, where their text is whole: they can be made again from it."""

        def work(t: Transaction, name: str) -> None:
            (row,) = t.get(PARTS, [name])
            if row is not None:
                part, (text, data) = read_part(name, row)
                if data and not text and part.text:
                    self._write(t, replace(part, whole=True, data=None))

        for name, row in self._rows(PARTS, ("data_digest",)):
            if is_made(row):
                self._run(partial(work, name=name))

    def adopt(self, origin: str, renew: Callable[[str], str]) -> None:
        """Make this the store of another model: all data go, and the text of each part takes a new form.

        Until all have, it is the store of no model; where this is stopped, it can be begun again.

        Args:
            origin: identity of the model.
            renew: gives the new form of a text; of a text in its new form, the same.
        """

        def give(value: str) -> None:
            self._run(lambda t: t.update(ABOUT, _ORIGIN, {"value": value}))
            self.origin = value

        def work(t: Transaction, name: str) -> None:
            if t.get(PARTS, [name], ("owner",)) != [None]:
                (part,) = parts_of(t, [name])
                if part.text is not None:
                    self._write(t, replace(part, whole=True, text=renew(part.text), data=None))

        give(f"rebuilt for {origin}")
        for name, _ in self._rows(PARTS, ("owner",)):
            self._run(partial(work, name=name))
        give(origin)

    def delete(
        self, owner: bytes, name: str, *, cascade: bool = False, lossy: bool = False
    ) -> tuple[list[str], list[str]]:
        """Delete a turn, and with ``cascade`` all that follow it.

        Args:
            owner: whose it is.
            name: its id.
            cascade: whether all that follow it go, too.
            lossy: whether it goes even where later memories need its text, and will lack it.

        Returns:
            The ids that are gone, and those of turns that are left, follow, and hold what it said.

        Raises:
            ChangedError: where later memories need its text; see :meth:`in_need`.
        """

        def work(t: Transaction) -> tuple[list[str], list[str]]:
            (row,) = t.get(TURNS, [name], ("owner",))
            if row is None or row["owner"] != owner:
                return [], []
            if not cascade and not lossy and in_need(t, name):
                raise ChangedError("Later memories need the text of this turn now. Ask again.")
            following = tree_of(t, TURNS, "previous", name)
            gone = following if cascade else following[:1]
            for one in gone:
                self._erase(t, one)
                self._drop(t, one)
            return gone, following[len(gone) :]

        return self._run(work, overwrite=True)

    def expire(self) -> None:
        """Delete what was not used for too long."""

        if self._seconds == math.inf:
            return
        until = time.time() - self._seconds

        def work(t: Transaction, names: Sequence[str]) -> None:
            for name, row in zip(names, t.get(TURNS, names, ("used",)), strict=True):
                if row is not None and row["used"] <= until:
                    self._drop(t, name)

        for owner in self._run(lambda t: t.owners()):
            (names,) = self._find(TURNS, "owner", owner, until)
            for begin in range(0, len(names), _MANY):
                self._run(partial(work, names=names[begin : begin + _MANY]), overwrite=True)

    def _erase(self, t: Transaction, name: str) -> None:
        """Take the text of a turn out of its part, and the data where no other part is what was added to them."""
        (row,) = t.get(PARTS, [name])
        if row is None:
            return
        (part, (_, damaged)), adds = read_part(name, row), is_added_to(t, name)
        kept = None if part.text is None else ERASED
        self._write(t, replace(part, text=kept, data=part.data if adds else None))
        if adds and damaged:  # later memories are damaged as before
            t.update(PARTS, name, {"data_digest": b""})

    def _drop(self, t: Transaction, name: str) -> int:
        """Delete a turn, and of its memory what no other holds; returns their bytes.

        Turns that followed it follow the one before it.
        """
        (row,) = t.get(TURNS, [name], ("owner", "previous", "size"))
        if row is None:
            raise ChangedError(f"There is no turn {name}.")
        for one in t.find(TURNS, "previous", [name])[0]:
            t.update(TURNS, one, {"previous": row["previous"]})
        t.delete(TURNS, name)
        freed, part = row["size"], name
        while t.get(TURNS, [part], ("owner",)) == [None] and not t.find(PARTS, "before", [part], most=1)[0]:
            (held,) = t.get(PARTS, [part], ("before", "size"))
            if held is None:
                break
            t.delete(PARTS, part)
            freed, part = freed + held["size"], held["before"]
            if part is None:
                break
        t.hold(row["owner"], -freed)
        return freed

    def _make_room(self, t: Transaction, owner: bytes, but: set[str]) -> int:
        """Delete the turns that were used longest ago, as far as the quota wants it; returns how many."""
        held, gone, passed = t.held(owner), 0, {*but}
        while held > self._quota:
            # Each new turn of the key changes this index; what is deleted is looked at by itself.
            (first,) = t.find(TURNS, "owner", [owner], most=len(passed) + 1, watch=False)
            oldest = (one for one in first if one not in passed)
            if (name := next(oldest, None)) is None:
                raise QuotaError(
                    f"This conversation takes {held} bytes, and the quota of a key is {self._quota}. Begin anew, or "
                    "serve with a larger quota."
                )
            passed.add(name)
            if t.get(TURNS, [name], ("owner",)) != [None]:
                held -= self._drop(t, name)
                gone += 1
        return gone


def _left() -> ChangedError:
    return ChangedError("The turn before was deleted meanwhile. Begin anew, or go on from an earlier.")
