"""``ccm train``: from a recipe to an adapter, with a bar that tells how it goes; or a look at it before."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ccm.console import plain_console, quiet, size
from ccm.data import open_data
from ccm.training.loop import Report, train
from ccm.training.preview import estimate, picture
from ccm.training.recipe import Recipe, Stage, load_recipe, write_recipe
from ccm.training.stages import make_stage, open_turns


def run(source: str, changes: list[str], stage: Stage | None, *, dry_run: bool, resume: bool) -> None:
    """Train, or show what would be trained."""
    quiet()
    recipe = load_recipe(source, changes, stage)
    if dry_run:
        _show(recipe)
        return
    with progress(recipe) as report:
        folder = train(recipe, resume=resume, report=report)
    if _main():
        print(f"Done. {_next(recipe, str(folder))}", file=sys.stderr)


def _next(recipe: Recipe, folder: str) -> str:
    if recipe.stage == "compress":
        return f"Talk to it: ccm chat --adapter {folder}"
    key = "model" if recipe.merge else "base_adapter"
    return f"Now train an adapter on it, with --stage compress --set {key}={folder}"


def _show(recipe: Recipe) -> None:
    """Print the resolved recipe, one sample with its blocks and COMP slots, parameters and memory."""
    console = plain_console()
    turns = open_turns(recipe)
    sample, stage = open_data(recipe, turns).pool(0, 1)[0], make_stage(recipe, turns)
    console.print(write_recipe(replace(recipe, turns=turns.form)))
    console.print("One sample; > is what is learned.\n")
    console.print(picture(sample, stage))
    trained = sum(tensor.numel() for tensor in stage.trained.values())
    whole = sum(parameter.numel() for parameter in stage.module.parameters())
    console.print(f"\nTrained are {trained:,} of {whole:,} parameters ({trained / whole:.2%}).")
    needs = estimate(recipe, stage, sample)
    console.print(
        f"Memory of a process, estimated: {size(needs.total)} (weights {size(needs.weights)}, gradients and moments "
        f"{size(needs.trained)}, activations of a pass {size(needs.activations)}, logits {size(needs.logits)})."
    )


@contextmanager
def progress(recipe: Recipe, name: str = "training") -> Iterator[Callable[[Report], None]]:
    """A bar on a terminal, a line a report elsewhere; on standard error."""
    if not sys.stderr.isatty():
        steps = recipe.max_steps
        yield lambda report: print(
            f"{name}: step {report.step}/{steps}  {_figures(report, recipe)}", file=sys.stderr, flush=True
        )
        return
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=plain_console(stderr=True)) as bar:
        task = bar.add_task("", total=recipe.max_steps)
        yield lambda report: bar.update(task, completed=report.step, description=_figures(report))


def _figures(report: Report, recipe: Recipe | None = None) -> str:
    shown = [f"loss {report.losses['loss']:.4f}", f"{report.tokens_per_second:,.0f} tokens/s"]
    shown += [f"{name} {value:.4f}" for name, value in report.measured.items()]
    if recipe:
        shown.append(f"{report.seconds_left:,.0f} s left")
    return "  ".join(shown)


def _main() -> bool:
    return os.environ.get("RANK", "0") == "0"
