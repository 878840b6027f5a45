"""Questions on long conversations: what LoCoMo and LongMemEval share.

    [date] turn | turn | ... | [date] turn | turn | ... | query  answer      a turn is a step, the latest are in view

The date of a session is said at its first turn, and at the first turn in view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError, unknown_name
from ccm.data.questions import Judged, Question
from ccm.data.settings import TaskOptions
from ccm.data.tasks import Averaging, Replies, Task
from ccm.engine.layout import Sample, Step, length


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        session: its number.
        date: of the session.
        opens: whether it is the session's first turn.
        text: what is said.
        reply: the reply; None where two people talk, so that the reply is a turn of its own.
    """

    session: int
    date: str
    opens: bool
    text: str
    reply: str | None = None

    def ids(self, turns: Turns, *, first: bool) -> Sequence[int]:
        """Its token ids; where it is the first in view, the date is said as well."""
        text = f"[{self.date}]\n{self.text}" if first or self.opens or not self.text.strip() else self.text
        if self.reply is None:
            return turns.statement(text, first=first).ids
        return turns.exchange(text, self.reply, first=first).ids


@dataclass(frozen=True)
class LongQuestion:
    """A question on a conversation.

    Attributes:
        turns: the whole conversation.
        evidence: numbers of the turns that hold the answer, counted from 0.
        query: the question, with its instruction.
        answer: whose likelihood is taken.
        category: what it is counted under.
        references, judged, source: see :class:`Question`.
    """

    turns: Sequence[Turn]
    evidence: Collection[int]
    query: str
    answer: str
    category: str
    references: Sequence[str] = ()
    judged: Judged = "words"
    source: str = ""

    def end(self, until: Literal["evidence", "end"]) -> int:
        """How many turns of the conversation come before the question: up to the end of the session with the last
        evidence, or all of them."""
        if until == "end" or not self.evidence:
            return len(self.turns)
        last = self.turns[max(self.evidence)].session
        return 1 + max(i for i, turn in enumerate(self.turns) if turn.session == last)


@dataclass(frozen=True)
class LongTaskOptions(TaskOptions):
    """How questions on long conversations are evaluated.

    Attributes:
        categories: those that are asked; None for all.
        max_length: most tokens of context, query, and answer or reply; the oldest turns are left out where they have no
            room.
        until: "evidence" asks at the end of the session that holds the last evidence, so that little context may
            suffice; "end" at the end of the conversation.
    """

    categories: Sequence[str] | None = None
    max_length: int = bounded(2048, 1)
    until: Literal["evidence", "end"] = "evidence"


@dataclass
class LongTask(Task):
    """F1 of replies to questions on long conversations, and the perplexity of the right answers.

    Attributes:
        read: gives all questions, anew at every call.
        names: of the categories that there are.
        turns: how conversations become tokens.
        options: how they are evaluated.
        replies: how replies are judged, and how much room they need.
        averaging: which categories do not count in the perplexity.
    """

    read: Callable[[], Iterator[LongQuestion]]
    names: Collection[str]
    turns: Turns
    options: LongTaskOptions
    replies: Replies
    averaging: Averaging = field(default_factory=Averaging)
    depths = (4, 16, 64, 256)

    def __post_init__(self) -> None:
        for category in self.options.categories or ():
            if category not in self.names:
                raise unknown_name("category", category, self.names)
        self._ids = lru_cache(maxsize=1 << 14)(lambda turn, first: turn.ids(self.turns, first=first))

    def questions(self, depth: int) -> Iterator[Question]:
        if depth < 0:
            raise ConfigError(f"There is no time step {depth}; it is a number of turns, from 0.")
        self.skipped, self.noted = Counter(), Counter()
        for asked in self.read():
            if self.options.categories is None or asked.category in self.options.categories:
                yield from self._question(asked, depth)

    def _question(self, asked: LongQuestion, depth: int) -> Iterator[Question]:
        if not asked.answer.strip():
            self.skipped["the answer is empty"] += 1
            return
        end = asked.end(self.options.until)
        latest = asked.turns[max(end - depth, 0) : end]
        most = self.options.max_length - max(self.replies.most - len(self.turns.encode_reply(asked.answer)), 0)
        room = most - len(self.turns.head) - len(self.turns.exchange(asked.query, asked.answer, first=False).ids)
        kept = latest[len(latest) - self._fitting(latest, room) :]
        steps = [Step(self._ids(turn, i == 0)) for i, turn in enumerate(kept)]
        sample = Sample(steps, self.turns.exchange(asked.query, asked.answer, first=not steps), self.turns.head)
        if length(sample) > most:
            self.skipped["the query alone has no room"] += 1
            return
        self._note(asked, depth, latest, len(kept), end)
        alone = Sample([], self.turns.exchange(asked.query, asked.answer, first=True), self.turns.head)
        question = Question.of(sample, self.turns.eos_id, asked.category, alone=alone)
        references = asked.references or (asked.answer,)
        yield replace(question, references=references, judged=asked.judged, source=asked.source)

    def _fitting(self, latest: Sequence[Turn], room: int) -> int:
        """How many of the last turns have room."""
        taken = 0
        for count, turn in enumerate(reversed(latest)):
            if taken + len(self._ids(turn, True)) > room:
                return count
            taken += len(self._ids(turn, False))
        return len(latest)

    def _note(self, asked: LongQuestion, depth: int, latest: Sequence[Turn], kept: int, end: int) -> None:
        if kept < depth:
            why = "there are no more" if kept == len(latest) else "the others have no room"
            self.noted[f"fewer than {depth} turns, {why}"] += 1
        if asked.evidence:
            seen = sum(end - kept <= i < end for i in asked.evidence)
            share = "none" if not seen else "all" if seen == len(asked.evidence) else "some"
            self.noted[f"{share} of the evidence in view"] += 1
        else:
            self.noted["no evidence is named"] += 1
        if not self.averaging.counts(asked.category):
            self.noted[f"{asked.category}, not in the perplexity"] += 1
