"""A step of training for every answer, beside one for the last alone, on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

from benchmarks.common import Options, Report, Subject, compare, report_comparisons, time_in_turns
from benchmarks.training_loop import RECIPE, draw
from ccm.recipe import Recipe
from ccm.training.batches import Batch
from ccm.training.stages import make_stage, open_turns
from ccm.turns import Turns

REFERENCE = "last"
LIMITS = {"every": 1.15, "distill": None}
BATCHES = 8  # that the rounds go through, over and over
SETTING = (
    f"From samples to gradients, as the training loop does it: layout, forward and backward of {RECIPE.batch_size} "
    f"dialogues of the recipe builtin, concat N=2, {BATCHES} batches in turn. last: the final reply is the target. "
    "every: each reply to a question. distill: the same replies, and one more pass for the teacher, over full context."
)


def run(options: Options) -> Report:
    """Time the objectives in turns."""
    turns = open_turns(RECIPE)
    batches = [*islice(draw(RECIPE, turns), BATCHES)]
    subjects = {
        name: Subject(_step(replace(RECIPE, objective={name: 1.0}), turns), partial(next, cycle(batches)))
        for name in (REFERENCE, *LIMITS)
    }
    taken = time_in_turns(subjects, options)
    rows = [compare(taken, name, REFERENCE, limit) for name, limit in LIMITS.items()]
    return report_comparisons("Objectives", SETTING, rows)


def _step(recipe: Recipe, turns: Turns) -> Callable[[Batch], None]:
    stage = make_stage(recipe, turns)
    stage.module.train()

    def step(batch: Batch) -> None:
        stage.module.zero_grad()
        counts = stage.objective.counts(batch.samples)
        for part in batch.passes(recipe.pass_tokens, 1):
            stage.objective.total(stage.sums(part), counts).backward()

    return step
