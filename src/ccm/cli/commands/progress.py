"""The display of a training while it runs: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Column

from ccm.cli.console import LINE_SECONDS, plain_console, repeating
from ccm.core.processes import is_main
from ccm.training.loop import Advance, StepReport
from ccm.training.recipe import Recipe

LOADING = "loading the data and the model"


class TrainingDisplay(NamedTuple):
    """What a training calls: ``report`` with each report that is due, ``advance`` after every step."""

    report: Callable[[StepReport], None]
    advance: Advance = lambda step, report: None


@contextmanager
def progress(recipe: Recipe, name: str = "training") -> Iterator[TrainingDisplay]:
    """Show a bar on a terminal, a line for each report elsewhere; on standard error, by the first process alone."""
    if not is_main():
        yield TrainingDisplay(lambda report: None)
        return
    if not sys.stderr.isatty():
        with _lines(recipe.max_steps, name) as display:
            yield display
        return
    figures = TextColumn("{task.description}", table_column=Column(no_wrap=False))  # on a narrow terminal, two lines
    columns = (SpinnerColumn(), TextColumn(name), BarColumn(10), MofNCompleteColumn(), figures)
    with Progress(*columns, console=plain_console(stderr=True)) as bar:
        task = bar.add_task(LOADING, total=recipe.max_steps)
        latest: dict[str, float] = {}  # figures of the latest evaluation

        def show(stands: StepReport) -> None:
            latest.update(stands.measured)
            bar.update(task, description=_figures(replace(stands, measured=latest)))

        def advance(step: int, stands: StepReport | None) -> None:
            bar.update(task, completed=step)
            if stands is None:
                bar.update(task, description="")
            else:
                show(stands)

        yield TrainingDisplay(show, advance)


@contextmanager
def _lines(steps: int, name: str) -> Iterator[TrainingDisplay]:
    """A line for each report, and one whenever none came for :data:`LINE_SECONDS`."""
    begun = told = time.monotonic()
    stands = LOADING

    def line(text: str) -> None:
        nonlocal told
        told = time.monotonic()
        print(f"{name}: {text}", file=sys.stderr, flush=True)

    def advance(step: int, report: StepReport | None) -> None:
        nonlocal stands
        stands = f"step {step}/{steps}" + (f"  {_figures(report)}" if report else "")

    def repeat() -> None:
        now = time.monotonic()
        if now - told >= LINE_SECONDS:
            line(f"{stands}  {now - begun:,.0f} s so far")

    with repeating(repeat):
        yield TrainingDisplay(lambda report: line(f"step {report.step}/{steps}  {_figures(report)}"), advance)


def _figures(report: StepReport) -> str:
    shown = [f"loss {report.losses['loss']:.4f}", f"{report.tokens_per_second:,.0f} tokens/s"]
    if report.measured:
        shown.append("held out: " + ", ".join(f"{name} {value:.4f}" for name, value in report.measured.items()))
    shown.append(f"{report.seconds_left:,.0f} s left")
    return "  ".join(shown)
