"""Where a training logs to beside its own log: TensorBoard, and Weights & Biases."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import WandBTracker

from ccm.core.errors import ConfigError, TrainingError
from ccm.core.extras import needs
from ccm.core.files import writing
from ccm.training.recipe import Recipe

PROJECT = "ccm"  # of W&B, where the variable WANDB_PROJECT names no other; also the folder within tensorboard/
_ADVICE = "Run `wandb login`, or set WANDB_MODE=offline and send the run later with `wandb sync`; or set wandb=false."


def check_trackers(recipe: Recipe) -> list[str]:
    """The names of the trackers that a recipe wants.

    Raises:
        ConfigError: if a tracker's package is not installed, or nobody is logged in to W&B.
    """
    wanted = [name for name in ("tensorboard", "wandb") if getattr(recipe, name)]
    for name in wanted:
        extra = "train" if name == "tensorboard" else name
        needs(name, extra=extra, what=f"{name}=true", instead=f"Or set {name}=false.")
    if recipe.wandb:
        _check_login()
    return wanted


def _check_login() -> None:
    import wandb  # optional, and slow to import

    try:
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise ConfigError(f"wandb is true, but nobody is logged in to Weights & Biases here. {_ADVICE}")
    except wandb.Error as error:
        raise ConfigError(f"wandb is true, but Weights & Biases cannot be asked: {error} {_ADVICE}") from error


def trackers(recipe: Recipe, folder: Path, *, resumed: bool) -> list[Any]:
    """What an ``Accelerator`` takes as ``log_with``.

    A training that goes on in its folder also goes on with its run of W&B, whose id ends ``wandb/latest-run`` there.

    Args:
        recipe: becomes the configuration of the run.
        folder: of the training; its name is that of the run.
        resumed: whether a checkpoint of this folder is gone on from.

    Raises:
        ConfigError: as :func:`check_trackers`.
    """
    wanted: list[Any] = [*check_trackers(recipe)]
    if recipe.wandb:
        latest = folder / "wandb" / "latest-run"
        same = (
            {"id": latest.resolve().name.rpartition("-")[2], "resume": "allow"} if resumed and latest.exists() else {}
        )
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        wanted.remove("wandb")
        wanted.append(WandBTracker(project, name=folder.resolve().name, dir=folder, config=asdict(recipe), **same))
    return wanted


def begin(accelerator: Accelerator, recipe: Recipe, folder: Path) -> None:
    """Begin to log to all trackers of a training in that folder.

    Raises:
        TrainingError: if one of them cannot begin.
    """
    failures: tuple[type[Exception], ...] = ()
    if recipe.wandb:
        import wandb

        failures = (wandb.Error,)
    try:
        with writing(folder, TrainingError, "Fix the cause, or set tensorboard=false and wandb=false."):
            accelerator.init_trackers(PROJECT)
    except failures as error:
        raise TrainingError(f"Weights & Biases begins no run: {error} {_ADVICE}") from error
