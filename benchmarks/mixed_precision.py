"""A step of training in mixed precision beside one in float32, on the same samples."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import cycle, islice

from benchmarks.common import Options, Report, Subject, compare, report_comparisons, time_in_turns
from benchmarks.objectives import BATCHES, gradients
from benchmarks.training_loop import RECIPE, draw
from ccm.models.builtin import WEIGHTS
from ccm.training.recipe import load_recipe
from ccm.training.stages import make_stage, open_turns
from tools.builtin.build import RECIPE as BASE_RECIPE
from tools.builtin.build import Pretraining

BASE = load_recipe(
    BASE_RECIPE,
    (f"model={WEIGHTS / 'base'}", "device=cpu", "data.options.ramp=0"),
)
MIXED, EXACT = "mixed precision", "float32"
SETTING = (
    f"From samples to gradients, {BATCHES} batches in turn. adapter: the recipe builtin, concat N=2, on the frozen "
    "base. base: all of the built-in base from scratch, as `make builtin` trains it, under the rule that a batch draws."
)


def run(options: Options) -> Report:
    """Time both in turns."""
    turns = open_turns(RECIPE)
    rows = []
    for name, recipe, make in (("adapter", RECIPE, make_stage), ("base", BASE, Pretraining)):
        batches = [*islice(draw(recipe, turns), BATCHES)]
        subjects = {
            f"{name}, {how}": Subject(
                gradients(make(replace(recipe, mixed_precision=mixed), turns), recipe.pass_tokens, mixed=mixed),
                partial(next, cycle(batches)),
            )
            for how, mixed in ((EXACT, False), (MIXED, True))
        }
        rows.append(compare(time_in_turns(subjects, options), f"{name}, {MIXED}", f"{name}, {EXACT}"))
    return report_comparisons("Mixed precision", SETTING, rows)
