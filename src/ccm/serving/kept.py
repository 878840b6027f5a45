"""Turns and parts: what they hold, as rows of tables, and how they follow one another.

turn      id, owner, the turn before it, what was asked and answered, when
part      the same id: what the turn did to the memory before it: text, and keys and values    ->  part before it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ccm.core.errors import CCMError, MemoryFileError
from ccm.serving.tables import Row, Table, Transaction

ERASED = ""  # the text of a part whose turn was deleted, while later parts hold what it said
_NOTHING = sha256(b"").digest()  # the digest of data that are not kept, and of text

TURNS = Table(
    "turns",
    {
        "owner": bytes,
        "previous": str,
        "chain": bytes,
        "created": float,
        "used": float,
        "system": str,
        "asked": str,
        "answer": str,
        "size": int,
    },
    {"owner": "used", "previous": "created", "chain": "created"},
)
PARTS = Table(
    "parts",
    {
        "owner": bytes,
        "before": str,
        "depth": int,  # parts before it
        "path": str,  # their ids, from the last landmark on
        "steps": int,
        "whole": bool,
        "changed": int,  # how many times what its memory holds was changed
        "text": str,
        "data": bytes,
        "text_digest": bytes,
        "data_digest": bytes,
        "size": int,
    },
    {"owner": "depth", "before": "depth"},
)
ABOUT = Table("about", {"value": str})


class ChangedError(CCMError):
    """What is to be changed or followed is no longer what was read: it was deleted, a step forgotten, or it went on."""


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
    """

    id: str
    previous: str | None
    answer: dict[str, Any]
    asked: list[Any]
    system: str
    created: float
    chain: bytes | None = None

    @property
    def row(self) -> Row:
        """What a table holds of it, apart from its owner and its use."""
        texts = {"system": self.system, "asked": json.dumps(self.asked), "answer": json.dumps(self.answer)}
        told = {"previous": self.previous, "chain": self.chain, "created": self.created}
        return {**told, **texts, "size": size_of(texts)}


@dataclass(frozen=True)
class Part:
    """What a turn did to the memory before it.

    Attributes:
        id: of the turn.
        before: id of the part that it follows; None at the beginning.
        steps: how many steps it added.
        whole: whether ``data`` are the whole memory, and not what was added to the one before.
        text: the :class:`ccm.serving.transcripts.Transcript` as JSON; None where it is not known, and :data:`ERASED`.
        data: as :func:`ccm.serving.packing.pack` makes them; None where the text alone is kept.
        changed: how many times what its memory holds was changed, by forgetting.
    """

    id: str
    before: str | None
    steps: int
    whole: bool
    text: str | None
    data: bytes | None
    changed: int = 0

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
        return _bytes(self.text or "") + len(self.data or b"")

    @property
    def row(self) -> Row:
        """What a table holds of it, apart from its place."""
        held = {"steps": self.steps, "whole": self.whole, "text": self.text, "data": self.data}
        digests = {"text_digest": self.text_digest, "data_digest": self.data_digest}
        return {**held, **digests, "changed": self.changed, "size": self.size}


def deleted() -> ChangedError:
    """What is raised where a memory is gone."""
    return ChangedError("This memory was deleted meanwhile. Begin anew.")


def size_of(texts: Row) -> int:
    """Bytes of the texts of a turn's row."""
    return sum(_bytes(texts[one]) for one in ("system", "asked", "answer"))


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def read_turn(name: str, row: Row) -> KeptTurn:
    """The turn of a row."""
    answer, asked = json.loads(row["answer"]), json.loads(row["asked"])
    return KeptTurn(name, row["previous"], answer, asked, row["system"], row["created"], row["chain"])


def is_made(row: Row) -> bool:
    """Whether the row of a part has data."""
    return row["data_digest"] != _NOTHING


def is_told(row: Row) -> bool:
    """Whether the row of a part has text, from which its data can be made."""
    return row["text_digest"] != _NOTHING


def part_back(t: Transaction, name: str, count: int) -> str | None:
    """Id of the part that is so many before one; None where there are fewer."""
    while True:
        (row,) = t.get(PARTS, [name], ("path",))
        path = row["path"].split() if row else []
        if count <= len(path):
            return path[-count]
        if not path:
            return None
        name, count = path[0], count - len(path)


def is_added_to(t: Transaction, name: str) -> bool:
    """Whether the data of other parts are what was added to those of a part."""
    (after,) = t.find(PARTS, "before", [name])
    return any(row is not None and not row["whole"] for row in t.get(PARTS, after, ("whole",)))


def in_need(t: Transaction, name: str) -> list[tuple[bytes, str]]:
    """Owners and ids of parts whose data must be there before a turn can be deleted: they need its text."""
    (own,) = t.get(PARTS, [name], ("owner", "data_digest"))
    if own is None or t.get(TURNS, [name], ("owner",)) == [None]:
        return []
    (names,) = t.find(PARTS, "before", [name])
    rows = t.get(PARTS, names, ("owner", "data_digest"))
    found = [(name, own)] if is_added_to(t, name) else []
    found += [(one, row) for one, row in zip(names, rows, strict=True) if row is not None]
    return [(row["owner"], one) for one, row in found if not is_made(row)]


def tree_of(t: Transaction, table: Table, name: str, root: str) -> list[str]:
    """A row and all that follow it by a field, each after the one before it."""
    found, level = [root], [root]
    while level := [one for names in t.find(table, name, level) for one in names]:
        found += level
    return found


def parts_of(t: Transaction, names: Sequence[str]) -> list[Part]:
    """Parts by their ids.

    Raises:
        MemoryFileError: when one is not what was written.
        ChangedError: when one was deleted.
    """
    found = []
    for name, row in zip(names, t.get(PARTS, names), strict=True):
        if row is None:
            raise deleted()
        part, damaged = read_part(name, row)
        if any(damaged):
            raise MemoryFileError(
                f"The memory of {name} is damaged: it is not what was written. Begin anew, or mend the store by ccm "
                "memory rebuild."
            )
        found.append(part)
    return found


def read_part(name: str, row: Row) -> tuple[Part, tuple[bool, bool]]:
    """The part of a row, and whether its text and its data are not what was written."""
    part = Part(name, row["before"], row["steps"], bool(row["whole"]), row["text"], row["data"], row["changed"])
    return part, (part.text_digest != row["text_digest"], part.data_digest != row["data_digest"])
