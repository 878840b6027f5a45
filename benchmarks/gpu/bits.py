"""Bases in 8 and 4 bits beside bfloat16: bytes, speed, and what changes of the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import models
from benchmarks.common import FIGURES, Report, Subject, compare, mebibytes, peak_bytes, time_in_turns
from benchmarks.gpu.order import Order
from ccm.core.errors import ConfigError
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import build_layout
from ccm.engine.memory import Memory
from ccm.engine.quantization import Quantization, stored_bytes
from ccm.models.base import load_base

WHOLE = "unquantized"
WAYS: tuple[Quantization, ...] = ("4bit", "8bit", "int8")
ON_CPU: tuple[Quantization, ...] = ("int8",)  # the others train on CUDA alone
SETTING = (
    "A model of {size} with random weights, loaded from a folder in each way, on {device}, concat N=2. Training: "
    f"forward and backward of {models.ROWS} rows of {models.STEPS} x {models.STEP_TOKENS} + {models.QUERY_TOKENS} "
    f"tokens. Compressing: a step of {models.STEP_TOKENS} tokens after one of as many. {{absent}}"
)


def run(order: Order) -> Iterator[Report]:
    """What each way holds and gives, then how fast each is."""
    size = order.size("1b")
    with TemporaryDirectory() as folder:
        models.stock_model(size, order.device).save_pretrained(folder)
        made, absent = _load(order, Path(folder))
    setting = SETTING.format(size=size, device=order.device, absent=" ".join(absent))
    yield _holds(made, setting)
    if len(made) == 1:
        return
    timed = []
    for what, way in (("training", _training), ("compressing", _compressing)):
        taken = time_in_turns({name: Subject(way(model)) for name, model in made.items()}, order.options(0.4))
        timed += [(what, compare(taken, name, WHOLE)) for name in made if name != WHOLE]
        rows = [[f"{what}, {c.subject}", c.reference, *c.figures()] for what, c in timed]
        data = [{"what": what, **asdict(c)} for what, c in timed]
        yield Report("Speed in fewer bits", setting, ["", "beside", *FIGURES], rows, data)


def _load(order: Order, folder: Path) -> tuple[dict[str, CCMModel], list[str]]:
    """Models by the way in which they were loaded, and why others were not."""
    made, absent = {}, []
    for way in (None, *(ON_CPU if order.rehearse else WAYS)):
        try:
            base = load_base(folder, device=order.device, quantize=way)
        except ConfigError as error:  # its library is not installed
            absent.append(str(error))
        else:
            torch.manual_seed(0)  # the same adapter on each
            made[way or WHOLE] = models.with_random_adapter(CCMModel(base, models.CONCAT))
    return made, absent


def _holds(made: Mapping[str, CCMModel], setting: str) -> Report:
    rows, data = [], []
    memories = {name: _remember(model) for name, model in made.items()}
    for name, model in made.items():
        held = sum(stored_bytes(tensor) for tensor in {id(p): p for p in model.base.parameters()}.values())
        peak = peak_bytes(_training(model))
        differ = _difference(memories[name], memories[WHOLE])
        same = model.base_id == made[WHOLE].base_id
        rows.append([name, mebibytes(held), mebibytes(peak), f"{differ:.2e}", "yes" if same else "no"])
        data.append({"way": name, "bytes": held, "peak": peak, "difference": differ, "same": same})
    columns = ["", "MiB of weights", "MiB at the peak, all models", "memory differs by", "taken for the same base"]
    return Report("Bases in fewer bits", setting, columns, rows, data)


@torch.no_grad()
def _remember(model: CCMModel) -> Memory:
    memory = model.empty_memory()
    for number in range(2):
        memory = model.compress(memory, models.random_ids(1, models.STEP_TOKENS, seed=number))
    return memory


def _difference(ours: Memory, theirs: Memory) -> float:
    """Of all keys and values, relative to their norm."""
    pairs = zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True)
    squares = [((a.float() - b.float()).square().sum().item(), b.float().square().sum().item()) for a, b in pairs]
    return (sum(a for a, _ in squares) / sum(b for _, b in squares)) ** 0.5


def _training(model: CCMModel) -> Callable[..., None]:
    layout = build_layout(models.training_samples(), model.config, model.rule, pad_id=0).to(model.device)

    def run(_: None = None) -> None:
        model.zero_grad()
        loss = model(layout).loss
        assert loss is not None
        loss.backward()

    return run


def _compressing(model: CCMModel) -> Callable[..., None]:
    memory, ids = _remember(model), models.random_ids(1, models.STEP_TOKENS)

    @torch.no_grad()
    def run(_: None = None) -> None:
        model.compress(memory, ids)

    return run
