"""Trainings that end when their time is over, with a checkpoint to go on from."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.order import Order
from ccm.chat.turns import Turns
from ccm.training.loop import StepReport, train
from ccm.training.recipe import Recipe
from ccm.training.run import whole_checkpoints
from ccm.training.stages import Stage, make_stage

SAVING = 15.0  # seconds to save and write in


@dataclass
class Trained:
    """How far a training came in this part.

    Attributes:
        first: step that it began with.
        last: step that it ended with.
        seconds: of these steps.
        tokens: text tokens of the steps that were reported.
        loss: the last that was reported; None before the first report.
    """

    first: int = 0
    last: int = 0
    seconds: float = 0.0
    tokens: float = 0.0
    loss: float | None = None
    _told: float = 0.0

    def tell(self, report: StepReport) -> None:
        """Take a report of the loop."""
        self.tokens += report.tokens_per_second * (report.seconds - self._told)
        self._told, self.loss = report.seconds, report.losses["loss"]

    @property
    def speed(self) -> float:
        """Text tokens a second."""
        return self.tokens / self._told if self._told else 0.0

    @property
    def shown_loss(self) -> str:
        """The loss as a cell of a table."""
        return "" if self.loss is None else f"{self.loss:.3f}"


def train_for_a_while(
    recipe: Recipe, order: Order, start: Path | None = None, make: Callable[[Recipe, Turns], Stage] = make_stage
) -> Trained:
    """Train into the recipe's folder until the part is to end; goes on from what is in it, or else from ``start``."""
    assert recipe.output_dir is not None
    resume, trained = bool(checkpoints(Path(recipe.output_dir))), Trained()

    def advance(step: int, report: StepReport | None) -> None:
        trained.last = step
        if report is None:
            trained.first = step
            return
        trained.seconds = report.seconds
        if order.left < SAVING and step < recipe.max_steps:
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C: the step is saved

    try:
        train(recipe, resume=resume, start=None if resume else start, report=trained.tell, advance=advance, make=make)
    except KeyboardInterrupt:
        if order.left >= SAVING:  # a person's
            raise
    return trained


def checkpoints(folder: Path) -> list[Path]:
    """Those of a run, the oldest first."""
    return whole_checkpoints(folder / "checkpoints")
