"""A step of training for every answer, beside one for the last alone, on the same samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import torch

from benchmarks.common import Options, Report, Subject, compare, report_comparisons, time_in_turns
from benchmarks.training_loop import RECIPE, draw
from ccm.chat.turns import Turns
from ccm.training.batches import Batch
from ccm.training.stages import Stage, make_stage, open_turns

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
        name: Subject(gradients(_stage(name, turns), RECIPE.pass_tokens), partial(next, cycle(batches)))
        for name in (REFERENCE, *LIMITS)
    }
    taken = time_in_turns(subjects, options)
    rows = [compare(taken, name, REFERENCE, limit) for name, limit in LIMITS.items()]
    return report_comparisons("Objectives", SETTING, rows)


def _stage(objective: str, turns: Turns) -> Stage:
    return make_stage(replace(RECIPE, objective={objective: 1.0}), turns)


def gradients(stage: Stage, pass_tokens: int, *, mixed: bool = False) -> Callable[[Batch], None]:
    """What takes a batch from samples to gradients, as the training loop does it."""
    stage.module.train()

    def step(batch: Batch) -> None:
        stage.module.zero_grad()
        counts = stage.objective.counts(batch.samples)
        for part in batch.passes(pass_tokens, 1):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                sums = stage.sums(part)
            stage.objective.total(sums, counts).backward()

    return step
