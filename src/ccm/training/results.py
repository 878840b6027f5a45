"""What a training has learned by a checkpoint, as an adapter: to measure or talk to before the training ends."""

from __future__ import annotations

from pathlib import Path

import torch

from ccm.core.errors import TrainingError
from ccm.core.files import make_atomically
from ccm.engine.adapter_files import CONFIG, PEFT_CONFIG
from ccm.training.checks import base_origin
from ccm.training.recipe import load_recipe
from ccm.training.run import CHECKPOINTS, RECIPE, read_checkpoint, whole_checkpoints
from ccm.training.stages import make_stage, open_turns

RESULTS = "results"  # beside the checkpoints of a run
_FINISHED = (CONFIG, PEFT_CONFIG, "config.json")  # what lies in the folder of a run that is done


def adapter_of(place: str | Path) -> str | Path:
    """The folder of the adapter that a checkpoint holds, or a run's newest one where the run is not done; it is
    written into the run's folder once. Any other place is itself.

    Raises:
        TrainingError: when the checkpoint is damaged, or its run is gone or of another base.
        ConfigError: when the run's recipe or base cannot be read.
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
            f"The checkpoint {path} lies in no run's folder: {run / RECIPE} is missing. Train on from it into "
            "one, with start=CHECKPOINT, to have an adapter of it."
        )
    recipe = load_recipe(run / RECIPE)
    stage = make_stage(recipe, open_turns(recipe))
    if base_origin(stage)["base"] != checkpoint.origin["base"]:
        raise TrainingError(f"The checkpoint {path} is of another base than {recipe.model} is now.")
    with torch.no_grad():
        for name, tensor in stage.trained.items():
            tensor.copy_(checkpoint.tensors[name])
    make_atomically(folder, stage.save)
    return folder
