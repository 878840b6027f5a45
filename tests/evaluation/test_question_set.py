"""The questions that are asked: counted once, read no further than needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.data.tasks import Task
from ccm.evaluation.question_set import QuestionSet


class Words(Task):
    """At each step a question of part "a", then two of "b", then one more of "a"; at step 3 none."""

    depths = (1, 2)

    def __init__(self) -> None:
        self.read: list[str] = []

    def questions(self, depth: int) -> Iterator[Question]:
        self.skipped, self.noted = Counter({"empty": depth}), Counter({"short": 1})
        for number, part in enumerate("abba" if depth < 3 else ""):
            self.read.append(part)
            yield Question([[7]] * depth, [1, number], [[2]], task=part)


def test_questions_are_counted_once_and_read_up_to_the_last_that_is_asked() -> None:
    task = Words()
    asked = QuestionSet(task, None, 1)
    assert task.read == [*"abba"] * 2
    task.read.clear()
    for _ in range(2):
        assert [question.task for question in asked.questions(2)] == [*"ab"]
    assert task.read == [*"abab"]
    count = asked.counts[2]
    assert (count.total, count.skipped) == (2, {"empty": 2})
    assert count.noted == {"short": 1, "beyond the first 1, not asked": 2}


def test_the_digest_is_of_the_targets_alone() -> None:
    whole, first = QuestionSet(Words(), (2, 1, 2), 0), QuestionSet(Words(), None, 1)
    assert [*whole.counts] == [2, 1]
    assert whole.counts[1].total == 4
    assert whole.counts[1].digest == whole.counts[2].digest != first.counts[1].digest


def test_the_digest_tells_which_answer_is_right() -> None:
    class Choice(Words):
        def __init__(self, right: int) -> None:
            super().__init__()
            self.right = right

        def questions(self, depth: int) -> Iterator[Question]:
            self.skipped, self.noted = Counter(), Counter()
            yield Question([[7]], [1], [[2], [3]], right=self.right)

    assert QuestionSet(Choice(0), (1,), 0).counts[1].digest != QuestionSet(Choice(1), (1,), 0).counts[1].digest


def test_steps_without_questions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"at step 3 \(left out: {'empty': 3}\). Measure the others with depths=1,2."):
        QuestionSet(Words(), (1, 3, 2), 0)
    with pytest.raises(ConfigError, match=r"'empty': 3}\)\.$"):
        QuestionSet(Words(), (3,), 0)
