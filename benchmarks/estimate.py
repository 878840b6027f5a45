"""What ``ccm train --dry-run`` estimates beside the memory that such steps take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.common import Options, Report
from benchmarks.peak_memory import STATUS, measure_apart
from benchmarks.training_loop import RECIPE, draw
from ccm.training.preview import Estimate, estimate
from ccm.training.recipe import Recipe
from ccm.training.stages import Stage, make_stage, open_turns

CASES = {
    "2,048 tokens a pass": replace(RECIPE, batch_size=64, pool=1, pass_tokens=2048),
    "8,192": replace(RECIPE, batch_size=64, pool=1, pass_tokens=8192),
    "8,192, gradient checkpointing": replace(
        RECIPE, batch_size=64, pool=1, pass_tokens=8192, gradient_checkpointing=True
    ),
}
SETTING = (
    "Gradients, moments, activations and logits of the recipe builtin with 64 dialogues a step, as "
    "`ccm train --dry-run` estimates them; beside it what three such steps take, in a process of their own."
)


def run(options: Options) -> Report:
    """Measure every case in a fresh process; ``options`` change nothing, as nothing is timed."""
    columns = ["", "MiB estimated", "MiB measured", "measured / estimated"]
    if not STATUS.exists():
        return Report("The estimate of memory", "Not measured: this system has no /proc.", columns, [])
    rows, data = [], []
    for name, recipe in CASES.items():
        guess, measured = _estimate(recipe), measure_apart("estimate", name).steps
        rows.append([name, f"{guess / 2**20:.0f}", f"{measured / 2**20:.0f}", f"**{measured / guess:.2f}**"])
        data.append({"subject": name, "estimated": guess, "bytes": measured})
    return Report("The estimate of memory", SETTING, columns, rows, data)


def training_step(name: str) -> Callable[[], None]:
    """An optimizer step of that case."""
    recipe, stage = CASES[name], _stage(CASES[name])
    optimizer = torch.optim.AdamW(stage.trained.values(), lr=recipe.lr)
    batch = next(draw(recipe, stage.turns))
    counts = stage.objective.counts(batch.samples)

    def step() -> None:
        for part in batch.passes(recipe.pass_tokens, 1):
            stage.objective.total(stage.sums(part), counts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _stage(recipe: Recipe) -> Stage:
    stage = make_stage(recipe, open_turns(recipe))
    stage.module.train()
    return stage


def _estimate(recipe: Recipe) -> int:
    stage = _stage(recipe)
    found: Estimate = estimate(recipe, stage, [next(draw(recipe, stage.turns))])
    return found.total - found.weights - found.heap  # of tensors alone
