"""A model of 8 billion parameters on one GPU, as docs/train.md walks through it, with random weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import models
from benchmarks.common import Report, Subject, free, mebibytes, peak_bytes, time_in_turns
from benchmarks.gpu.order import Order
from benchmarks.gpu.trainings import Trained, train_for_a_while
from ccm.chat.turns import Turns
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory
from ccm.training.recipe import Recipe, load_recipe
from ccm.training.stages import CompressStage

STEPS, REPLY = 12, 32  # of a conversation; tokens of a reply
WAYS = {"gradient checkpointing": True, "without": False}
SETTING = (
    "`ccm train builtin`: conversations of up to 14 turns, {batch} a step, passes of {pass_tokens} tokens, concat N=2, "
    "objective every. Model: {size}, {dtype}, random weights, on {device}."
)
USING = (
    f"After {STEPS} steps of {models.STEP_TOKENS} tokens, batch 1: a reply of {REPLY} tokens to a prompt of 20, from "
    "the memory beside full context; and compressing one step more."
)


def run(order: Order) -> Iterator[Report]:
    """Use, then training: with gradient checkpointing, and without, which may need more than there is."""
    size, rows, data = order.size("8b"), [], []
    yield _use(order, size)
    for share, (name, checkpointing) in zip((0.6, 1.0), WAYS.items(), strict=True):
        free()  # what the model before held
        now = replace(order, ends=time.monotonic() + order.left * share)
        recipe = _recipe(order, checkpointing=checkpointing)
        trained, peak = _train(recipe, now, size)
        numbers = [f"{trained.speed:,.0f}", f"{trained.seconds:.0f}", mebibytes(peak), trained.shown_loss]
        rows.append([name, str(trained.last), *numbers])
        data.append({"way": name, "peak": peak, **vars(trained)})
        setting = SETTING.format(
            batch=recipe.batch_size,
            pass_tokens=recipe.pass_tokens,
            size=size,
            dtype=models.SIZES[size][1],
            device=order.device,
        )
        columns = ["", "steps", "text tokens/s", "seconds", "MiB at the peak", "loss"]
        yield Report("Training a model of 8 billion parameters", setting, columns, rows, data)


def _recipe(order: Order, *, checkpointing: bool) -> Recipe:
    small = ("batch_size=2", "max_steps=2", "log_every=1") if order.rehearse else ("batch_size=64", "max_steps=20")
    changes = (
        f"device={order.device}",
        f"gradient_checkpointing={str(checkpointing).lower()}",
        "init_adapter=null",
        "objective={every: 1.0}",
        "data.eval_samples=0",
        "data.options={ramp: 0, recall: 0, questions_only: false}",
        "eval_every=0",
        "log_every=2",
        "tensorboard=false",
        *small,
    )
    return load_recipe("builtin", changes)


def _train(recipe: Recipe, order: Order, size: str) -> tuple[Trained, int | None]:
    """How far it came, and the most bytes that it held on the device."""

    def make(placed: Recipe, turns: Turns) -> CompressStage:
        return CompressStage(placed, turns, models.stock_model(size, order.device))

    found = []
    with TemporaryDirectory() as folder:
        placed = replace(recipe, output_dir=str(Path(folder) / "run"))
        peak = peak_bytes(lambda: found.append(train_for_a_while(placed, order, make=make)))
    return found[0], peak


@torch.no_grad()
def _use(order: Order, size: str) -> Report:
    """Replies and steps in turns; memory and full context are of one base each."""
    subjects, held = {}, {}
    for name, config in (("concat N=2", models.CONCAT), ("full context", models.FULL)):
        model = models.ccm_model(config, size, order.device)
        memory = models.remember(model, STEPS)
        held[name] = memory.nbytes
        subjects[f"reply, {name}"] = Subject(_replying(model, memory))
        subjects[f"step, {name}"] = Subject(_compressing(model, memory))
    taken = time_in_turns(subjects, order.options(0.25))
    rows, data = [], []
    for what, seconds in taken.items():
        middle = sorted(seconds)[len(seconds) // 2]
        nbytes = held[what.partition(", ")[2]]
        rows.append([what, f"{middle * 1e3:.1f}", f"{nbytes / 2**20:.2f}", str(len(seconds))])
        data.append({"what": what, "seconds": middle, "bytes": nbytes, "rounds": len(seconds)})
    setting = f"{USING} Model: {size}, on {order.device}."
    return Report("Using it", setting, ["", "ms", "MiB of K/V", "rounds"], rows, data)


def _replying(model: CCMModel, memory: Memory) -> Callable[[Any], object]:
    ids = models.random_ids(1, 20).to(model.device)
    return lambda _: model.generate(memory, ids, max_new_tokens=REPLY, min_new_tokens=REPLY, do_sample=False)


def _compressing(model: CCMModel, memory: Memory) -> Callable[[Any], object]:
    ids = models.random_ids(1, models.STEP_TOKENS)
    return torch.no_grad()(lambda _: model.compress(memory, ids))
