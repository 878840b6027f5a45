"""What every process of test_distributed.py does, and what one process alone does: a step, and whole trainings.

python -m torch.distributed.run --nproc_per_node 2 two_processes.py BASE CHATS OUT
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from helpers import ccm_config
from tiny_training import Tiny, begin, gradients
from torch.distributed.tensor import DTensor

from ccm.core.files import save_tensors
from ccm.training import loop
from ccm.training.batches import Batch
from ccm.training.loop import Training, train
from ccm.training.recipe import Recipe


def recipes(tiny: Tiny) -> dict[str, Recipe]:
    """By name; the rule has parameters of its own, and a batch makes several passes."""
    changes = {"adapter": ccm_config("gate"), "objective": {"every": 1.0, "distill": 0.5}}
    plain = tiny.recipe(**changes)
    return {
        "plain": plain,
        "shard": tiny.recipe(**changes, shard=True),
        "shard_checkpointing": tiny.recipe(**changes, shard=True, gradient_checkpointing=True),
        "first_stage": tiny.recipe(stage="base", shard=True),
    }


def step(recipe: Recipe) -> dict[str, torch.Tensor]:
    """The gradients of the first batch, the losses, and what is trained after two optimizer steps."""
    training = begin(recipe)
    spread = [p for p in training.stage.base.parameters() if isinstance(p, DTensor)]
    assert bool(spread) == recipe.shard
    assert not any(isinstance(p, DTensor) for p in training.parameters)
    endless = training.batches.since(0)
    batch = next(endless)
    losses = training._gradients(batch)
    found = {f"grad.{name}": grad for name, grad in gradients(training.stage).items()}
    training._step(batch)
    _, norm = training._step(next(endless))
    found |= {f"trained.{name}": tensor.detach().clone() for name, tensor in training.stage.trained.items()}
    return found | {"losses": torch.tensor([*losses.values(), norm])}


class Interrupted(Training):
    """A training in which the second process alone is asked to end, after its third step."""

    def _step(self, batch: Batch) -> tuple[dict[str, float], float]:
        done = super()._step(batch)
        if self.step == 3 and not self.main:
            os.kill(os.getpid(), signal.SIGTERM)
        return done


def main() -> None:
    base, chats, out = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    tiny = Tiny(base, chats)
    if "interrupted" in sys.argv:
        loop.Training = Interrupted
        train(tiny.recipe(out / "run", max_steps=8))
    if "moved" in sys.argv:
        (start,) = (out / "run" / "checkpoints").glob("step-00000[34]*")
        train(tiny.recipe(out / "moved", max_steps=8), start=start)
        return
    for name, recipe in recipes(tiny).items():
        save_tensors(out / f"{name}.{rank}.safetensors", step(recipe))
    train(tiny.recipe(out / "run", shard=True, max_steps=2, eval_every=1, log_every=1))


if __name__ == "__main__":
    main()
