"""The control: each query is read with the memory of another conversation.

Any memory of the same domain helps, because it tells what kind of text follows. The share of a gain that the other
memory loses is content.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from ccm.data.questions import Question

POOL = 1024  # questions among which another conversation is sought


class ControlQuestions:
    """Questions, each with the context of another conversation of as many steps; a seed fixes which.

    Args:
        questions: as they are asked, in their order, with their whole contexts.
        seed: of the choice.

    Attributes:
        found: whether there was another conversation, for each question so far.
    """

    def __init__(self, questions: Iterable[Question], seed: int = 0) -> None:
        self._questions, self._seed = questions, seed
        self.found: list[bool] = []

    def __iter__(self) -> Iterator[Question]:
        """The questions for which there is another conversation, with their right answer alone."""
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
        """A candidate of another source that has no step in common with the question."""
        own = {*map(tuple, question.steps)}

        def differs(one: Question) -> bool:
            apart = not one.source or one.source != question.source
            return bool(one.steps) and apart and own.isdisjoint(map(tuple, one.steps))

        chance = random.Random(f"{self._seed} other than {len(self.found)}")
        return next(filter(differs, chance.sample(candidates, len(candidates))), None)
