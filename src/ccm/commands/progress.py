"""How a training shows itself while it runs: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ccm.console import plain_console
from ccm.processes import is_main
from ccm.recipe import Recipe
from ccm.training.loop import Report


class Shown(NamedTuple):
    """What a training calls to show itself: with a report, and with the number of every step that is done."""

    report: Callable[[Report], None]
    advance: Callable[[int], None] = lambda step: None


@contextmanager
def progress(recipe: Recipe, name: str = "training") -> Iterator[Shown]:
    """A bar on a terminal, a line a report elsewhere; on standard error, and of one process alone."""
    if not is_main():
        yield Shown(lambda report: None)
        return
    if not sys.stderr.isatty():
        steps = recipe.max_steps
        yield Shown(
            lambda report: print(f"{name}: step {report.step}/{steps}  {_figures(report)}", file=sys.stderr, flush=True)
        )
        return
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=plain_console(stderr=True)) as bar:
        task = bar.add_task("", total=recipe.max_steps)
        yield Shown(
            lambda report: bar.update(task, description=_figures(report)),
            lambda step: bar.update(task, completed=step),
        )


def _figures(report: Report) -> str:
    shown = [f"loss {report.losses['loss']:.4f}", f"{report.tokens_per_second:,.0f} tokens/s"]
    if report.measured:
        shown.append("held out: " + ", ".join(f"{name} {value:.4f}" for name, value in report.measured.items()))
    shown.append(f"{report.seconds_left:,.0f} s left")
    return "  ".join(shown)
