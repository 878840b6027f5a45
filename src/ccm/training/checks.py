"""What is seen to before a training writes anything: whether it can begin, and go on from a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import islice

import torch

from ccm.core.errors import ConfigError, TrainingError, listed
from ccm.core.extras import needs
from ccm.core.processes import get_logger
from ccm.data import DataSet
from ccm.engine.layout import Sample
from ccm.training.batches import Batches
from ccm.training.recipe import Recipe
from ccm.training.run import FIRST_BATCH, Checkpoint
from ccm.training.stages import Stage

MANY_STEPS = 10_000  # whose batches are not drawn again without a word

_log = get_logger(__name__)


def trackers(recipe: Recipe) -> list[str]:
    """What a training logs to, beside its own log.

    Raises:
        ConfigError: where it is not installed.
    """
    wanted = [name for name in ("tensorboard", "wandb") if getattr(recipe, name)]
    for name in wanted:
        extra = "train" if name == "tensorboard" else ""
        needs(name, extra=extra, what=f"{name}=true", instead=f"Or set {name}=false.")
    return wanted


def check(recipe: Recipe, data: DataSet, stage: Stage) -> None:
    """See whether a training can begin: processes, precision, and the positions that the model was made for.

    Where there is too little held out to evaluate, the log says so.

    Raises:
        ConfigError: where it cannot.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if recipe.shard and processes == 1:
        raise ConfigError("shard=true spreads the base over several processes; start them with torchrun.")
    if recipe.batch_size < processes:
        raise ConfigError(
            f"batch_size is {recipe.batch_size}, but there are {processes} processes; each needs a sample."
        )
    if recipe.mixed_precision is True and stage.base.dtype != torch.float32:
        raise ConfigError(
            f"mixed_precision keeps the base in float32, but it is in {stage.base.dtype}; set dtype=float32, or leave "
            "mixed_precision out."
        )
    memory = recipe.adapter
    groups = data.deepest if memory.positions == "base" else 1  # of COMP tokens that take positions
    end = data.longest + recipe.max_offset + memory.n_tok * groups
    if end > stage.max_positions:
        raise ConfigError(
            f"The longest sample of the data has {data.longest} tokens and may end at position {end}, but the model "
            f"was made for {stage.max_positions}. Lower data.max_steps, data.max_step_tokens or max_offset."
        )
    if processes > 1 and 0 < (held := len(data.held_out())) < processes:
        _log.warning(
            "Held out are %d samples, of which each of %d processes needs one: their loss is not evaluated. Raise "
            "data.eval_samples, or give more data.",
            held,
            processes,
        )


def check_checkpoint(checkpoint: Checkpoint, stage: Stage, batches: Batches) -> str:
    """See whether a training can go on from a checkpoint: with the same base and data, and the same that is trained.

    Returns:
        digest of the batches up to there.

    Raises:
        ConfigError: where base or data are others.
        TrainingError: where it holds other tensors than are trained.
    """
    _compare(checkpoint, base_origin(stage))
    own, held = ({n: (t.shape, t.dtype) for n, t in part.items()} for part in (stage.trained, checkpoint.tensors))
    if own != held:
        other = listed(name for name in own.keys() | held.keys() if own.get(name) != held.get(name))
        raise TrainingError(
            f"The checkpoint {checkpoint.path} is not of what is trained: {other} are missing, unknown, or of another "
            "size."
        )
    if checkpoint.step >= MANY_STEPS:
        _log.warning("The batches of %d steps are drawn again, to see that the data are the same.", checkpoint.step)
    drawn = ""
    for batch in islice(batches.since(0), checkpoint.step):
        drawn = digest(batch.samples, drawn)
    _compare(checkpoint, {"data": drawn, FIRST_BATCH: digest(batches.data.pool(0, batches.size))[:16]})
    return drawn


def base_origin(stage: Stage) -> dict[str, str]:
    """What a training is on: fingerprint and dtype of its base."""
    return {"base": stage.base_id, "dtype": str(stage.base.dtype).removeprefix("torch.")}


def digest(samples: Sequence[Sample], before: str = "") -> str:
    """64 hex digits of samples and of what was drawn before them."""
    drawn = [(*step.ids, *step.targets) for sample in samples for step in (*sample.steps, sample.query)]
    heads = [sample.head for sample in samples if sample.head]  # of data without any, the digest is as it was
    return hashlib.sha256((before + repr(drawn) + (repr(heads) if heads else "")).encode()).hexdigest()


def _compare(checkpoint: Checkpoint, now: Mapping[str, str]) -> None:
    was = checkpoint.origin
    if other := [f"{k} {was[k][:16]} (now {now[k][:16]})" for k in now.keys() & was.keys() if was[k] != now[k]]:
        raise ConfigError(
            f"The checkpoint {checkpoint.path} was of another {', another '.join(sorted(other))}. Give the training "
            "the former again, or begin another one elsewhere."
        )
