"""The questions of a task that are asked: counted once for all methods that read them alike, then read by each."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.data.tasks import Task


@dataclass(frozen=True)
class QuestionCount:
    """How many questions are asked at a depth.

    Attributes:
        total: how many are asked.
        digest: of their targets; the context is not in it.
        skipped: how many were left out, by reason.
        noted: how many are asked otherwise than meant, or not at all, by what it is.
    """

    total: int
    digest: str
    skipped: dict[str, int]
    noted: dict[str, int]


class QuestionSet:
    """The first questions under each name within a task.

    Args:
        task: an open task. Only the question set reads its questions.
        depths: time steps; None takes those of the task.
        most: the most questions under each name, at every depth; 0 takes all.

    Attributes:
        counts: the number of questions at each depth.

    Raises:
        ConfigError: when a depth has no questions, or does not exist.
    """

    def __init__(self, task: Task, depths: Sequence[int] | None, most: int) -> None:
        self.task, self._most = task, most
        self.counts = {depth: self._count(depth) for depth in dict.fromkeys(depths or task.depths)}
        if empty := [depth for depth, count in self.counts.items() if not count.total]:
            others = ",".join(str(depth) for depth in self.counts if depth not in empty)
            raise ConfigError(
                f"No question of the task is left at step {', '.join(map(str, empty))} "
                f"(left out: {self.counts[empty[-1]].skipped})."
                + (f" Measure the others with depths={others}." if others else "")
            )

    @property
    def generate(self) -> int:
        """The most new tokens of a reply; 0 where none is generated."""
        return self.task.replies.most if self.task.replies else 0

    @property
    def total(self) -> int:
        """How many questions are asked at all depths together."""
        return sum(count.total for count in self.counts.values())

    def questions(self, depth: int) -> Iterator[Question]:
        """The questions at a depth. Each call reads them again, one by one, and no further than the last one."""
        return islice(self._first(depth, Counter()), self.counts[depth].total)

    def _count(self, depth: int) -> QuestionCount:
        total, digest, beyond = 0, hashlib.sha256(), Counter[str]()
        for question in self._first(depth, beyond):
            total += 1
            digest.update(repr(([*question.alone().query], [[*a] for a in question.answers], question.right)).encode())
        noted = {**self.task.noted, **beyond}
        return QuestionCount(total, digest.hexdigest()[:16], dict(self.task.skipped), noted)

    def _first(self, depth: int, beyond: Counter[str]) -> Iterator[Question]:
        """The questions within ``most``; ``beyond`` counts the others."""
        counts: Counter[str] = Counter()
        for question in self.task.questions(depth):
            counts[question.task] += 1
            if not self._most or counts[question.task] <= self._most:
                yield question
            else:
                beyond[f"beyond the first {self._most}, not asked"] += 1
