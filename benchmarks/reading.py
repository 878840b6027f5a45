"""Text after a memory, through our seams, beside the stock model with a stock cache of the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from benchmarks import models
from benchmarks.common import Comparison, Options, Report, Subject, compare, report_comparisons, time_in_turns
from ccm.core.config import CCMConfig
from ccm.engine.families import given_cache
from ccm.engine.sampling import Sampling

STEPS, PROMPT = 8, 20
CASES = ((100, 1.03, 8), (1, 1.10, 40))  # tokens, limit, how many times the rounds
SETTING = (
    f"Logits of text after the memory of {STEPS} steps, batch 1, without gradients: the model with our attention "
    "function, LoRA and cache, as `CCMModel.read` calls it, beside the stock model with a `DynamicCache` of the same "
    "tensors, the same mask and positions. The first token is what `model.reader` and a greedy choice take after a "
    f"prompt of {PROMPT} tokens; the stock model computes one token's logits. Neither cache's making is timed."
)


def run(options: Options) -> Report:
    """Time both rules, a text and a single token."""
    rows = [
        _compare(name, config, tokens, limit, options.times(factor))
        for name, config in (("concat N=2", models.CONCAT), ("merge N=8", models.MERGE))
        for tokens, limit, factor in CASES
    ]
    rows += [_first_token("first token, concat N=2", models.CONCAT, options.times(20))]
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


@torch.no_grad()
def _first_token(name: str, config: CCMConfig, options: Options) -> Comparison:
    model, stock, sampling = models.ccm_model(config), models.stock_model(), Sampling()
    memory, ids = models.remember(model, STEPS), models.random_ids(1, PROMPT, seed=99)
    text = {"input_ids": ids, "position_ids": memory.offset[:, None] + torch.arange(PROMPT), "logits_to_keep": 1}
    subjects = {
        "stock model and cache": Subject(_reader(stock, text), partial(models.stock_cache, memory)),
        name: Subject(lambda read: sampling.choose(read(ids)), lambda: model.reader(memory, memory.cache())),
    }
    return compare(time_in_turns(subjects, options), name, "stock model and cache", 1.15)


def _reader(base: PreTrainedModel, text: dict[str, Any]) -> Callable[[Cache], Any]:
    return lambda cache: base(**text, **given_cache(base, cache))
