"""Objectives against slow loops, against the model's own loss, and against separate passes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import assert_close, ccm_config
from tiny_training import Tiny, compressing, gradients, make
from torch import Tensor
from transformers import AutoModelForCausalLM

from ccm.data import open_data
from ccm.engine.layout import IGNORE, Sample, Step, build_layout
from ccm.training.batches import Batch
from ccm.training.objectives import Objective
from ccm.training.stages import FULL, Stage

ALL = {"last": 0.5, "every": 2.0, "distill": 3.0}


@pytest.fixture
def numbers() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits (7, 11), targets (7,), which are of the final output (7,), the teacher's logits (7, 11)."""
    logits, teacher = 3 * torch.randn(2, 7, 11)
    return logits, torch.randint(11, (7,)), torch.tensor([0, 0, 1, 0, 0, 1, 1]).bool(), teacher


def log_softmax_of(row: Tensor) -> list[float]:
    norm = math.log(sum(math.exp(x) for x in row.tolist()))
    return [x - norm for x in row.tolist()]


def test_losses_are_those_of_slow_loops(numbers: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logits, targets, last, teacher = numbers
    found = Objective.of(ALL, remembered=True).losses(logits, targets, last, teacher)
    expected = dict.fromkeys(ALL, 0.0)
    for i in range(len(targets)):
        ours, theirs = log_softmax_of(logits[i]), log_softmax_of(teacher[i])
        loss = -ours[int(targets[i])]
        expected["every"] += loss
        expected["last"] += loss if last[i] else 0.0
        expected["distill"] += sum(math.exp(p) * (p - q) for p, q in zip(theirs, ours, strict=True))
    assert {name: value.item() for name, value in found.items()} == pytest.approx(expected, rel=1e-5)


def test_only_the_losses_that_are_asked_for_are_given(numbers: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logits, targets, last, teacher = numbers
    for weights in ({"last": 1.0}, {"every": 1.0, "last": 0.0}):
        objective = Objective.of(weights, remembered=True)
        assert not objective.needs_teacher
        assert list(objective.losses(logits, targets, last, None)) == [name for name, w in weights.items() if w]
    assert list(Objective.of({"distill": 1}, remembered=True).losses(logits, targets, last, teacher)) == ["distill"]


def test_distill_is_zero_with_the_teachers_own_distribution_and_never_less(
    numbers: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    logits, targets, last, teacher = numbers
    objective = Objective.of({"distill": 1.0}, remembered=True)
    assert objective.losses(logits, targets, last, logits + 5)["distill"].item() == pytest.approx(0.0, abs=1e-5)
    for i in range(7):
        one = objective.losses(logits[i : i + 1], targets[i : i + 1], last[i : i + 1], teacher[i : i + 1])
        assert one["distill"].item() > 0


def test_the_total_is_the_weighted_sum_of_means(numbers: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    objective = Objective.of(ALL, remembered=True)
    sums = {"last": torch.tensor(6.0), "every": torch.tensor(10.0), "distill": torch.tensor(5.0)}
    total = objective.total(sums, {"last": 3, "every": 5, "distill": 5})
    assert total.item() == pytest.approx(0.5 * 2 + 2.0 * 2 + 3.0 * 1)


def test_losses_of_half_precision_logits_are_summed_in_float32() -> None:
    logits, targets = torch.full((2000, 2), 0.0, dtype=torch.float16), torch.zeros(2000, dtype=torch.long)
    loss = Objective.of({"every": 1.0}, remembered=True).losses(logits, targets, targets.bool(), None)["every"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(2000 * math.log(2), rel=1e-5)


SAMPLE = Sample(
    [Step([5, 6, 7], [IGNORE, 7, 2]), Step([8, 9])], Step([10, 11, 12, 13], [IGNORE, 12, 13, 2])
)  # 2, 0 and 3 targets


@pytest.mark.parametrize(
    ("weights", "recurrent", "counts"),
    [
        ({"last": 1}, True, {"last": 3}),
        ({"every": 1}, True, {"every": 5}),
        ({"last": 1, "every": 1}, True, {"last": 3, "every": 5}),
        ({"last": 1, "distill": 1}, True, {"last": 3, "distill": 3}),
        ({"every": 1, "distill": 1}, True, {"every": 5, "distill": 5}),
        ({"distill": 1}, True, {"distill": 5}),
        ({"distill": 1}, False, {"distill": 3}),  # without the memory in view, a step's answer teaches nothing
        ({"last": 1, "every": 0}, True, {"last": 3}),
    ],
)
def test_targets_are_counted_by_loss(weights: dict[str, float], recurrent: bool, counts: dict[str, int]) -> None:
    objective = Objective.of(weights, remembered=recurrent)
    assert objective.counts([SAMPLE]) == counts
    assert objective.counts([SAMPLE, SAMPLE]) == {name: 2 * count for name, count in counts.items()}
    kept = objective.targeted(SAMPLE)
    left = sum(target != IGNORE for step in (*kept.steps, kept.query) for target in step.targets)
    assert left == max(counts.values())
    assert [step.ids for step in kept.steps] == [step.ids for step in SAMPLE.steps]


# On a model ----------------------------------------------------------------------------------------------------------


def draw(stage: Stage, recipe: Any, count: int = 4) -> list[Sample]:
    whole = replace(recipe, data=replace(recipe.data, random_steps=False))
    return open_data(whole.data, stage.turns, whole.seed).pool(0, count)


def batch_of(samples: Sequence[Sample], n_tok: int = 2) -> Batch:
    return Batch(samples, [0] * len(samples), n_tok)


@pytest.mark.parametrize(
    ("name", "rule"), [("last", "concat"), ("last", "gate"), ("last", "gist"), ("every", "concat"), ("every", "gate")]
)
def test_the_loss_of_a_stage_is_that_of_the_model(tiny: Tiny, name: str, rule: str) -> None:
    recipe = tiny.recipe(objective={name: 1.0}, adapter=ccm_config(rule))
    stage = compressing(recipe)
    samples = draw(stage, recipe)
    sums, counts = stage.sums(batch_of(samples)), stage.objective.counts(samples)
    given = samples if name == "every" else [replace(s, steps=[Step(step.ids) for step in s.steps]) for s in samples]
    expected = stage.model(build_layout(given, stage.config, stage.rule, 0)).loss
    assert expected is not None
    assert_close(stage.objective.total(sums, counts), expected)
    assert expected.item() > 1.0


def test_the_last_loss_is_that_of_the_query_also_beside_every(tiny: Tiny) -> None:
    """Both from one pass: which targets are the query's must be told apart row by row."""
    both, alone = (tiny.recipe(objective=weights) for weights in ({"every": 1.0, "last": 1.0}, {"last": 1.0}))
    one, other = make(both), make(alone)
    samples = draw(one, both)
    assert len({len(sample.steps) for sample in samples}) > 1
    assert_close(one.sums(batch_of(samples))["last"], other.sums(batch_of(samples))["last"])


@pytest.mark.parametrize("rule", ["concat", "merge", "gate"])
def test_every_trains_as_a_pass_for_each_step_would(tiny: Tiny, rule: str) -> None:
    recipe = tiny.recipe(adapter=ccm_config(rule, n_tok=2))
    stage = make(recipe)
    samples = draw(stage, recipe)
    stage.sums(batch_of(samples))["every"].backward()
    one_pass = gradients(stage)
    for sample in samples:
        steps = [*sample.steps, sample.query]
        for t in range(1, len(steps)):
            prefix = Sample([Step(step.ids) for step in steps[:t]], steps[t])
            stage.sums(batch_of([prefix]))["every"].backward()
    separate = gradients(stage)
    assert one_pass.keys() == stage.trained.keys()
    for name, grad in one_pass.items():
        assert_close(grad, separate[name])
        unread = "layers.1." in name and ("q_proj" in name or "o_proj" in name)  # what COMP tokens put out at the end
        assert (grad.abs().max() < 1e-2) == unread, name


@pytest.mark.parametrize("weights", [{"distill": 1.0}, {"last": 1.0, "distill": 1.0}])
def test_the_teacher_of_distill_is_the_stock_model_with_the_whole_context(
    tiny: Tiny, weights: dict[str, float]
) -> None:
    recipe = tiny.recipe(objective=weights)
    stage = compressing(recipe)
    stock = AutoModelForCausalLM.from_pretrained(tiny.base, dtype=torch.float32).eval()
    samples = draw(stage, recipe)
    expected = torch.tensor(0.0)
    for sample in samples:
        given = stage.objective.targeted(sample)
        steps = [*given.steps, given.query]
        targets = torch.tensor([t for step in steps for t in (step.targets or [IGNORE] * len(step.ids))])
        with torch.no_grad():
            theirs = stock(torch.tensor([[token for step in steps for token in step.ids]])).logits[0]
            ours = stage.model(build_layout([given], stage.config, stage.rule, 0)).logits
        at = theirs[targets != IGNORE].log_softmax(-1)
        expected += (at.exp() * (at - ours.log_softmax(-1))).sum()
    assert_close(stage.sums(batch_of(samples))["distill"].detach(), expected, depth=30)  # a sum over tokens
    assert expected > 1.0


def test_the_teacher_is_the_stock_model_in_training_mode_too_and_learns_nothing(tiny: Tiny) -> None:
    """Dropout is on while training; none of it may reach the teacher, and no gradient either."""
    config = ccm_config("concat", lora=replace(ccm_config().lora, dropout=0.5))
    recipe = tiny.recipe(objective={"distill": 1.0}, adapter=config)
    stage = make(recipe)
    stage.rule = FULL
    stage.module.train()
    loss = stage.sums(batch_of(draw(stage, recipe)))["distill"]
    assert loss.item() == pytest.approx(0.0, abs=1e-3)  # full context is the teacher itself
    loss.backward()
    assert all(not grad.any() for grad in gradients(stage).values())


@pytest.mark.parametrize("weights", [{"every": 1.0}, {"last": 1.0, "distill": 1.0}])
def test_the_weights_of_the_base_get_no_gradient(tiny: Tiny, weights: dict[str, float]) -> None:
    recipe = tiny.recipe(objective=weights, adapter=ccm_config("gate"))
    stage = make(recipe)
    sums = stage.sums(batch_of(draw(stage, recipe)))
    sum(sums.values()).backward()
    trained = set(stage.trained.values())
    frozen = [parameter for parameter in stage.module.parameters() if parameter not in trained]
    assert len(frozen) > 10
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen)
    assert all(parameter.grad is not None for parameter in trained)
    assert all(name.startswith(("rule.", "comp_embeddings.")) or "lora_" in name for name in stage.trained)


def test_a_sample_that_begins_later_has_all_its_positions_moved_and_the_same_loss(tiny: Tiny) -> None:
    """Rotary attention knows distances alone."""
    recipe = tiny.recipe()
    stage = make(recipe)
    samples, seen = draw(stage, recipe), []
    stage.base.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    near, far = (stage.sums(Batch(samples, starts, 2))["every"] for starts in ([0] * 4, [0, 50, 100, 150]))
    assert_close(near, far)
    assert (seen[1] - seen[0]).tolist() == [[start] * seen[0].shape[1] for start in (0, 50, 100, 150)]
