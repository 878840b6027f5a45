"""Figures by hand."""

from __future__ import annotations

import math

import pytest

from ccm.data.tasks import Averaging
from ccm.evaluation.metrics import (
    Likelihood,
    accuracy,
    distances,
    loss,
    macro_accuracy,
    macro_f1,
    perplexity,
    recovered,
    standard_error,
)


def test_perplexity_is_by_token_and_loss_by_answer() -> None:
    answers = [Likelihood(-6.0, 3), Likelihood(-1.0, 1)]
    assert perplexity(answers) == pytest.approx(math.exp(7 / 4))
    assert loss(answers) == pytest.approx((2 + 1) / 2)


def test_the_three_accuracies_compare_answers_by_other_things() -> None:
    short, long = Likelihood(-2.0, 1, own=-1.0), Likelihood(-3.0, 3, own=-3.5)
    assert accuracy([([short, long], 0)], "acc") == 1.0
    assert accuracy([([short, long], 1)], "acc_norm") == 1.0
    assert accuracy([([short, long], 1)], "acc_base") == 1.0


def test_of_equal_answers_the_first_is_taken() -> None:
    same = [Likelihood(-1.0, 1), Likelihood(-1.0, 1)]
    assert (accuracy([(same, 0)], "acc"), accuracy([(same, 1)], "acc")) == (1.0, 0.0)


def test_the_mean_over_tasks_has_exceptions_and_tasks_left_out() -> None:
    figures = {"acc": 0.1, "acc_norm": 0.2, "acc_base": 0.9}
    by_task = {"poem_sentiment": figures, "glue-rte": figures, "glue-mrpc": {**figures, "acc_norm": 1.0}}
    assert macro_accuracy(by_task) == pytest.approx(1.4 / 3)
    changed = macro_accuracy(by_task, averaging=Averaging({"poem": "acc_base"}, ("glue-mrpc",)))
    assert changed == pytest.approx((0.9 + 0.2) / 2)


def test_the_f1_score_is_the_mean_over_all_classes() -> None:
    chosen, right = [0, 0, 0, 1, 3], [0, 0, 1, 1, 0]
    # class 0: 2 hits, 3 chosen, 3 right; class 1: 1 hit, 1 chosen, 2 right; class 3: never right; class 2: never at all
    assert macro_f1(chosen, right, 4) == pytest.approx((2 / 3 + 2 / 3 + 0 + 0) / 4)  # as LaMP has it
    assert macro_f1([1, 0], [1, 0], 2) == 1.0


def test_numbers_are_wrong_by_their_distance() -> None:
    assert distances([1, 5, 3], [1, 2, 4]) == pytest.approx((4 / 3, math.sqrt(10 / 3)))


def test_the_recovered_gain_of_perplexities_is_of_their_logarithms() -> None:
    assert recovered(0.6, 0.5, 0.7) == pytest.approx(0.5)
    assert recovered(math.sqrt(50), 10, 5, logarithmic=True) == pytest.approx(0.5)
    assert recovered(10, 10, 5, logarithmic=True) == 0.0


def test_the_standard_error_of_equal_weights_is_the_usual_one() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    spread = math.sqrt(sum((v - 3) ** 2 for v in values) / 3)
    assert standard_error(values, [1.0] * 4) == pytest.approx(spread / 2)
    assert standard_error(values, [7.0] * 4) == pytest.approx(spread / 2)
    assert standard_error([1.0], [1.0]) == math.inf
