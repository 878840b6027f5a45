"""Three kinds of examples that data sets share, chats, tasks and running text, and how each becomes samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from ccm.chat.turns import Turns
from ccm.engine.layout import IGNORE, Sample, Step


@dataclass(frozen=True)
class Chat:
    """Turns of a user and an assistant. A sample is its beginning; its replies are targets, the last is the query's.

    Attributes:
        turns: what the user says, and the reply.
        system: the message that stands before all turns.
        tools: definitions of tools, which stand there as well, as a list in JSON; empty where there are none.
        silent: numbers of turns, counted from 0, whose replies are read but not learned; never all after the first.
    """

    turns: tuple[tuple[str, str], ...]
    system: str = ""
    silent: frozenset[int] = frozenset()
    tools: str = ""

    @property
    def length(self) -> int:
        return len(self.turns) - 1

    @property
    def replies(self) -> tuple[str, ...]:
        """What the assistant says."""
        return tuple(reply for _, reply in self.turns)

    def sample(self, turns: Turns, steps: int) -> Sample:
        turns = self.under(turns)
        query = self._asked(steps)
        read = [turns.exchange(user, reply, first=i == 0) for i, (user, reply) in enumerate(self.turns[: query + 1])]
        read = [Step(step.ids) if i in self.silent else step for i, step in enumerate(read)]
        return Sample(read[:-1], read[-1], turns.head)

    def under(self, turns: Turns) -> Turns:
        """The turns of its format, after its system message and tools."""
        return turns.under(self.system, json.loads(self.tools or "[]")) if self.system or self.tools else turns

    def reads_plainly(self, turns: Turns, most: int) -> bool:
        """Whether every turn surely reads as it is, in at most ``most`` tokens: no tokenizer makes more than bytes."""
        own = self.under(turns)
        longest = max(len((user + reply).encode("utf-8", "replace")) for user, reply in self.turns)
        return longest + own.around <= most and own.reads_plainly(self.turns)

    @property
    def size(self) -> int:
        return sum(len(text) for turn in self.turns for text in turn)

    def _asked(self, steps: int) -> int:
        """The turn whose reply is asked for: that of the number, or the nearest whose reply is a target."""
        if steps not in self.silent:
            return steps
        heard = [i for i in range(min(steps, 1), len(self.turns)) if i not in self.silent]
        return max((i for i in heard if i < steps), default=heard[0])

    def parts(self, most: int) -> Iterator[Chat]:
        """As few stretches of at most ``most`` + 1 turns as there can be, of like lengths: each has something to
        remember; in order, each up to its last target, none without a target.

        A turn alone that is to be asked for takes the one before along.
        """
        count, parts = len(self.turns), -(-len(self.turns) // (most + 1))
        for part in (range(i * count // parts, max((i + 1) * count // parts, 2)) for i in range(parts)):
            heard = [i for i in part if i and i not in self.silent]
            if heard:
                yield self._cut(min(part.start, heard[-1] - 1), heard[-1] + 1)

    def latest(self, steps: int) -> Chat:
        """The last turn, and as many before it."""
        return self._cut(max(len(self.turns) - steps - 1, 0), len(self.turns))

    def _cut(self, begin: int, end: int) -> Chat:
        silent = frozenset(i - begin for i in self.silent if begin <= i < end)
        return Chat(self.turns[begin:end], self.system, silent, self.tools)


@dataclass(frozen=True)
class TaskExample:
    """Context steps, a query and its answer. A sample has the latest of the steps; the answer alone is a target.

    Where there is a choice, the answer is one of ``choices``; training makes nothing of the others.
    """

    steps: tuple[str, ...]
    query: str
    answer: str
    choices: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        return len(self.steps)

    @property
    def replies(self) -> tuple[str, ...]:
        """What the assistant may say: the choices, or the answer alone."""
        return self.choices or (self.answer,)

    @property
    def size(self) -> int:
        return sum(map(len, (*self.steps, self.query, self.answer)))

    def sample(self, turns: Turns, steps: int) -> Sample:
        kept = self.steps[-steps:] if steps else ()
        read = [Step(turns.statement(text, first=i == 0).ids) for i, text in enumerate(kept)]
        return Sample(read, turns.exchange(self.query, self.answer, first=not kept), turns.head)

    def parts(self, most: int) -> Iterator[TaskExample]:
        """The task with its latest ``most`` steps."""
        yield self.latest(most)

    def latest(self, steps: int) -> TaskExample:
        """The task with as many of its latest steps."""
        return replace(self, steps=self.steps[-steps:] if steps else ())


@dataclass(frozen=True)
class Text:
    """Chunks of running text, as token ids. A sample is its beginning; of each chunk all tokens but one are targets.

    The last ``query`` chunks of a sample are read as one, on top of the memory of those before.
    """

    chunks: tuple[tuple[int, ...], ...]
    query: int = 1

    @staticmethod
    def of(ids: Sequence[int], size: int, query: int = 1) -> Text | None:
        """Token ids in chunks of ``size``, the last one shorter; None where none comes before the query."""
        chunks = tuple(tuple(ids[i : i + size]) for i in range(0, len(ids) - 1, size))  # one at the end teaches nothing
        return Text(chunks, query) if len(chunks) > query else None

    @property
    def length(self) -> int:
        return len(self.chunks) - self.query

    @property
    def size(self) -> int:
        return sum(map(len, self.chunks))

    def sample(self, turns: Turns, steps: int) -> Sample:
        bos = turns.tokenizer.bos_token_id
        first = self.chunks[0] if bos is None else (bos, *self.chunks[0])
        chunks = (first, *self.chunks[1:])
        asked = (*chain.from_iterable(chunks[steps : steps + self.query]),)
        read = [Step(chunk, [*chunk[1:], IGNORE]) for chunk in (*chunks[:steps], asked)]
        return Sample(read[:-1], read[-1])

    def parts(self, most: int) -> Iterator[Text]:
        """Stretches of at most ``most`` chunks and a query, in order; a last one too short takes those before along."""
        count = len(self.chunks)
        for begin in range(0, count, most + self.query):
            begin = min(begin, count - self.query - 1)
            yield Text(self.chunks[begin : begin + most + self.query], self.query)

    def latest(self, steps: int) -> Text:
        """The query, and as many chunks before it."""
        return Text(self.chunks[-steps - self.query :], self.query)


Example = Chat | TaskExample | Text
