"""A trial of both seams on a tiny random model, before the first real model of its kind is built.

A library can keep its names and arguments and yet do something else. Then a memory could have no effect, without any
error. The trial reads two steps of text and COMP tokens, which do not see each other, in one pass:

tokens   a a a C | b b C | q q        C = COMP
blocks   0 0 0 0   1 1 1   2 2

Each step must give the same as in the stock model, which reads it by itself. A LoRA without COMP rows must not change
that; a LoRA with COMP rows must.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ccm.core.config import CCMConfig, LoRASettings
from ccm.core.rules import make_rule
from ccm.engine.attention import SDPA, ParallelPass
from ccm.engine.families import attention_modules, given_cache, last_layer
from ccm.engine.last import attach_last, last_pass
from ccm.engine.layout import IGNORE, Layout, Sample, Step, build_layout
from ccm.engine.lora import inject_lora
from ccm.engine.stack import refusal
from ccm.engine.t5.encoder import EncoderPass, build_encoder_layout

ROUNDING = 1e-4  # for numbers of size 1; a seam that fails changes them a hundred times as much
_SAMPLE = Sample([Step([3, 4, 5]), Step([6, 7])], Step([8, 9], [9, 3]))
_CONFIG = CCMConfig("concat", n_tok=1, recurrent=False, lora=LoRASettings(r=2, alpha=4, dropout=0.0))
_SIZES: dict[str, Any] = {"vocab_size": 10, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


@cache
def try_seams(encoder_decoder: bool) -> None:
    """Try both seams on a tiny T5 or a tiny decoder, once in each process; it takes milliseconds.

    Raises:
        StackError: with what does not work, and the installed versions.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        _try(*(_encoder() if encoder_decoder else _decoder()))


def _try(base: PreTrainedModel, layout: Any, current: Any, run: Callable[..., Tensor], plain: dict[str, Any]) -> None:
    kind = base.config.model_type
    steps = [layout.blocks[0] == block for block in (0, 1)]
    text = torch.randn(1, layout.ids.shape[1], 8, dtype=torch.float64)
    expected = torch.cat([run(text[:, step], layout.positions[:, step]) for step in steps], dim=1)
    padded = torch.tensor([[0, 0, *[1] * (text.shape[1] - 2)]])
    stock = base(inputs_embeds=text, attention_mask=padded, **plain).logits[:, 2:]
    if not base.config.is_encoder_decoder:
        _try_cache(base)
    base.set_attn_implementation(SDPA)

    def differs() -> bool:
        found = run(text, layout.positions, attention_mask=None, ccm=current)
        return _far(torch.cat([found[:, step] for step in steps], dim=1), expected)

    if _far(base(inputs_embeds=text, attention_mask=padded, **plain).logits[:, 2:], stock):
        raise refusal(f"A model of the type {kind} reads padding through a registered attention function")
    if differs():
        raise refusal(f"The mask of a memory does not reach the layers of a model of the type {kind}")
    comp, current.rows = current.rows, torch.zeros(0, dtype=torch.long)
    inject_lora(base, _CONFIG.lora)
    for name, parameter in base.named_parameters():
        if "lora_" in name:
            parameter.copy_(torch.randn_like(parameter))
    if differs():
        raise refusal(f"The LoRA acts on text, not on COMP tokens alone, in a model of the type {kind}")
    current.rows = comp
    if not differs():
        raise refusal(f"The LoRA does not act on COMP tokens in a model of the type {kind}")
    if not base.config.is_encoder_decoder:
        _try_last(base, lambda: run(text, layout.positions, ccm=current), layout, current)


def _try_cache(base: PreTrainedModel) -> None:
    """Text that a model reads in two parts, with a cache, must give the same as text that it reads at once."""
    text, cached = torch.randn(1, 4, 8, dtype=torch.float64), DynamicCache()
    parts = [
        base(inputs_embeds=part, use_cache=True, **given_cache(base, cached)).logits for part in text.split(2, dim=1)
    ]
    if _far(torch.cat(parts, dim=1), base(inputs_embeds=text, use_cache=False).logits):
        raise refusal(f"A model of the type {base.config.model_type} does not read the cache that it is given")


def _try_last(base: PreTrainedModel, run: Callable[[], Tensor], layout: Layout, current: ParallelPass) -> None:
    """A last layer that computes only the columns that are read must give the same there as the whole layer."""
    read = layout.targets != IGNORE
    whole = run()[read]
    attach_last(last_layer(base))
    current.last = last_pass(layout, current.rule, flex=False)
    if _far(run()[read], whole):
        raise refusal(f"The last layer of a model of the type {base.config.model_type} does not compute a part alone")


def _far(found: Tensor, expected: Tensor) -> bool:
    return not bool((found - expected).abs().max() < ROUNDING)  # NaN counts as far


def _decoder() -> tuple[PreTrainedModel, Any, Any, Callable[..., Tensor], dict[str, Any]]:
    config = LlamaConfig(**_SIZES, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
    base = _filled(LlamaForCausalLM(config))
    rule = make_rule("concat")
    layout = build_layout([_SAMPLE], _CONFIG, rule, pad_id=0)

    def run(text: Tensor, positions: Tensor, **given: Any) -> Tensor:
        if "ccm" in given:  # as CCMModel does
            given["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool)
        return base.model(inputs_embeds=text, position_ids=positions, use_cache=False, **given).last_hidden_state

    return base, layout, ParallelPass(layout, rule), run, {}


def _encoder() -> tuple[PreTrainedModel, Any, Any, Callable[..., Tensor], dict[str, Any]]:
    config = T5Config(
        **_SIZES, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0
    )
    base = _filled(T5ForConditionalGeneration(config))
    rule = make_rule("concat")
    layout = build_encoder_layout([_SAMPLE], _CONFIG, rule, pad_id=0)
    nothing = torch.zeros(1, 2, 0, 4, dtype=torch.float64)
    blank = torch.zeros(1, 0, dtype=torch.long)
    entries = [(nothing, nothing)] * config.num_layers
    current = EncoderPass(layout, rule, attention_modules(base)[0], blank.bool(), blank, entries)

    def run(text: Tensor, positions: Tensor, **given: Any) -> Tensor:
        return base.get_encoder()(inputs_embeds=text, **given).last_hidden_state

    return base, layout, current, run, {"decoder_input_ids": torch.tensor([[0, 3, 4]])}


def _filled(base: PreTrainedModel) -> PreTrainedModel:
    """The model in float64, with random weights so large that every token clearly changes those that see it."""
    for parameter in base.parameters():
        parameter.copy_(0.5 * torch.randn_like(parameter))
    return base.double().eval()
