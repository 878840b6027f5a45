"""The identities of test_model.py on every supported family, with and without sliding windows, under both kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from families import PAGE, ROWS, SEEN, eager_sdpa, generates, narrow_base, page, parallel_online, seen_beyond
from helpers import (
    COMPRESSING,
    EAGER_ONLY,
    FAMILIES,
    KERNELS,
    TOLERANCE,
    WINDOWED,
    assert_close,
    compress_all,
    layout_of,
    make_sample,
    online_logits,
    pad_left,
    parallel_logits,
    tiny_base,
    tiny_model,
)
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BloomConfig,
    BloomForCausalLM,
    PreTrainedModel,
)

from ccm.core.errors import UnsupportedModelError
from ccm.engine.families import PROJECTIONS, attention_modules
from ccm.engine.layout import Sample, Step
from ccm.engine.lora import CompLinear
from ccm.engine.memory import Memory

LIMITED = [(family, attn) for family, attn in KERNELS if family in WINDOWED]
CASES = [(f, rule, None) for f in FAMILIES for rule in COMPRESSING if rule != "ema"]  # full: by stock; ema is a merge
CASES += [(f, rule, "eager") for f in FAMILIES if f not in EAGER_ONLY for rule in ("concat", "merge")]
WITH_SINK = [(f, rule) for f in FAMILIES for rule in ("concat", "merge")]
WITH_SINK += [(f, rule) for f in ("llama_gqa", *WINDOWED) for rule in ("gist", "full")]


def test_every_supported_model_type_is_tested() -> None:
    assert {make().model_type for make in FAMILIES.values()} | {"t5"} == set(PROJECTIONS)  # T5: tests/test_seq2seq.py


@pytest.mark.covers("family", "rule attn")
@pytest.mark.parametrize(("family", "rule", "attn"), CASES)
def test_parallel_equals_online(family: str, rule: str, attn: str | None) -> None:
    assert parallel_online(family, rule, attn) < TOLERANCE


@pytest.mark.covers("family", "rule positions")
@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("rule", ["concat", "merge", "gist", "pos_control"])
@pytest.mark.parametrize("family", WINDOWED)
def test_parallel_equals_online_beyond_a_limit(family: str, rule: str, positions: str) -> None:
    assert parallel_online(family, rule, positions=positions, recurrent=False) < TOLERANCE


@pytest.mark.covers("rule", cases=5)
@pytest.mark.parametrize(("family", "rule"), WITH_SINK)
def test_parallel_equals_online_with_a_sink(family: str, rule: str) -> None:
    """The sink is visible to all, beyond a window too, and already to the text of the first step."""
    assert parallel_online(family, rule, sink=True, n_tok=3) < TOLERANCE


@pytest.mark.covers("family", "attn")
@pytest.mark.parametrize(("family", "attn"), KERNELS)
def test_full_context_equals_the_untouched_stock_model(family: str, attn: str) -> None:
    model, stock = tiny_model("full", family=family, attn=attn), tiny_base(family, attn=attn)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        text = torch.tensor([[*(token for step in row.steps for token in step.ids), *row.query.ids]])
        with torch.no_grad():
            expected = stock(text, use_cache=False).logits[0, -len(row.query.ids) :]
        assert_close(logits, expected)
        assert_close(online_logits(model, row), expected)


@pytest.mark.parametrize("family", WINDOWED)
def test_the_limits_of_the_tiny_models_hide_something(family: str) -> None:
    """Otherwise the tests beyond a limit would prove nothing."""
    row, name = ROWS[0], "attention_chunk_size" if family == "llama4" else "sliding_window"
    one, wide = (tiny_model("full", base=tiny_base(family, **sizes)) for sizes in ({}, {name: 100}))
    assert (online_logits(one, row) - online_logits(wide, row)).abs().max() > 0.01


@pytest.mark.covers(cases=4)
@pytest.mark.parametrize(("family", "attn"), LIMITED)
def test_the_memory_of_every_layer_is_seen_beyond_all_limits(family: str, attn: str) -> None:
    assert seen_beyond(family, attn) > SEEN


@pytest.mark.covers(cases=4)
@pytest.mark.parametrize(("family", "attn"), LIMITED)
def test_parallel_equals_online_where_no_layer_sees_all_text(family: str, attn: str) -> None:
    """The first step reaches the end of a query that is far longer than all limits together, in both ways."""
    model = tiny_model("concat", base=narrow_base(family, attn), recurrent=False)
    text = make_sample([], 40, seed=3).query
    early = [Sample([Step(ids), Step([5, 6])], text) for ids in ([7, 8, 9], [9, 8, 50])]
    one, other = parallel_logits(model, early)
    assert (one[-1] - other[-1]).abs().max() > SEEN
    assert_close(online_logits(model, early[0]), one)
    assert_close(online_logits(model, early[1]), other)


@pytest.mark.covers("rule", cases=5)
@pytest.mark.parametrize("rule", ["concat", "merge", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_generation_equals_repeated_parallel_passes(family: str, rule: str) -> None:
    assert generates(family, rule)


@pytest.mark.covers(cases=4)
@pytest.mark.parametrize(("family", "attn"), LIMITED)
def test_stacked_memories_equal_single_ones_beyond_a_limit(family: str, attn: str) -> None:
    rows = [make_sample([3], 7, seed=1), make_sample([2, 9, 1], 2, seed=2)]
    ids, mask = pad_left([row.query.ids for row in rows])
    for rule in ("concat", "full"):
        model = tiny_model(rule, family=family, attn=attn)
        stacked = Memory.stack([compress_all(model, row) for row in rows])
        with torch.no_grad():
            logits = model.read(stacked, ids, mask)
        for i, row in enumerate(rows):
            assert_close(logits[i, mask[i]], online_logits(model, row))


@pytest.mark.covers(cases=5)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in EAGER_ONLY])
def test_eager_equals_sdpa(family: str) -> None:
    assert eager_sdpa(family) < TOLERANCE


@pytest.mark.parametrize("family", EAGER_ONLY)
def test_a_softcap_is_never_left_out(family: str) -> None:
    """Of sdpa's functions none has it, and not every version of transformers refuses them."""
    ids, model = torch.tensor([ROWS[0].query.ids]), tiny_model(family=family)
    capped, free = (tiny_base(family, attn="eager", attn_logit_softcapping=cap) for cap in (2.0, None))
    with torch.no_grad():
        logits = model.read(model.empty_memory(), ids)
        assert_close(logits, capped(ids).logits)
        assert (logits - free(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_no_loss_of_the_routers_is_computed(family: str) -> None:
    """It would be that of frozen weights, and it cannot read the mask of a parallel pass."""
    model = tiny_model(base=tiny_base(family, output_router_logits=True))
    for actual, expected in zip(
        parallel_logits(model, ROWS), parallel_logits(tiny_model(family=family), ROWS), strict=True
    ):
        assert torch.equal(actual, expected)


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
    assert all(".2." in name and name.split(".")[-3] in ("q_proj", "o_proj", "dense", "c_proj") for name in idle)


@pytest.mark.slow
def test_the_page_is_what_the_checks_give() -> None:
    """Where it is not: `python tests/families.py` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(
    "stock",
    [
        lambda: BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=16, n_layer=1, n_head=2)),
        lambda: BartForConditionalGeneration(
            BartConfig(vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16)
        ),
    ],
    ids=["bloom", "bart"],
)
def test_an_unsupported_family_is_refused_with_the_supported_ones(stock: Callable[[], PreTrainedModel]) -> None:
    base = stock()
    with pytest.raises(UnsupportedModelError, match=f"{type(base).__name__}.*{base.config.model_type}") as refusal:
        tiny_model(base=base)
    assert all(family in str(refusal.value) for family in PROJECTIONS)
