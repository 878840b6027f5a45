"""What an evaluation asks: a context of steps, a query, and the answers that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ccm.core.errors import InputError
from ccm.engine.layout import IGNORE, Sample, Step

Judged = Literal["words", "stems", "parts", "phrase"]  # how a generated reply is compared (``ccm.evaluation.texts``)


@dataclass(frozen=True)
class Question:
    """One question, as token ids.

    Attributes:
        steps: of every context step, separators included.
        query: up to where an answer begins, separators included.
        bare: the query as it reads where no context stands before it; None where that makes no difference.
        answers: the possible answers, or the only one where there is no choice; without the token that ends them.
        right: number of the right answer.
        task: what the question is counted under.
        before: what stands before an answer where the likelihood of the answer alone is taken; None where it is not.
        references: the accepted answers as text, for generated replies; where there are none, the right answer.
        judged: how a generated reply is compared with the references.
        head: what stands before all steps, and always stays as raw text.
        source: the conversation or book that the steps are a part of, where questions share some.

    Raises:
        InputError: where a text is empty, or no answer is right.
    """

    steps: Sequence[Sequence[int]]
    query: Sequence[int]
    answers: Sequence[Sequence[int]]
    right: int = 0
    task: str = ""
    before: Sequence[int] | None = None
    bare: Sequence[int] | None = None
    references: Sequence[str] = ()
    judged: Judged = "words"
    head: Sequence[int] = ()
    source: str = ""

    def __post_init__(self) -> None:
        if not (self.query and all(self.answers) and all(self.steps) and [] not in (self.before, self.bare)):
            raise InputError(f"A question of {self.task or 'the task'} has an empty step, query or answer.")
        if not 0 <= self.right < len(self.answers):
            raise InputError(
                f"The right answer of a question of {self.task or 'the task'} is number {self.right}, counted from 0, "
                f"of {len(self.answers)}."
            )

    @staticmethod
    def of(sample: Sample, eos: int, task: str = "", *, alone: Sample | None = None) -> Question:
        """The question of a sample whose query ends in its targets: they are the answer, but for a closing EOS.

        ``alone`` is the sample of the same query and answer without context.
        """
        targets = sample.query.targets
        begin = next(i for i, target in enumerate(targets) if target != IGNORE)
        answer = [target for target in targets[begin:] if target != IGNORE]
        if answer[-1] == eos:
            answer.pop()
        bare = alone.query.ids[: len(alone.query.ids) - len(answer)] if alone else None
        steps, query = [step.ids for step in sample.steps], sample.query.ids[: begin + 1]
        return Question(steps, query, [answer], task=task, bare=bare, head=sample.head)

    def sample(self, eos: int) -> Sample:
        """To train on: the right answer, and the token that ends it, are the targets."""
        answer = self.answers[self.right]
        targets = [*[IGNORE] * (len(self.query) - 1), *answer, eos]
        return Sample([Step(step) for step in self.steps], Step([*self.query, *answer], targets), self.head)

    def alone(self) -> Question:
        """The same question without its context."""
        return replace(self, steps=[], query=self.query if self.bare is None else self.bare)
