"""LongMemEval: questions on a user's many sessions with an assistant (Wu et al., ICLR 2025, arXiv 2410.10813).

From one of the publisher's files, such as ``longmemeval_s_cleaned.json``, plain or gzipped: a list of questions, each
with its own history of sessions. What the user says with the reply to it is one turn. The benchmark asks a large model
whether a reply is right; here replies are compared with the answer as texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ccm.chat.turns import Turns
from ccm.core.errors import DataError
from ccm.data.longterm import LongQuestion, LongTask, LongTaskOptions, Turn
from ccm.data.reading import read_items
from ccm.data.tasks import Replies, TaskSettings

ABSTENTION = "abstention"  # questions of all types that the history does not answer
TYPES = (
    "single-session-user", "single-session-assistant", "single-session-preference", "multi-session",
    "temporal-reasoning", "knowledge-update", ABSTENTION,
)  # fmt: skip


def read(path: Path) -> Iterator[LongQuestion]:
    """All questions of a file.

    Raises:
        DataError: when it is absent or malformed.
    """
    for number, (_, item) in enumerate(read_items(path), start=1):
        try:
            yield _asked(item)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{path}: question {number} is none of LongMemEval's ({error!r}).") from None


def _asked(item: Mapping[str, Any]) -> LongQuestion:
    keys = ("haystack_dates", "haystack_session_ids", "haystack_sessions")
    sessions = sorted(zip(*(item[key] for key in keys), strict=True), key=lambda session: session[0])
    turns: list[Turn] = []
    told: set[int] = set()  # numbers of turns that hold the answer
    answering: set[int] = set()  # of all turns of the sessions that do
    for number, (date, name, messages) in enumerate(sessions):
        begin = len(turns)
        for message in messages:
            _add(turns, message, number, date, opens=len(turns) == begin)
            if message.get("has_answer"):
                told.add(len(turns) - 1)
        if name in item["answer_session_ids"]:
            answering.update(range(begin, len(turns)))
    kind = ABSTENTION if item["question_id"].endswith("_abs") else item["question_type"]
    query = f"It is {item['question_date']}. Answer in a few words.\nQuestion: {item['question']}"
    return LongQuestion(turns, told or answering, query, str(item["answer"]), kind)


def _add(turns: list[Turn], message: Mapping[str, Any], session: int, date: str, *, opens: bool) -> None:
    """Add a message: a user's begins a turn, which the assistant's completes; without a user's its turn has no text."""
    if message["role"] == "user":
        turns.append(Turn(session, date, opens, message["content"], ""))
    elif opens or turns[-1].reply:
        turns.append(Turn(session, date, opens, "", message["content"]))
    else:
        turns[-1] = replace(turns[-1], reply=message["content"])


def open_task(settings: TaskSettings, turns: Turns) -> LongTask:
    """The questions of a file.

    Raises:
        ConfigError: when no file is named, or an option is not allowed.
    """
    path, options = settings.require_path("one of LongMemEval's files"), settings.read_options(LongTaskOptions)
    return LongTask(partial(read, path), TYPES, turns, options, Replies("answer_f1", 64))
