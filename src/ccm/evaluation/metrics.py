"""Metrics of scored questions. Likelihoods are in nats; their tokens do not include the closing EOS."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ccm.core.errors import ConfigError
from ccm.data.tasks import Averaging, Choice

CHOICES: tuple[Choice, ...] = ("acc", "acc_norm", "acc_base")


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of an answer.

    Attributes:
        total: the sum over its tokens.
        tokens: how many there are.
        own: the sum without context and query; None where it was not asked for.
        likeliest: whether each of them is the likeliest of all tokens.
    """

    total: float
    tokens: int
    own: float | None = None
    likeliest: bool = False

    def by(self, choice: Choice) -> float:
        """The number that answers are compared by: the sum, the mean over tokens, or the sum less the answer's own."""
        if choice == "acc_norm":
            return self.total / self.tokens if self.tokens else -math.inf
        if choice == "acc_base":
            return self.total - (self.own or 0.0)
        return self.total


def perplexity(answers: Sequence[Likelihood]) -> float:
    """exp of the mean negative log-likelihood per token, over all tokens together."""
    nats = -sum(a.total for a in answers) / sum(a.tokens for a in answers)
    try:
        return math.exp(nats)
    except OverflowError:  # of a model whose numbers are nonsense
        return math.inf


def loss(answers: Sequence[Likelihood]) -> float:
    """The mean over answers of each one's mean negative log-likelihood per token."""
    return -sum(a.total / a.tokens for a in answers) / len(answers)


def chosen(answers: Sequence[Likelihood], choice: Choice) -> int:
    """Number of the likeliest answer; of equal ones the first."""
    values = [answer.by(choice) for answer in answers]
    return values.index(max(values))


def accuracy(questions: Sequence[tuple[Sequence[Likelihood], int]], choice: Choice) -> float:
    """Share of the questions whose likeliest answer is right; a question is its answers and the right one's number."""
    return sum(chosen(answers, choice) == right for answers, right in questions) / len(questions)


def macro_f1(chosen: Sequence[int], right: Sequence[int], classes: int) -> float:
    """The mean over classes of their F1 scores, from the class numbers of each question. As in LaMP, the F1 of a class
    that is never right and never chosen is 0."""
    scores = []
    for number in range(classes):
        hits = sum(c == r == number for c, r in zip(chosen, right, strict=True))
        scores.append(2 * hits / max(chosen.count(number) + right.count(number), 1))
    return sum(scores) / classes


def distances(chosen: Sequence[float], right: Sequence[float]) -> tuple[float, float]:
    """Mean absolute error, and root mean squared error."""
    errors = [c - r for c, r in zip(chosen, right, strict=True)]
    return sum(map(abs, errors)) / len(errors), math.sqrt(sum(error**2 for error in errors) / len(errors))


def macro_accuracy(
    by_task: Mapping[str, Mapping[str, float]], usual: Choice = "acc_norm", averaging: Averaging | None = None
) -> float:
    """The mean over tasks of one of their accuracies.

    Args:
        by_task: "acc", "acc_norm" and "acc_base" of each task.
        usual: the accuracy that counts.
        averaging: the exceptions for some tasks.

    Raises:
        ConfigError: when none of the tasks counts.
    """
    averaging = averaging or Averaging()
    taken = [figures[c] for task, figures in by_task.items() if (c := averaging.choice(task, usual))]
    if not taken:
        raise ConfigError(
            f"None of the tasks {', '.join(by_task)} counts in this mean; ask for others, or another mean."
        )
    return sum(taken) / len(taken)


def standard_error(differences: Sequence[float], weights: Sequence[float]) -> float:
    """Standard error of a weighted mean of independent differences, by the ratio estimator."""
    total, count = sum(weights), len(differences)
    if count < 2 or not total:
        return math.inf
    mean = sum(d * w for d, w in zip(differences, weights, strict=True)) / total
    spread = sum((w * (d - mean)) ** 2 for d, w in zip(differences, weights, strict=True))
    return math.sqrt(spread * count / (count - 1)) / total


def recovered(score: float, none: float, full: float, *, logarithmic: bool = False) -> float:
    """Recovered gain: (score - none) / (full - none), in logarithms for perplexity."""
    if logarithmic:
        score, none, full = map(math.log, (score, none, full))
    return (score - none) / (full - none)
