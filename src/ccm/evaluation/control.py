"""The control: what a memory is worth that another conversation wrote.

A memory of the same domain helps by itself, whatever it holds: it tells what kind of text follows. The share of a gain
that is content is what is lost with the memory of another conversation.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from ccm.data.questions import Question

POOL = 1024  # questions among which another conversation is looked for


class ControlQuestions:
    """Questions with the context of another conversation of as many steps, always the same one for a seed.

    Args:
        questions: as they are asked, in their order.
        seed: of the choice.

    Attributes:
        found: of every question so far, whether there was another conversation for it.
    """

    def __init__(self, questions: Iterable[Question], seed: int = 0) -> None:
        self._questions, self._seed = questions, seed
        self.found: list[bool] = []

    def __iter__(self) -> Iterator[Question]:
        """Those for which there is one; their right answer alone is asked for."""
        stream = iter(self._questions)
        while pool := [*islice(stream, POOL)]:
            alike: dict[int, list[int]] = defaultdict(list)
            for i, question in enumerate(pool):
                alike[len(question.steps)].append(i)
            for question in pool:
                other = self._other(question, [pool[i] for i in alike[len(question.steps)]])
                self.found.append(other is not None)
                if other is not None:
                    right = [question.answers[question.right]]
                    yield replace(question, steps=other.steps, answers=right, right=0, references=())

    def _other(self, question: Question, candidates: list[Question]) -> Question | None:
        """One of them that has no step in common with the question."""
        own = {*map(tuple, question.steps)}
        chance = random.Random(f"{self._seed} other than {len(self.found)}")
        shuffled = chance.sample(candidates, len(candidates))
        return next((one for one in shuffled if one.steps and own.isdisjoint(map(tuple, one.steps))), None)
