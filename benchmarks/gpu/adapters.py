"""The adapters of SmolLM2, by the recipe ``smollm2``, as far as the time goes: they go on from what ships. Gate and
merge begin with concat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import Report
from benchmarks.gpu.order import Order
from benchmarks.gpu.pieces import join_all
from benchmarks.gpu.trainings import SAVING, checkpoints, train_for_a_while
from ccm.core.errors import ConfigError
from ccm.training.recipe import Recipe, load_recipe
from reproductions.smollm2 import MODEL, RULES, SAVED

STAGES = {"base": (), **RULES}
SMALL = (
    "data.options.parts=[{name: recall, path: null, weight: 1, options: {longest: 4, long: 0.0}}]",
    "data.eval_samples=2",
    "mixed_precision=false",
    "batch_size=2",
    "max_steps=2",
    "save_every=1",
    "log_every=1",
    "eval_every=0",
    "tensorboard=false",
)
SETTING = (
    "`ccm train smollm2`, stage by stage, each in a folder of its own from which it goes on: {runs}. Base {model}, on "
    "{device}."
)


def run(order: Order) -> Iterator[Report]:
    """A row for each training that had time."""
    if order.chats is None and not order.rehearse:
        raise ConfigError("The adapters need a folder of dialogues: --chats DIR, of python -m reproductions.smollm2.")
    model = "builtin" if order.rehearse else _model(order.model)
    rows, data = [], []
    setting = SETTING.format(runs=order.runs, model=model, device=order.device)
    columns = ["", "steps before", "steps now", "of", "text tokens/s", "text tokens", "seconds", "loss", "checkpoint"]
    for stage in STAGES:
        if stage == "base" and order.base_adapter is not None:
            continue
        recipe = _recipe(order, stage, model)
        trained = train_for_a_while(recipe, order, order.starts.get(stage))
        newest = str([None, *checkpoints(Path(recipe.output_dir or ""))][-1])
        numbers = [f"{trained.speed:,.0f}", f"{trained.tokens:,.0f}", f"{trained.seconds:.0f}", trained.shown_loss]
        rows.append([stage, str(trained.first), str(trained.last), str(recipe.max_steps), *numbers, newest])
        data.append({"stage": stage, "of": recipe.max_steps, "checkpoint": newest, **vars(trained)})
        yield Report("The adapters of SmolLM2", setting, columns, rows, data)
        if trained.last < recipe.max_steps or order.left < 2 * SAVING:
            return


def _model(named: str) -> str:
    """The base, of which a folder may hold the pieces."""
    if not Path(named).is_dir():
        return named
    joined = join_all(Path(named))
    return str(joined[0]) if joined else named


def _recipe(order: Order, stage: str, model: str) -> Recipe:
    changes = [f"model={model}", f"output_dir={order.runs / stage}", f"device={order.device}"]
    if stage != "base":
        changes.append(f"base_adapter={order.base_adapter or order.runs / 'base'}")
    if stage in ("gate", "merge"):
        changes.append(f"init_adapter={order.runs / 'concat'}")
    elif not order.rehearse:
        changes.append(f"init_adapter={MODEL}")
    changes += SMALL if order.rehearse else ("pass_tokens=32768", f"data.path={order.chats}")
    return load_recipe("smollm2", [*SAVED, *changes, *STAGES[stage]], "base" if stage == "base" else "compress")
