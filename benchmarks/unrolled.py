"""The parallel pass over a recursion beside the same recursion unrolled: back-propagation through its steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from benchmarks import models
from benchmarks.common import FIGURES, Comparison, Options, Report, Subject, compare, time_in_turns
from benchmarks.peak_memory import STATUS, Bytes, measure_apart
from ccm.engine.decoder import CCMModel
from ccm.engine.head import head_reads
from ccm.engine.layout import IGNORE, Sample, build_layout

STEPS, LEAST = 16, 8.0
PARALLEL, UNROLLED = "parallel", "unrolled"
RULES = {
    "concat N=2": models.CONCAT,
    "merge N=4": replace(models.MERGE, n_tok=4),
    "gate N=4": replace(models.MERGE, rule="gate", n_tok=4),
}


class Shape(NamedTuple):
    """A batch: its rows, and the tokens of each of their steps."""

    rows: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.rows} row{'s' * (self.rows > 1)} of {STEPS} x {self.tokens}"


LARGE = Shape(models.ROWS, models.STEP_TOKENS)  # the one with a limit, and whose memory is measured
SHAPES = {LARGE: 1, Shape(models.ROWS, 12): 2, Shape(1, models.STEP_TOKENS): 2, Shape(1, 12): 4}  # times the rounds
SETTING = (
    f"Forward and backward over {STEPS} steps and a query of {models.QUERY_TOKENS} tokens, the last "
    f"{models.TARGET_TOKENS} of them with a target; logits at the targets only. Parallel: `CCMModel.forward` of a "
    "layout. Unrolled: `compress` step by step, all rows at once, `read` of the query, and back through all of it. "
    "Both must give the same loss and gradients before they are timed. MiB are what three such steps take, in "
    "processes of their own."
)

Loss = Callable[[], Tensor]


def run(options: Options) -> Report:
    """Time every rule with every shape, and measure the memory of the largest."""
    compared, memory = {}, {}
    for rule in RULES:
        for shape, factor in SHAPES.items():
            compared[rule, shape] = _compare(rule, shape, options.times(factor))
        if STATUS.exists():
            memory[rule, LARGE] = tuple(measure_apart("unrolled", f"{way}, {rule}") for way in (UNROLLED, PARALLEL))
    return _report(compared, memory)


def training_step(name: str) -> Callable[..., None]:
    """The training step of that name, such as "unrolled, merge N=4", of the largest shape."""
    way, rule = name.split(", ")
    model = models.with_random_adapter(models.ccm_model(RULES[rule]))
    return step(model, losses_of(model, LARGE)[way])


def _compare(rule: str, shape: Shape, options: Options) -> Comparison:
    model = models.with_random_adapter(models.ccm_model(RULES[rule]))
    losses = losses_of(model, shape)
    check_equal(model, losses)
    taken = time_in_turns({way: Subject(step(model, loss)) for way, loss in losses.items()}, options)
    return compare(taken, UNROLLED, PARALLEL, least=LEAST if shape == LARGE else None)


def losses_of(model: CCMModel, shape: Shape) -> dict[str, Loss]:
    """The loss of one batch, both ways."""
    samples = models.training_samples(shape.rows, STEPS, shape.tokens)
    return {PARALLEL: _parallel(model, samples), UNROLLED: _unrolled(model, samples)}


def _parallel(model: CCMModel, samples: Sequence[Sample]) -> Loss:
    layout = build_layout(samples, model.config, model.rule, pad_id=0).to(model.device)

    def loss() -> Tensor:
        found = model(layout).loss
        assert found is not None
        return found

    return loss


def _unrolled(model: CCMModel, samples: Sequence[Sample]) -> Loss:
    steps = [torch.tensor([sample.steps[number].ids for sample in samples]) for number in range(STEPS)]
    query = torch.tensor([sample.query.ids for sample in samples])
    targets = torch.tensor([sample.query.targets for sample in samples]).flatten()
    trained = (targets != IGNORE).nonzero().flatten()
    wanted, trained = targets[trained].to(model.device), trained.to(model.device)

    def loss() -> Tensor:
        memory = model.empty_memory(len(samples))
        for ids in steps:
            memory = model.compress(memory, ids)
        with head_reads(trained):
            logits = model.read(memory, query)[0]
        return cross_entropy(logits.float(), wanted)

    return loss


def step(model: CCMModel, loss: Loss) -> Callable[..., None]:
    """What zeroes the gradients, computes the loss and goes back through it."""

    def run(_: None = None) -> None:
        model.zero_grad()
        loss().backward()

    return run


def check_equal(model: CCMModel, losses: dict[str, Loss]) -> None:
    """Both ways must give the same loss, and gradients of one direction and length.

    The last layer's queries and outputs at COMP tokens lead nowhere: their LoRA has no gradient either way.
    """
    values, gradients = {}, {}
    for way, loss in losses.items():
        model.zero_grad()
        value = loss()
        value.backward()
        values[way] = value.item()
        tensors = model.adapter_tensors().items()
        gradients[way] = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in tensors}
        model.zero_grad(set_to_none=True)
    assert abs(values[UNROLLED] - values[PARALLEL]) < 1e-4, f"The losses differ: {values}."
    for name, ours in gradients[PARALLEL].items():
        theirs = gradients[UNROLLED][name]
        if ours.any() or theirs.any():
            cosine = cosine_similarity(ours.flatten(), theirs.flatten(), dim=0).item()
            length = (ours.norm() / theirs.norm()).item()
            assert cosine > 0.999, f"The gradients of {name} differ: their cosine is {cosine}."
            assert abs(length - 1) < 0.01, f"The gradients of {name} differ: the ratio of their norms is {length}."


def _report(
    compared: dict[tuple[str, Shape], Comparison], memory: dict[tuple[str, Shape], tuple[Bytes, ...]]
) -> Report:
    columns = ["", "ms unrolled", "ms parallel", *FIGURES[2:], "MiB unrolled", "MiB parallel", "ratio"]
    rows, data = [], []
    for (rule, shape), c in compared.items():
        row = [f"{rule}, {shape}", *c.figures()]
        record = {"rule": rule, "shape": str(shape)} | asdict(c)
        if (rule, shape) in memory:
            taken = [measured.steps for measured in memory[rule, shape]]
            row += [*(f"{n / 2**20:.0f}" for n in taken), f"{taken[0] / taken[1]:.3f}"]
            record |= {"bytes": taken[0], "reference_bytes": taken[1]}
        rows.append(row + [""] * (len(columns) - len(row)))
        data.append(record)
    return Report("The recursion unrolled beside the parallel pass", SETTING, columns, rows, data)
