"""Compressing one step beside a plain prefill of as many tokens by the stock model."""

from __future__ import annotations

import torch

from benchmarks import models
from benchmarks.common import Comparison, Options, Report, Subject, compare, report_comparisons, time_in_turns
from ccm.core.config import CCMConfig
from ccm.engine.decoder import CCMModel
from ccm.engine.families import given_cache
from ccm.engine.memory import Memory

TOKENS, EARLIER, LIMIT = 100, 8, 1.15
SETTING = (
    f"`model.compress` of one step of {TOKENS} tokens, batch 1, without gradients, from an empty memory and after "
    f"{EARLIER} earlier steps; beside the stock inner model reading {TOKENS} + N tokens into a `DynamicCache` that "
    "holds as many entries already. Filling that cache is not timed; what `compress` does with its memory is."
)


def run(options: Options) -> Report:
    """Time both rules, from an empty memory and from one with earlier steps."""
    rows = [
        _compare(name, config, steps, options.times(8))
        for name, config in (("concat N=2", models.CONCAT), ("merge N=8", models.MERGE))
        for steps in (0, EARLIER)
    ]
    return report_comparisons("Compressing a step", SETTING, rows)


@torch.no_grad()
def _compare(name: str, config: CCMConfig, steps: int, options: Options) -> Comparison:
    model, stock = models.ccm_model(config), models.stock_model().model
    memory = models.remember(model, steps)
    ids = models.random_ids(1, TOKENS + config.n_tok, seed=99)
    ours, plain = f"compress, {name}, {memory.width} entries", "plain prefill"
    subjects = {
        plain: Subject(
            lambda cache: stock(input_ids=ids, use_cache=True, **given_cache(stock, cache)),
            lambda: models.stock_cache(memory),
        ),
        ours: Subject(lambda step: _compress(model, memory, step), lambda: ids[:, :TOKENS]),
    }
    return compare(time_in_turns(subjects, options), ours, plain, LIMIT)


def _compress(model: CCMModel, memory: Memory, step: torch.Tensor) -> Memory:
    return model.compress(memory, step)
