"""The figures of a task, from its scored questions, and the value of each question behind them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from ccm.core.errors import ConfigError
from ccm.data.tasks import Task
from ccm.evaluation.metrics import CHOICES, accuracy, chosen, distances, loss, macro_accuracy, macro_f1, perplexity
from ccm.evaluation.scoring import ScoredQuestion
from ccm.evaluation.texts import means


class Value(NamedTuple):
    """A question's part in the main figure: its value, its weight, and the part of the task that it belongs to."""

    value: float
    weight: int
    part: str


def main_figure(task: Task) -> str:
    """Name of the figure that a task is reported by."""
    return task.replies.figure if task.replies and task.replies.most else task.measures


def figures(task: Task, scored: Sequence[ScoredQuestion]) -> dict[str, float]:
    """The figures of a task. Those of likelihoods leave out the parts that do not count; those of replies do not.

    Raises:
        ConfigError: when none of the questions counts in the main figure.
    """
    if task.measures == "perplexity":
        found = _figures(task, counting(task, scored)) | _replies(scored)
    else:
        averagings = {choice: task.averaging if choice == task.measures else None for choice in CHOICES}
        parts = by_part(task, scored)
        found = {choice: macro_accuracy(parts, choice, averaging) for choice, averaging in averagings.items()}
        found |= _by_class(task, scored)
    if (main := main_figure(task)) not in found:
        raise ConfigError(f"None of the questions counts in the {main}: {', '.join({one.task for one in scored})}.")
    return found


def by_part(task: Task, scored: Sequence[ScoredQuestion]) -> dict[str, dict[str, float]]:
    """The figures of each part of a task, also of those that do not count."""
    parts: dict[str, list[ScoredQuestion]] = defaultdict(list)
    for one in scored:
        parts[one.task].append(one)
    return {name: _figures(task, part) | _replies(part) for name, part in parts.items()}


def counting(task: Task, scored: Sequence[ScoredQuestion]) -> list[ScoredQuestion]:
    """The questions that count in figures of likelihoods."""
    return [one for one in scored if task.averaging.counts(one.task)]


def values(task: Task, scored: Sequence[ScoredQuestion], name: str) -> list[Value]:
    """The values behind the main figure, question by question; their part is ``name`` where there are no parts."""
    if (main := main_figure(task)) != task.measures:
        return [Value(one.reply.figures[main], 1, name) for one in scored if one.reply]
    if task.measures == "perplexity":
        rights = [one.answers[one.right] for one in counting(task, scored)]
        return [Value(right.by("acc_norm"), right.tokens, name) for right in rights]
    choices = [(one, task.averaging.choice(one.task, task.measures)) for one in scored]
    return [Value(chosen(one.answers, c) == one.right, 1, one.task) for one, c in choices if c is not None]


def _figures(task: Task, scored: Sequence[ScoredQuestion]) -> dict[str, float]:
    """Figures of likelihoods, of questions that are counted together; empty without questions."""
    if not scored:
        return {}
    if task.measures == "perplexity":
        rights = [one.answers[one.right] for one in scored]
        return {"perplexity": perplexity(rights), "loss": loss(rights)}
    return {choice: accuracy([(one.answers, one.right) for one in scored], choice) for choice in CHOICES}


def _replies(scored: Sequence[ScoredQuestion]) -> dict[str, float]:
    return means([one.reply for one in scored if one.reply])


def _by_class(task: Task, scored: Sequence[ScoredQuestion]) -> dict[str, float]:
    """Figures of answers that are the same classes for all questions: F1, and distances of classes that are numbers."""
    if not task.classes or task.measures == "perplexity":
        return {}
    taken, right = [chosen(one.answers, task.measures) for one in scored], [one.right for one in scored]
    found = {"f1": macro_f1(taken, right, len(task.classes))}
    if all(name.isdecimal() for name in task.classes):
        numbers = [float(name) for name in task.classes]
        found["mae"], found["rmse"] = distances([numbers[i] for i in taken], [numbers[i] for i in right])
    return found
