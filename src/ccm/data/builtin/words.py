"""Words of the built-in dialogues, read from ``words.yaml``: values, small talk, and the wordings of kinds of facts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

SmallTalk = tuple[str, tuple[str, ...]]
"""A user's line and the replies to choose from."""


@dataclass(frozen=True)
class Kind:
    """A kind of fact and its wordings.

    Fields of the wordings: {v} the value, {a} the value with a/an, {k} the animal, {ak} the animal
    with a/an; in `changes` also {old} and {aold}, the value that no longer holds.
    """

    name: str
    values: tuple[str, ...]  # every value of the kind, held-out ones included
    draws: tuple[str, ...]  # the values that dialogues use
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answer: str  # the reply to every question on a told fact
    replies: tuple[str, ...]  # replies to a statement
    changes: tuple[str, ...] = ()  # empty: the fact never changes
    change_replies: tuple[str, ...] = ()


_TABLE: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
_LISTS = {name: tuple(sorted(text.split(", "))) for name, text in _TABLE["lists"].items()}
NAMES = _LISTS["names"] = tuple(sorted(_LISTS["female_names"] + _LISTS["male_names"]))
CITIES = _LISTS["cities"]


def _small_talk(name: str) -> tuple[SmallTalk, ...]:
    return tuple((line, tuple(replies)) for line, *replies in _TABLE[name])


GREETINGS, GOODBYES, SMALL_TALK = map(_small_talk, ("greetings", "goodbyes", "small_talk"))
STATEMENT_LEADS, STATEMENT_TAILS, QUESTION_LEADS, DOUBLE_LEADS = (
    tuple(_TABLE[name]) for name in ("statement_leads", "statement_tails", "question_leads", "double_leads")
)


def _kind(name: str, table: dict[str, Any]) -> Kind:
    """A kind of the file; a relative has the wordings that all relatives share, and then its own statements."""
    if called := table.get("relative"):
        shared = _TABLE["relative"]
        table = {**shared, **table, "statements": shared["statements"] + table["statements"]}
    wordings = {
        key: tuple(text.replace("{r}", called or "") for text in table.get(key, ()))
        for key in ("statements", "questions", "replies", "changes", "change_replies")
    }
    values, draws = _LISTS[table["values"]], _LISTS[table.get("draws", table["values"])]
    return Kind(name, values, draws, answer=table["answer"].replace("{r}", called or ""), **wordings)


KINDS: dict[str, Kind] = {name: _kind(name, table) for name, table in _TABLE["kinds"].items()}
