"""Samples a second by memories of three sizes, each in the largest batch that fits: the paper's setting on MetaICL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

from benchmarks import models
from benchmarks.common import Options, Report, Subject, time_in_turns, wait
from ccm.engine.decoder import CCMModel
from ccm.engine.families import entry_sizes
from ccm.engine.memory import COMPRESSED, Memory

ENTRIES = {"full context": 800, "concat N=8": 128, "merge N=8": 8}  # after 16 demonstrations of 50 tokens
PAPER = {"merge N=8": "13"}  # times full context, on one A100
TOKENS = 50  # query and answer
BATCHES = (1, 4, 16)  # where no memory runs out
MOST = 2048  # samples at a time: 100,000 tokens, of which more are no faster by the sample
SETTING = (
    "Logits of {tokens} tokens (query and answer) by `CCMModel.read`, after a memory of so many entries as 16 "
    "demonstrations of 50 tokens leave; keys, values and weights are random. How the memory came about is not timed. "
    "Model: {size}, {dtype}, on {device}. The batch is {batch}. The last column is the paper's ratio, of LLaMA-7B on "
    "one A100, as others quote it."
)


@dataclass(frozen=True)
class Rate:
    """What was measured of one memory.

    Attributes:
        entries: of the memory.
        kv_bytes: of one sample's memory.
        batch: samples at a time.
        per_second: samples a second, median over the rounds.
    """

    entries: int
    kv_bytes: int
    batch: int
    per_second: float


def run(options: Options) -> Report:
    """Measure every memory; on CUDA in the largest batch that fits, elsewhere in the best of :data:`BATCHES`."""
    cuda = torch.cuda.is_available()
    size, device = options.size or ("7b" if cuda else "small"), "cuda" if cuda else "cpu"
    model = make_model(size, device)
    if cuda:
        return report(model, size, in_largest_batches(model, options), f"the largest that fits, up to {MOST}")
    return report(model, size, _in_best_batches(model, options), f"the best of {', '.join(map(str, BATCHES))}")


def make_model(size: str, device: str) -> CCMModel:
    """The model of :data:`benchmarks.models.SIZES` that reads after the memories."""
    return models.ccm_model(replace(models.CONCAT, n_tok=8), size, device)


def report(model: CCMModel, size: str, rates: Mapping[str, Rate], batch: str) -> Report:
    """The table of what was measured; ``batch`` says in which one."""
    full = rates["full context"].per_second
    columns = ["", "entries", "MiB of K/V a sample", "batch", "samples/s", "ratio", "paper"]
    rows = [
        [
            name,
            str(rate.entries),
            f"{rate.kv_bytes / 2**20:.2f}",
            str(rate.batch),
            f"{rate.per_second:.2f}",
            f"**{rate.per_second / full:.2f}**",
            PAPER.get(name, ""),
        ]
        for name, rate in rates.items()
    ]
    setting = SETTING.format(tokens=TOKENS, size=size, dtype=model.base.dtype, device=model.device, batch=batch)
    data = [{"subject": name, **vars(rate)} for name, rate in rates.items()]
    return Report("Throughput", setting, columns, rows, data)


def in_largest_batches(model: CCMModel, options: Options, most: int = MOST) -> dict[str, Rate]:
    """One memory after the other: a largest batch, of at most ``most`` samples, leaves no room for the next."""
    rates: dict[str, Rate] = {}
    each = replace(options, seconds=options.seconds / len(ENTRIES))
    for name, entries in ENTRIES.items():
        batch = largest(partial(_fits, model, entries), most)
        rates |= _rates(model, {name: batch}, each)
    return rates


def _in_best_batches(model: CCMModel, options: Options) -> dict[str, Rate]:
    """All memories in turns, in batches of each size."""
    tried = [_rates(model, dict.fromkeys(ENTRIES, batch), options) for batch in BATCHES]
    return {name: max((rates[name] for rates in tried), key=lambda rate: rate.per_second) for name in ENTRIES}


def _rates(model: CCMModel, batches: Mapping[str, int], options: Options) -> dict[str, Rate]:
    """Memories by name in batches of those sizes, timed in turns."""
    reading = {name: Subject(_reading(model, ENTRIES[name], batch)) for name, batch in batches.items()}
    taken = time_in_turns(reading, options)
    return {
        name: Rate(ENTRIES[name], _memory(model, ENTRIES[name], 1).nbytes, batch, batch / median(taken[name]))
        for name, batch in batches.items()
    }


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest batch that fits, to an eighth: doubled until one does not, then bisected. One sample must fit."""
    size = 1
    while size < most and fits(2 * size):
        size *= 2
    for step in (size // 2, size // 4, size // 8):
        if step and size + step <= most and fits(size + step):
            size += step
    return size


def _fits(model: CCMModel, entries: int, batch: int) -> bool:
    torch.cuda.empty_cache()  # of the batch before, in other sizes
    try:
        _reading(model, entries, batch)(None)
    except torch.OutOfMemoryError:
        return False
    return True


def _reading(model: CCMModel, entries: int, batch: int) -> Callable[[object], None]:
    """What reads a batch of queries, and returns when it is read."""
    memory, ids = _memory(model, entries, batch), models.random_ids(batch, TOKENS).to(model.device)

    @torch.inference_mode()
    def read(_: object) -> None:
        model.read(memory, ids)
        wait()  # a batch that is too large may say so only then

    return read


def _memory(model: CCMModel, entries: int, batch: int) -> Memory:
    """A memory of random entries that stands for 800 tokens."""
    table = {"device": model.device, "dtype": model.base.dtype}
    keys, values = (
        tuple(torch.randn(batch, heads, entries, dim, **table) for heads, dim in entry_sizes(model.base.config))
        for _ in range(2)
    )
    mask = torch.ones(batch, entries, dtype=torch.bool, device=model.device)
    offset = torch.full((batch,), ENTRIES["full context"], device=model.device)
    return replace(
        model.empty_memory(batch),
        keys=keys,
        values=values,
        mask=mask,
        positions=torch.full_like(offset[:, None].expand(-1, entries), COMPRESSED),
        offset=offset,
    )
