"""Dialogues in which a user tells facts, chats, and asks for them later; drawn without end from files of wordings.

``train.yaml`` is for training, ``held_out.yaml`` for measuring recall: no wording, value or line of small talk is in
both.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ccm.data.facts.others import CONTENT, OtherWords

_FOLDER = Path(__file__).parent
_ARTICLE = re.compile(r"\b([Aa])(?= [aeiouAEIO])")
_TYPOS = 0.05  # share of carelessly typed lines
_PLAIN = ("I ", "I'", "{")  # what a sentence begins with that is not lowered inside another


@dataclass(frozen=True)
class Kind:
    """A kind of fact; in its sentences ``{v}`` is the value, ``{a}`` the value with an article, ``{x}`` the subject.

    Attributes:
        told: how a user tells it.
        asked: how a user asks for it.
        answer: how the assistant answers.
        value: list of values, or the name of such a list.
        heard: replies to a user who tells it; the bank's where there are none.
        changed: how a user tells another value; empty where it never changes.
        subject: whom or what it may be about: a list, the name of a list, or a table from subjects to names of lists of
            values; None where it is about the user alone.
        clash: two kinds with the same word never stand in one dialogue: a question on one might mean the other.
    """

    told: Sequence[str]
    asked: Sequence[str]
    answer: Sequence[str]
    value: str | Sequence[str] = ()
    heard: Sequence[str] = ()
    changed: Sequence[str] = ()
    subject: str | Sequence[str] | Mapping[str, str] | None = None
    clash: str = ""


@dataclass(frozen=True)
class Slot:
    """A kind of fact about one subject, as a dialogue may tell it once.

    Attributes:
        kind: of fact.
        subject: whom or what it is about; empty where it is the user.
        values: to draw from.
        key: a dialogue tells no two slots of the same key.
    """

    kind: Kind
    subject: str
    values: Sequence[str]
    key: tuple[str, str]


@dataclass(frozen=True)
class Line:
    """A user's line and the reply; where the line asks for a fact that was told, ``value`` is the fact."""

    user: str
    reply: str
    asks: bool = False
    value: str = ""


@dataclass(frozen=True)
class Bank:
    """The wordings of a file.

    Attributes:
        kinds: of facts, each with its slots.
        leads: beginnings of lines that tell.
        asking: beginnings of lines that ask.
        heard: replies to lines that tell.
        unknown: replies to questions on what was never told.
        talk: lines that tell nothing, each with its replies.
        systems: system messages of dialogues.
    """

    kinds: Sequence[Sequence[Slot]]
    leads: Sequence[str]
    asking: Sequence[str]
    heard: Sequence[str]
    unknown: Sequence[str]
    talk: Sequence[Sequence[str]]
    systems: Sequence[str]

    def sentences(self) -> set[str]:
        """Every wording and line, as the file has it."""
        kinds = (slots[0].kind for slots in self.kinds)
        said = {text for kind in kinds for part in (kind.told, kind.asked, kind.heard, kind.changed) for text in part}
        return said | {*self.heard, *self.unknown} | {text for lines in self.talk for text in lines}

    def values(self) -> set[str]:
        """Every value, as the file has it."""
        return {value for slots in self.kinds for slot in slots for value in slot.values}

    def words(self) -> set[str]:
        """The words of every value that are not small ones, in lower case."""
        return {word.lower() for value in self.values() for word in CONTENT.findall(value)}


@cache
def read_bank(name: str) -> Bank:
    """The wordings of a file of this folder."""
    table = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    lists = {key: text.split(", ") for key, text in table["lists"].items()}
    kinds = [_slots(number, Kind(**kind), lists) for number, kind in enumerate(table["kinds"])]
    rest = {key: table.get(key, []) for key in ("leads", "asking", "heard", "unknown", "talk", "systems")}
    return Bank(kinds, **rest)


def _slots(number: int, kind: Kind, lists: Mapping[str, Sequence[str]]) -> list[Slot]:
    subjects = lists[kind.subject] if isinstance(kind.subject, str) else kind.subject or [""]
    slots = []
    for subject in subjects:
        named: Any = subjects[subject] if isinstance(subjects, Mapping) else kind.value
        values = lists[named] if isinstance(named, str) else named
        apart = named if isinstance(subjects, Mapping) else subject
        key = (kind.clash, "") if kind.clash else (str(number), str(apart))
        slots.append(Slot(kind, subject, values, key))
    return slots


@dataclass
class Writer:
    """Writes the lines of one dialogue.

    Attributes:
        bank: of wordings.
        rng: the source of all that is random.
        others: words in the place of those of some values and subjects; None for none.
        careless: whether some lines are typed carelessly.
    """

    bank: Bank
    rng: random.Random
    others: OtherWords | None = None
    careless: bool = False
    lines: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.facts: dict[tuple[str, str], tuple[Slot, str]] = {}  # by the slot's key, in the order told
        self._chats: list[Sequence[str]] = []

    def tell(self) -> None:
        """A fact of a kind and subject that were not told before."""
        slot = self._untold()
        value = self._learn(slot)
        user = self._led(self.bank.leads, 0.2, self._filled(self.rng.choice(slot.kind.told), slot, value))
        self._say(
            user, self._filled(self.rng.choice([*slot.kind.heard, *slot.kind.heard, *self.bank.heard]), slot, value)
        )

    def change(self) -> None:
        """Another value of what was told, if any of it changes; else something new."""
        slots = [slot for slot, _ in self.facts.values() if slot.kind.changed]
        if not slots:
            return self.tell()
        slot = self.rng.choice(slots)
        value = self._learn(slot)
        self._say(self._filled(self.rng.choice(slot.kind.changed), slot, value), self.rng.choice(self.bank.heard))

    def chat(self) -> None:
        """Small talk; no line comes twice before all have come once."""
        if not self._chats:
            self._chats = self.rng.sample(self.bank.talk, len(self.bank.talk))
        user, *replies = self._chats.pop()
        self._say(user, self.rng.choice(replies))

    def ask(self, key: tuple[str, str]) -> None:
        """A question on a fact that was told."""
        slot, value = self.facts[key]
        reply = self._filled(self.rng.choice(slot.kind.answer), slot, value)
        self._say(self._question(slot, value), reply, asks=True, value=value)

    def doubt(self) -> None:
        """A question on what was never told."""
        slot = self._untold()
        self._say(self._question(slot, ""), self.rng.choice(self.bank.unknown), asks=True)

    def ask_any(self, untold: float) -> None:
        """A question as in the middle of a dialogue: more often on old facts than on new ones, and at the rate
        ``untold`` on what was never told."""
        if not self.facts or self.rng.random() < untold:
            return self.doubt()
        keys, third = [*self.facts], (len(self.facts) + 2) // 3
        self.ask(self.rng.choice(keys[:third] if self.rng.random() < 0.4 else keys))

    def _untold(self) -> Slot:
        while True:  # a bank has many more kinds than a dialogue lines
            slot = self.rng.choice(self.rng.choice(self.bank.kinds))
            if slot.key not in self.facts:
                return replace(slot, subject=self._varied(slot.subject))

    def _learn(self, slot: Slot) -> str:
        known = {value for _, value in self.facts.values()}
        while (value := self._value(slot)) in known:
            pass
        self.facts.pop(slot.key, None)
        self.facts[slot.key] = slot, value
        return value

    def _value(self, slot: Slot) -> str:
        value = self._varied(self.rng.choice(slot.values))
        return re.sub("#", lambda _: str(self.rng.randint(1, 9)), value)

    def _varied(self, phrase: str) -> str:
        return self.others.instead(self.rng, phrase) if self.others else phrase

    def _question(self, slot: Slot, value: str) -> str:
        return self._led(self.bank.asking, 0.15, self._filled(self.rng.choice(slot.kind.asked), slot, value))

    def _led(self, leads: Sequence[str], share: float, text: str) -> str:
        """The text, at times with something before it."""
        if not leads or self.rng.random() >= share:
            return text
        lead = self.rng.choice(leads)
        return lead + (text if text.startswith(_PLAIN) or lead[-2] in ".!?:" else text[0].lower() + text[1:])

    def _filled(self, wording: str, slot: Slot, value: str) -> str:
        text = _ARTICLE.sub(r"\1n", wording.format(v=value, a=f"a {value}", x=slot.subject))
        return text[0].upper() + text[1:]

    def _say(self, user: str, reply: str, *, asks: bool = False, value: str = "") -> None:
        if self.careless and self.rng.random() < _TYPOS:
            user = self.rng.choice((user.lower(), user.rstrip(".!?"), user.lower().rstrip(".!?")))
        self.lines.append(Line(user, reply, asks, value))


def mixed(writer: Writer, count: int, *, asking: float, untold: float) -> list[Line]:
    """A dialogue of ``count`` lines in any order, ``asking`` the share of questions; the last one asks.

    Args:
        writer: of the dialogue, new.
        count: lines, at least 2.
        asking: share of the lines that ask.
        untold: share of the questions that ask for what was never told.
    """
    rng = writer.rng
    telling = rng.uniform(0.5, 1.0)  # of the lines that do not ask
    writer.tell()
    while len(writer.lines) < count - 1:
        draw = rng.random()
        if draw < asking:
            writer.ask_any(untold)
        elif draw < asking + (1 - asking) * telling:
            writer.change() if rng.random() < 0.1 else writer.tell()
        else:
            writer.chat()
    writer.ask_any(untold)
    return writer.lines


def told_then_asked(writer: Writer, count: int, facts: int, questions: int, untold: float = 0.0) -> list[Line]:
    """A dialogue of ``count`` lines that tell ``facts`` facts among small talk, and questions on as many of them."""
    plan = [writer.tell] * facts + [writer.chat] * (count - facts)
    writer.rng.shuffle(plan)
    for act in plan:
        act()
    for key in writer.rng.sample([*writer.facts], questions):
        writer.ask(key)
        if writer.rng.random() < untold:
            writer.doubt()
    return writer.lines
