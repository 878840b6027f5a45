"""flex_attention beside the attention that is taken without it, over lengths, rules and sliding windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from typing import NamedTuple

import torch
from torch.nn.functional import max_pool2d

from benchmarks import models
from benchmarks.common import FIGURES, Report, Subject, compare, mebibytes, peak_bytes, time_in_turns, wait
from benchmarks.gpu.order import Order
from ccm.engine.attention import ParallelPass
from ccm.engine.decoder import CCMModel
from ccm.engine.flex import lacks
from ccm.engine.layout import Layout, build_layout
from ccm.engine.reach import Reach

TOKENS = 8192  # of a pass
BLOCK = 128
RULES = {"concat N=2": models.CONCAT, "merge N=8": models.MERGE}
KINDS = ("1b", "1b, windows")
FLEX, OTHER = "flex_attention", "without"
SETTING = (
    "Forward and backward of a pass of {tokens} text tokens in rows of one length, in steps of so many tokens; a model "
    "of {size}, {dtype}, random weights, on {device}. Beside it: sdpa, in chunks where few columns are seen. Blocks: "
    "the share of 128 x 128 that is seen, where no window hides more. The first pass compiles. {lacking}"
)


class Case(NamedTuple):
    """Rows to pass: tokens of a row, and of each of its steps."""

    length: int
    step: int


CASES = (Case(1024, 64), Case(4096, 64), Case(2048, 64), Case(512, 64), Case(4096, 512), Case(8192, 64))
SMALL = (Case(128, 16),)


def run(order: Order) -> Iterator[Report]:
    """A table for each kind of model, a row at a time."""
    for number, kind in enumerate(KINDS):
        ends = order.left * (len(KINDS) - 1 - number) / (len(KINDS) - number)  # what is left to the kinds to come
        yield from _of_kind(order, kind, ends)


def _of_kind(order: Order, kind: str, ends: float) -> Iterator[Report]:
    size, rows, data = order.size(kind), [], []
    stock = {name: models.ccm_model(rule, size, order.device) for name, rule in RULES.items()}
    made = {name: models.with_random_adapter(model) for name, model in stock.items()}
    for case, (name, model) in product(SMALL if order.rehearse else CASES, made.items()):
        if order.left < ends:
            return
        setting = _setting(order, size, model)
        row, record = _measure(order, f"{name}, rows of {case.length} in steps of {case.step}", model, case)
        rows.append(row)
        data.append(record)
        columns = ["", "beside", *FIGURES, "blocks", "s, first pass", "MiB", "MiB beside", "losses differ by"]
        yield Report(f"flex_attention, {kind}", setting, columns, rows, data)


def _setting(order: Order, size: str, model: CCMModel) -> str:
    config = model.base.config
    query = torch.empty(1, 1, 1, config.hidden_size // config.num_attention_heads, device=order.device)
    reason = lacks(query, {})
    lacking = f"Not taken here: {reason}." if reason else ""
    tokens = 128 if order.rehearse else TOKENS
    return SETTING.format(tokens=tokens, size=size, dtype=model.base.dtype, device=order.device, lacking=lacking)


def _measure(order: Order, name: str, model: CCMModel, case: Case) -> tuple[list[str], dict]:
    layout = _layout(model, case, 128 if order.rehearse else TOKENS)
    ways = {FLEX: _pass(model, layout, flex=True), OTHER: _pass(model, layout, flex=False)}
    begin = time.perf_counter()
    losses = {FLEX: ways[FLEX]()}
    wait()
    first = time.perf_counter() - begin
    losses[OTHER] = ways[OTHER]()
    peaks = [peak_bytes(way) for way in ways.values()]
    options = order.options(0.1)
    found = compare(time_in_turns({way: Subject(run) for way, run in ways.items()}, options), FLEX, OTHER)
    blocks, differ = seen_blocks(layout, model), abs(losses[FLEX] - losses[OTHER])
    shown = [f"{blocks:.0%}", f"{first:.1f}", *map(mebibytes, peaks), f"{differ:.1e}"]
    record = {"case": name, **asdict(found), "blocks": blocks, "first_seconds": first, "losses": losses, "peaks": peaks}
    return [name, OTHER, *found.figures(), *shown], record


def _layout(model: CCMModel, case: Case, tokens: int) -> Layout:
    steps = (case.length - models.QUERY_TOKENS) // case.step
    samples = models.training_samples(max(1, tokens // case.length), steps, case.step)
    return build_layout(samples, model.config, model.rule, pad_id=0).to(model.device)


def _pass(model: CCMModel, layout: Layout, *, flex: bool) -> Callable[..., float]:
    def run(_: None = None) -> float:
        model.flex = flex
        model.zero_grad()
        loss = model(layout).loss
        assert loss is not None
        loss.backward()
        return loss.item()

    return run


def seen_blocks(layout: Layout, model: CCMModel, reach: Reach | None = None) -> float:
    """The share of all blocks that any of a row's queries sees."""
    length, device = layout.ids.shape[1], layout.ids.device
    rows, columns = torch.zeros(1, 1, 1, dtype=torch.long, device=device), length + layout.comp_columns.shape[1]
    queries, keys = torch.arange(length, device=device)[:, None], torch.arange(columns, device=device)
    seen = ParallelPass(layout, model.rule).mask_function(reach, apart=True)(rows, queries, keys)
    return max_pool2d(seen.float(), BLOCK, ceil_mode=True).mean().item()
