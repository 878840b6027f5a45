"""Which questions of a task are asked: counted once for all methods that read them alike, then read anew by each."""

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
class Count:
    """The questions at a step.

    Attributes:
        total: how many are asked.
        digest: of their targets; what stands in view of them is not in it.
        skipped: how many were left out, by reason.
        noted: how many are asked otherwise than meant, or not at all, by what it is.
    """

    total: int
    digest: str
    skipped: dict[str, int]
    noted: dict[str, int]


class Asked:
    """The first questions under each name of a task.

    Args:
        task: opened; whoever reads its questions reads them through here.
        depths: time steps; None for all of the task.
        most: questions under each name, at every step, at most; 0 for all.

    Attributes:
        counts: the questions by step.

    Raises:
        ConfigError: when there is none at some of the steps, or no such step.
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

    def questions(self, depth: int) -> Iterator[Question]:
        """Those of a step: read at every call, never all held, and not beyond the last one."""
        return islice(self._first(depth, Counter()), self.counts[depth].total)

    def _count(self, depth: int) -> Count:
        total, digest, beyond = 0, hashlib.sha256(), Counter[str]()
        for question in self._first(depth, beyond):
            total += 1
            digest.update(repr(([*question.alone().query], [[*a] for a in question.answers], question.right)).encode())
        return Count(total, digest.hexdigest()[:16], dict(self.task.skipped), {**self.task.noted, **beyond})

    def _first(self, depth: int, beyond: Counter[str]) -> Iterator[Question]:
        """The questions within ``most``; ``beyond`` counts the others."""
        counts: Counter[str] = Counter()
        for question in self.task.questions(depth):
            counts[question.task] += 1
            if not self._most or counts[question.task] <= self._most:
                yield question
            else:
                beyond[f"beyond the first {self._most}, not asked"] += 1
