"""Text after a memory, through our seams, beside the stock model with a stock cache of the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from benchmarks import models
from benchmarks.common import Comparison, Options, Report, Subject, compare, report_comparisons, time_in_turns
from ccm.core.config import CCMConfig
from ccm.engine.families import given_cache

STEPS = 8
CASES = ((100, 1.03, 8), (1, 1.10, 40))  # tokens, limit, how many times the rounds
SETTING = (
    f"Logits of text after the memory of {STEPS} steps, batch 1, without gradients: the model with our attention "
    "function, LoRA and cache, as `CCMModel.read` calls it, beside the stock model with a `DynamicCache` of the same "
    "tensors, the same mask and positions. Neither cache's making is timed."
)


def run(options: Options) -> Report:
    """Time both rules, a text and a single token."""
    rows = [
        _compare(name, config, tokens, limit, options.times(factor))
        for name, config in (("concat N=2", models.CONCAT), ("merge N=8", models.MERGE))
        for tokens, limit, factor in CASES
    ]
    return report_comparisons("Reading with a memory attached", SETTING, rows)


@torch.no_grad()
def _compare(name: str, config: CCMConfig, tokens: int, limit: float, options: Options) -> Comparison:
    model, stock = models.ccm_model(config), models.stock_model()
    memory = models.remember(model, STEPS)
    text = {
        "input_ids": models.random_ids(1, tokens, seed=99),
        "attention_mask": torch.ones(1, memory.width + tokens, dtype=torch.long),
        "position_ids": memory.offset[:, None] + torch.arange(tokens),
    }
    ours, plain = f"{tokens} token{'s' * (tokens > 1)}, {name}", "stock model and cache"
    subjects = {
        plain: Subject(_reader(stock, text), partial(models.stock_cache, memory)),
        ours: Subject(_reader(model.base, text), memory.cache),
    }
    return compare(time_in_turns(subjects, options), ours, plain, limit)


def _reader(base: PreTrainedModel, text: dict[str, Tensor]) -> Callable[[Cache], Any]:
    return lambda cache: base(**text, **given_cache(base, cache))
