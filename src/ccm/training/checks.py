"""The checks before a training writes anything: whether it can start, and whether it can resume from a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import islice

import torch

from ccm.core.errors import ConfigError, TrainingError, listed
from ccm.core.processes import get_logger
from ccm.data import DataSet
from ccm.engine.families import max_positions
from ccm.engine.layout import Sample
from ccm.training.batches import Batches
from ccm.training.recipe import Recipe
from ccm.training.run import FIRST_BATCH, Checkpoint
from ccm.training.stages import Stage

MANY_STEPS = 10_000  # redrawing the batches of so many steps takes time, which a warning explains

_log = get_logger(__name__)


def check(recipe: Recipe, data: DataSet, stage: Stage) -> None:
    """Check that a training can start: its processes, its precision, and the positions that its model supports.

    Logs a warning if the held-out samples are too few to evaluate.

    Raises:
        ConfigError: if the training cannot start.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.shard and processes == 1:
        raise ConfigError("shard=true spreads the base over several processes; start them with torchrun.")
    if recipe.batch_size < processes:
        raise ConfigError(
            f"batch_size is {recipe.batch_size}, but there are {processes} processes, and each needs a sample. Raise "
            "batch_size, or start fewer processes."
        )
    if recipe.mixed_precision is True and stage.base.dtype != torch.float32:
        raise ConfigError(
            f"mixed_precision keeps the base in float32, but the base is in {stage.base.dtype}; set dtype=float32, or "
            "leave mixed_precision out."
        )
    memory = recipe.adapter
    groups = data.deepest if memory.positions == "base" else 1  # groups of COMP tokens that take positions
    end = data.longest + recipe.max_offset + memory.n_tok * groups
    if end > (most := max_positions(stage.base.config)):
        raise ConfigError(
            f"The longest sample of the data has {data.longest} tokens and may end at position {end}, but the model "
            f"supports {most} positions. Lower data.max_steps, data.max_step_tokens or max_offset."
        )
    if processes > 1 and 0 < (held := len(data.held_out())) < processes:
        _log.warning(
            "The training does not evaluate: it holds out %d samples, but each of %d processes needs one. Raise "
            "data.eval_samples, or give more data.",
            held,
            processes,
        )


def check_checkpoint(checkpoint: Checkpoint, stage: Stage, batches: Batches) -> str:
    """Check that a training can resume from a checkpoint: its base, its data and its trained tensors must match.

    Returns:
        The digest of all batches up to the checkpoint.

    Raises:
        ConfigError: if the checkpoint has another base or other data.
        TrainingError: if the checkpoint holds other tensors than the stage trains.
    """
    _compare(checkpoint, base_origin(stage))
    own, held = ({n: (t.shape, t.dtype) for n, t in part.items()} for part in (stage.trained, checkpoint.tensors))
    if own != held:
        other = listed(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        raise TrainingError(
            f"The checkpoint {checkpoint.path} does not hold the tensors that this training changes: {other} are "
            "missing, unknown, or of another shape or dtype. Resume with the recipe of its run."
        )
    if checkpoint.step >= MANY_STEPS:
        _log.warning("Drawing the batches of %d steps again, to check that the data has not changed.", checkpoint.step)
    drawn = ""
    for batch in islice(batches.since(0), checkpoint.step):
        drawn = digest(batch.samples, drawn)
    _compare(checkpoint, {"data": drawn, FIRST_BATCH: digest(batches.data.pool(0, batches.size))[:16]})
    return drawn


def base_origin(stage: Stage) -> dict[str, str]:
    """The fingerprint and the dtype of a training's base, as a checkpoint records them."""
    return {"base": stage.base_id, "dtype": str(stage.base.dtype).removeprefix("torch.")}


def digest(samples: Sequence[Sample], before: str = "") -> str:
    """A digest of 64 hex digits over samples and over ``before``, the digest of all samples drawn earlier."""
    drawn = [(*step.ids, *step.targets) for sample in samples for step in (*sample.steps, sample.query)]
    heads = [sample.head for sample in samples if sample.head]  # without heads, the digest of older checkpoints
    return hashlib.sha256((before + repr(drawn) + (repr(heads) if heads else "")).encode()).hexdigest()


def _compare(checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    was = checkpoint.origin
    if other := [f"{k} {was[k][:16]} (now {now[k][:16]})" for k in now.keys() & was.keys() if was[k] != now[k]]:
        raise ConfigError(
            f"The checkpoint {checkpoint.path} was made with another {', another '.join(sorted(other))}. Resume with "
            "the same base and data, or start a new training in another output_dir."
        )
