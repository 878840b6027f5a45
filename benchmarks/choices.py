"""Scoring the options of a question with one memory for all of them, beside a pass from scratch for each option."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from benchmarks import models
from benchmarks.common import Options, Report, Subject, compare, report_comparisons, time_in_turns
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample, Step, build_layout
from ccm.evaluation.scoring import Scorer

DEMONSTRATIONS, CHOICES, ANSWER, QUESTIONS, LEAST = 16, 4, 3, 4, 3.0
RULES = {"concat N=2": models.CONCAT, "merge N=8": models.MERGE, "full": models.FULL}
SETTING = (
    f"{QUESTIONS} questions, {DEMONSTRATIONS} demonstrations of {models.STEP_TOKENS} tokens, a query of "
    f"{models.QUERY_TOKENS}, {CHOICES} options of {ANSWER} tokens. Shared: `Scorer`, the memory and the query once a "
    "question. From scratch: a parallel pass of a question with every option, all in one batch. Both "
    "must give the same likelihoods to 1e-4 before they are timed."
)


def run(options: Options) -> Report:
    """Time every rule."""
    comparisons = []
    for name, config in RULES.items():
        shared, scratch = f"shared, {name}", f"from scratch, {name}"
        ways = {scratch: _from_scratch(models.ccm_model(config)), shared: _shared(models.ccm_model(config))}
        if not torch.allclose(torch.tensor(ways[shared](None)), torch.tensor(ways[scratch](None)), atol=1e-4):
            raise AssertionError(f"{name}: the two ways give other likelihoods.")
        taken = time_in_turns({way: Subject(score) for way, score in ways.items()}, options)
        comparisons.append(compare(taken, scratch, shared, least=LEAST))
    return report_comparisons("Choices", SETTING, comparisons)


def _questions() -> list[Question]:
    size = DEMONSTRATIONS * models.STEP_TOKENS
    made = []
    for row in models.random_ids(QUESTIONS, size + models.QUERY_TOKENS + CHOICES * ANSWER).tolist():
        query, options = row[size : size + models.QUERY_TOKENS], row[size + models.QUERY_TOKENS :]
        steps = [row[i : i + models.STEP_TOKENS] for i in range(0, size, models.STEP_TOKENS)]
        made.append(Question(steps, query, [options[i : i + ANSWER] for i in range(0, len(options), ANSWER)]))
    return made


def _shared(model: CCMModel) -> Callable[[object], list[tuple[float, ...]]]:
    questions, scorer = _questions(), Scorer(model, batch=QUESTIONS)
    return lambda _: [tuple(answer.total for answer in one.answers) for one in scorer.score(questions)]


def _from_scratch(model: CCMModel) -> Callable[[object], list[tuple[float, ...]]]:
    questions = _questions()

    @torch.inference_mode()
    def score(_: object) -> list[tuple[float, ...]]:
        found = []
        for question in questions:
            layout = build_layout([_sample(question, a) for a in question.answers], model.config, model.rule, 0)
            log_p = model(layout).logits.log_softmax(-1).unflatten(0, (CHOICES, ANSWER))
            wanted = torch.tensor(question.answers)[..., None]
            found.append(tuple(log_p.gather(-1, wanted)[..., 0].sum(1).tolist()))
        return found

    return score


def _sample(question: Question, answer: Sequence[int]) -> Sample:
    targets = [IGNORE] * (len(question.query) - 1) + [*answer]
    return Sample([Step(step) for step in question.steps], Step([*question.query, *answer[:-1]], targets))
