"""The identities of test_model.py on every supported family, with and without sliding windows, under both kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import (
    FAMILIES,
    RULE_NAMES,
    WINDOW,
    WINDOWED,
    assert_close,
    compress_all,
    compress_batch,
    greedy,
    greedy_by_parallel,
    layout_of,
    make_sample,
    online_logits,
    pad_left,
    parallel_logits,
    tiny_base,
    tiny_model,
)
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ccm.adapter import CompLinear
from ccm.base import PROJECTIONS, attention_modules
from ccm.errors import UnsupportedModelError
from ccm.layout import Sample, Step
from ccm.memory import Memory

# Steps, query and whole context all run beyond the window.
ROWS = [make_sample([3, 9, 2], 7, seed=1), make_sample([6, 1, 8], 2, seed=2)]
KERNELS = ("sdpa", "eager")
EAGER = [("concat", "eager"), ("merge", "eager"), ("full", "eager")]


def test_every_supported_model_type_is_tested() -> None:
    assert {make().model_type for make in FAMILIES.values()} == set(PROJECTIONS)


@pytest.mark.parametrize(("rule", "attn"), [*((name, "sdpa") for name in RULE_NAMES), *EAGER])
@pytest.mark.parametrize("family", FAMILIES)
def test_parallel_equals_online(family: str, rule: str, attn: str) -> None:
    model = tiny_model(rule, family=family, attn=attn)
    together = compress_batch(model, ROWS)
    ids, mask = pad_left([row.query.ids for row in ROWS])
    with torch.no_grad():
        batched = model.read(together, ids, mask)
    for i, (row, logits) in enumerate(zip(ROWS, parallel_logits(model, ROWS), strict=True)):
        assert_close(online_logits(model, row), logits)
        assert_close(batched[i, mask[i]], logits)


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("rule", ["concat", "merge", "gist", "pos_control"])
@pytest.mark.parametrize("family", WINDOWED)
def test_parallel_equals_online_beyond_a_sliding_window(family: str, rule: str, positions: str) -> None:
    model = tiny_model(rule, family=family, positions=positions, recurrent=False)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        assert_close(online_logits(model, row), logits)


@pytest.mark.parametrize("rule", ["concat", "merge", "gist", "full"])
@pytest.mark.parametrize("family", ["llama_gqa", *WINDOWED])
def test_parallel_equals_online_with_a_sink(family: str, rule: str) -> None:
    """The sink is visible to all, beyond a window too, and already to the text of the first step."""
    model = tiny_model(rule, family=family, sink=True)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        assert_close(online_logits(model, row), logits)


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_context_equals_the_untouched_stock_model(family: str, attn: str) -> None:
    model, stock = tiny_model("full", family=family, attn=attn), tiny_base(family, attn=attn)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        text = torch.tensor([[*(token for step in row.steps for token in step.ids), *row.query.ids]])
        with torch.no_grad():
            expected = stock(text, use_cache=False).logits[0, -len(row.query.ids) :]
        assert_close(logits, expected)
        assert_close(online_logits(model, row), expected)


@pytest.mark.parametrize("family", WINDOWED)
def test_the_windows_of_the_tiny_models_hide_something(family: str) -> None:
    """Otherwise the tests beyond a window would prove nothing."""
    row = ROWS[0]
    one = tiny_model("full", family=family)
    wide = tiny_model("full", base=tiny_base(family, sliding_window=100))
    assert (online_logits(one, row) - online_logits(wide, row)).abs().max() > 0.01


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("family", WINDOWED)
def test_memory_stays_visible_beyond_a_sliding_window(family: str, attn: str) -> None:
    """A change of the first step reaches the last token of a query that is far longer than all windows together."""
    model = tiny_model("concat", family=family, attn=attn, recurrent=False)
    text = make_sample([], 40, seed=3).query
    early = [Sample([Step(ids), Step([5, 6])], text) for ids in ([7, 8, 9], [9, 8, 50])]
    one, other = parallel_logits(model, early)
    assert (one[-1] - other[-1]).abs().max() > 1e-3
    one, other = (online_logits(model, row) for row in early)
    assert (one[-1] - other[-1]).abs().max() > 1e-3


@pytest.mark.parametrize("rule", ["concat", "merge", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_repeated_parallel_passes(family: str, rule: str) -> None:
    model = tiny_model(rule, family=family)
    count = WINDOW + 3
    expected = [greedy_by_parallel(model, row, count) for row in ROWS]
    together = greedy(model, compress_batch(model, ROWS), [row.query.ids for row in ROWS], count)
    assert together.tolist() == expected


@pytest.mark.parametrize("attn", KERNELS)
@pytest.mark.parametrize("family", WINDOWED)
def test_stacked_memories_equal_single_ones_beyond_a_window(family: str, attn: str) -> None:
    rows = [make_sample([3], 7, seed=1), make_sample([2, 9, 1], 2, seed=2)]
    ids, mask = pad_left([row.query.ids for row in rows])
    for rule in ("concat", "full"):
        model = tiny_model(rule, family=family, attn=attn)
        stacked = Memory.stack([compress_all(model, row) for row in rows])
        with torch.no_grad():
            logits = model.read(stacked, ids, mask)
        for i, row in enumerate(rows):
            assert_close(logits[i, mask[i]], online_logits(model, row))


@pytest.mark.parametrize("family", FAMILIES)
def test_eager_equals_sdpa(family: str) -> None:
    one, other = (parallel_logits(tiny_model("merge", family=family, attn=attn), ROWS) for attn in KERNELS)
    for a, b in zip(one, other, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_projection_of_every_layer_is_conditional(family: str) -> None:
    model = tiny_model(family=family)
    attentions = attention_modules(model.base)
    assert len(attentions) == model.base.config.num_hidden_layers
    linears = [m for attention in attentions for m in attention.modules() if type(m) is CompLinear]
    assert len(linears) == len(attentions) * len(PROJECTIONS[model.base.config.model_type])
    assert len(model.adapter_tensors()) == 2 * len(linears) + 1


@pytest.mark.parametrize("family", FAMILIES)
def test_every_adapter_tensor_is_trained(family: str) -> None:
    """All but what feeds nothing: in the last layer, only K and V of a COMP token are ever read."""
    model = tiny_model(family=family)
    rows = [Sample(row.steps, Step(row.query.ids, row.query.ids)) for row in ROWS]
    model(layout_of(model, rows)).loss.backward()
    idle = {name for name, tensor in model.adapter_tensors().items() if not tensor.grad.abs().max()}
    assert all(".layers.2." in name and name.split(".")[-3] in ("q_proj", "o_proj", "dense") for name in idle)


@pytest.mark.parametrize(
    "stock",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)),
        lambda: BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)),
        lambda: T5ForConditionalGeneration(
            T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
    ],
    ids=["gpt2", "bloom", "t5"],
)
def test_an_unsupported_family_is_refused_with_the_supported_ones(stock: Callable[[], PreTrainedModel]) -> None:
    base = stock()
    with pytest.raises(UnsupportedModelError, match=f"{type(base).__name__}.*{base.config.model_type}") as refusal:
        tiny_model(base=base)
    assert all(family in str(refusal.value) for family in PROJECTIONS)
