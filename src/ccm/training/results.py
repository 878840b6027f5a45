"""Turning a checkpoint into an adapter, so that a training can be measured or talked to before it ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ccm.core.adapter_folders import CONFIG, PEFT_CONFIG
from ccm.core.errors import TrainingError
from ccm.core.files import make_atomically
from ccm.training.checks import base_origin
from ccm.training.recipe import load_recipe
from ccm.training.run import CHECKPOINTS, RECIPE, read_checkpoint, whole_checkpoints
from ccm.training.stages import make_stage, open_turns

RESULTS = "results"  # the folder of these adapters, within the folder of the run
_FINISHED = (CONFIG, PEFT_CONFIG, "config.json")  # one of these files lies in the folder of a finished run


def adapter_of(place: str | Path) -> str | Path:
    """The folder of the adapter in a checkpoint; for the folder of an unfinished run, in its newest checkpoint.

    The first call writes the adapter into the folder of the run. Any other ``place`` is returned unchanged.

    Raises:
        TrainingError: if the checkpoint is damaged, lies outside the folder of its run, or has another base.
        ConfigError: if the recipe or the base of the run cannot be read.
    """
    path = Path(place)
    if path.is_dir() and (path / RECIPE).is_file() and not any((path / name).is_file() for name in _FINISHED):
        held = whole_checkpoints(path / CHECKPOINTS)
        path = held[-1] if held else path
    if not path.is_file():
        return place
    run = path.parent.parent
    folder = run / RESULTS / path.stem
    if folder.is_dir():
        return folder
    checkpoint = read_checkpoint(path)
    if not (run / RECIPE).is_file():
        raise TrainingError(
            f"The checkpoint {path} lies outside the folder of its run: {run / RECIPE} is missing. Start a training "
            "from it with start=CHECKPOINT; that training writes the adapter."
        )
    recipe = replace(load_recipe(run / RECIPE), init_adapter=None)  # the checkpoint has all of its tensors
    stage = make_stage(recipe, open_turns(recipe))
    if base_origin(stage)["base"] != checkpoint.origin["base"]:
        raise TrainingError(f"The checkpoint {path} was made with another base than {recipe.model} is now.")
    stage.restore(checkpoint.tensors)
    make_atomically(folder, stage.save)
    return folder
