"""What a task makes of scored questions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.data.tasks import Averaging, Replies, Task
from ccm.evaluation.figures import by_part, counting, figures, main_figure, values
from ccm.evaluation.metrics import Likelihood
from ccm.evaluation.scoring import ScoredQuestion
from ccm.evaluation.texts import FIGURES, JudgedReply


class Two(Task):
    """Parts "open" and "given", of which the second does not count in figures of likelihoods."""

    averaging = Averaging(left_out=("given",))

    def questions(self, depth: int) -> Iterator[Question]:
        yield from ()


def scored(part: str, total: float, value: float | None = None) -> ScoredQuestion:
    reply = None if value is None else JudgedReply(part, "", [], "", dict.fromkeys(FIGURES, value))
    return ScoredQuestion(part, 0, (Likelihood(total, 2),), 1, 1, 1, 1, reply)


def test_a_part_that_does_not_count_is_in_no_perplexity_but_its_own() -> None:
    rows = [scored("open", -2.0), scored("given", -8.0), scored("open", -4.0)]
    assert figures(Two(), rows) == pytest.approx({"perplexity": math.exp(6 / 4), "loss": 1.5})
    assert by_part(Two(), rows)["given"]["loss"] == 4.0
    assert values(Two(), rows, "all") == [(-1.0, 2, "all"), (-2.0, 2, "all")]  # a token, weighted by tokens
    assert counting(Two(), rows) == [rows[0], rows[2]]


def test_replies_are_judged_of_all_parts() -> None:
    task = Two()
    task.replies = Replies("answer_f1", 4)
    rows = [scored("open", -2.0, 0.5), scored("given", -8.0, 1.0)]
    assert main_figure(task) == "answer_f1"
    assert figures(task, rows)["answer_f1"] == 0.75
    assert figures(task, rows)["loss"] == 1.0
    assert figures(task, rows[1:]) == dict.fromkeys(FIGURES, 1.0)
    assert values(task, rows, "all") == [(0.5, 1, "all"), (1.0, 1, "all")]


def test_a_main_figure_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="None of the questions counts in the perplexity: given"):
        figures(Two(), [scored("given", -1.0)])
