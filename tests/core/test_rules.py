"""The table of rules, and each rule's two faces against one another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import (
    TABLE,
    Row,
    assert_close,
    ccm_config,
    compress_all,
    compress_batch,
    layout_of,
    make_sample,
    online_logits,
    pad_left,
    parallel_logits,
    samples,
    tiny_base,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ccm.core.errors import ConfigError, IrreversibleError
from ccm.core.rules import EMA, RULES, Concat, Merge, Rule, _unroll, make_rule
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample, Step

MIXING = [row for row in TABLE if row.mixes and not row.needs_content]  # whose weights are constants
SAMPLE = make_sample([3, 5, 2], 3)
rows = pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)


def test_every_registered_rule_has_a_row() -> None:
    assert {row.name for row in TABLE} == set(RULES)


@rows
def test_what_a_rule_says_of_itself(row: Row) -> None:
    rule = make_rule(row.name, row.options)
    assert rule.name == row.name
    assert rule.compresses == row.compresses
    assert rule.keeps_text == row.keeps_text
    assert rule.reversible == row.reversible
    assert rule.forgets == row.forgets
    assert rule.adapters == row.adapters
    assert rule.needs_content == row.needs_content


@rows
def test_when_comp_tokens_follow(row: Row) -> None:
    rule = make_rule(row.name, row.options)
    expected = {"step": [True, True, True], "context": [False, False, True], "never": [False, False, False]}
    assert [rule.compresses_after(step, 3) for step in (1, 2, 3)] == expected[row.compresses]


@pytest.mark.parametrize("sink", [False, True])
@rows
def test_entries_grow_as_the_table_says(row: Row, sink: bool) -> None:
    model = tiny_model(row.name, rule_options=row.options, sink=sink)
    extra = int(sink) if row.compresses == "step" else 0
    memory, entries = model.empty_memory(), []
    for step in SAMPLE.steps:
        memory = model.compress(memory, torch.tensor([step.ids]))
        entries.append(memory.entries[0] - extra)
    assert tuple(entries) == row.open
    assert model.close(memory).entries[0] == row.closed + (row.sink if sink else 0)


@rows
def test_rollback_works_exactly_where_steps_are_reversible(row: Row) -> None:
    model = tiny_model(row.name, rule_options=row.options)
    memory = compress_all(model, SAMPLE)
    if row.reversible:
        assert memory.rollback(1).entries == (row.open[1],)
    else:
        with pytest.raises(IrreversibleError, match=row.name):
            memory.rollback(1)


@rows
def test_options_of_a_rule_are_named_where_one_is_unknown(row: Row) -> None:
    with pytest.raises(ConfigError, match=f"'{row.name}'.*'wait'.*{next(iter(row.options), 'none')}"):
        make_rule(row.name, {"wait": 1})


@pytest.mark.parametrize("weight", [-0.1, 0.0, 1.0, 2.0, float("nan")])
def test_a_weight_of_ema_outside_0_to_1_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        EMA(weight)


def test_a_subclass_without_a_name_registers_nothing() -> None:
    try:
        type("Variant", (Merge,), {})
        assert RULES["merge"] is Merge
    finally:
        RULES["merge"] = Merge


def test_the_mean_of_equal_steps_is_the_step_and_the_mean_is_running() -> None:
    fresh = torch.randn(6, 1, 1, 2, 4)
    merge, memory = Merge(), torch.zeros(1, 1, 0, 4)
    for t, new in enumerate(fresh, start=1):
        memory = merge.fold(memory, new, merge.write(0, torch.tensor([t]), None))
        assert_close(memory, fresh[:t].mean(0), depth=1)
        assert_close(merge.fold(memory, memory, merge.write(0, torch.tensor([t + 1]), None)), memory, depth=1)


def test_a_long_running_mean_in_half_precision_does_not_drift() -> None:
    merge, memory, new = Merge(), torch.zeros(1, 1, 0, 1), torch.tensor([[[[1.5]]]]).bfloat16()
    memory = memory.bfloat16()
    for t in range(1, 1001):
        memory = merge.fold(memory, new, merge.write(0, torch.tensor([t]), None))
    assert memory.dtype == torch.bfloat16
    assert memory.item() == 1.5


def test_a_saturated_gate_in_half_precision_lets_nothing_of_the_step_before_through() -> None:
    mix = _unroll(torch.ones(1, 1, 3, 1, dtype=torch.bfloat16))[0, 0, ..., 0]
    assert_close(mix, torch.eye(3), depth=1)


@pytest.mark.parametrize("row", MIXING, ids=lambda row: row.name)
def test_both_faces_mix_alike(row: Row) -> None:
    @given(st.integers(1, 12), st.integers(1, 3))
    def check(steps: int, n_tok: int) -> None:
        rule = make_rule(row.name, row.options)
        fresh = torch.randn(steps, 1, 1, n_tok, 4, dtype=torch.float64)
        mixed = rule.mixing(0, steps, n_tok, None).double() @ fresh[:, 0, 0].reshape(1, 1, steps * n_tok, 4)
        memory = fresh[0, :, :, :0]
        for t in range(steps):
            memory = rule.fold(memory, fresh[t], rule.write(0, torch.tensor([t + 1]), None))
            assert_close(memory, mixed[:, :, t * n_tok : (t + 1) * n_tok], depth=1)

    check()


@pytest.mark.parametrize("row", MIXING, ids=lambda row: row.name)
def test_memories_are_averages_of_the_steps_so_far(row: Row) -> None:
    mix = make_rule(row.name, row.options).mixing(0, 5, 2, None)[0, 0]
    assert_close(mix.sum(1), torch.ones(10, dtype=mix.dtype), depth=1)
    by_step = mix.reshape(5, 2, 5, 2)
    assert (by_step[:, 0, :, 1] == 0).all()
    assert (by_step[:, 1, :, 0] == 0).all()
    assert (by_step[:, 0, :, 0].triu(1) == 0).all()


def test_ema_weighs_the_first_step_fully() -> None:
    mix = EMA(0.25).mixing(0, 3, 1, None)[0, 0]
    assert_close(mix, torch.tensor([[1.0, 0, 0], [0.75, 0.25, 0], [0.5625, 0.1875, 0.25]]), depth=1)
    assert EMA(0.25).write(0, torch.tensor([1, 2]), None).flatten().tolist() == [1.0, 0.25]


def test_every_row_of_a_batch_counts_its_own_steps() -> None:
    weights = Merge().write(0, torch.tensor([1, 2, 5]), None)
    assert_close(weights.flatten(), torch.tensor([1.0, 0.5, 0.2]), depth=1)


def test_concat_keeps_all_and_needs_no_mixing() -> None:
    old, new = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 2, 4)
    assert torch.equal(Concat().fold(old, new, None), torch.cat([old, new], dim=2))
    assert Concat().mixing(0, 3, 2, None) is None
    assert Concat().write(0, torch.tensor([3]), None) is None


@pytest.mark.parametrize("bias", ["x", float("inf"), float("nan"), True, None])
def test_a_bias_of_the_gate_that_is_no_finite_number_is_refused(bias: Any) -> None:
    with pytest.raises(ConfigError, match=f"bias of the rule 'gate' is {bias!r}; it must be a finite number"):
        make_rule("gate", {"bias": bias})


@pytest.mark.parametrize(("options", "bias"), [({}, -1.0), ({"bias": 2.0}, 2.0), ({"bias": 0}, 0.0)])
def test_gates_begin_with_the_bias_of_the_options_and_blind_to_the_content(options: dict, bias: float) -> None:
    rule = CCMModel(tiny_base("llama_gqa"), ccm_config("gate", n_tok=3, rule_options=options)).rule
    assert torch.equal(rule.weight, torch.zeros(3, 2, 3, 32))  # layers, kv heads, N, hidden
    assert torch.equal(rule.bias, torch.full((3, 2, 3), bias))


@pytest.mark.parametrize("bias", [-1.0, 2.0])
def test_gates_begin_as_an_exponential_moving_average(bias: float) -> None:
    gate, content = make_rule("gate", {"bias": bias}), torch.randn(3, 10, 8)
    gate.build(layers=1, kv_heads=2, hidden=8, n_tok=2)
    ema = EMA(1 / (1 + math.exp(-bias)))
    mix = gate.mixing(0, 5, 2, content)
    assert_close(mix, ema.mixing(0, 5, 2, None).expand(3, 2, 10, 10), depth=1)
    step = torch.tensor([1, 2, 5])  # of the three rows
    weights = gate.write(0, step, content[:, :2])
    assert_close(weights, ema.write(0, step, None).expand(3, 2, 2, 1), depth=1)


@pytest.mark.covers("family", "sink recurrent")
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("family", ["llama_gqa", "gemma3", "gpt_neox"])
def test_gated_parallel_equals_online(family: str, sink: bool, recurrent: bool) -> None:
    model = tiny_model("gate", family=family, sink=sink, recurrent=recurrent)

    @given(samples(max_rows=3))
    def check(batch: list[Sample]) -> None:
        for sample, logits in zip(batch, parallel_logits(model, batch), strict=True):
            assert_close(online_logits(model, sample), logits)

    check()


def test_gated_batch_online_equals_single_rows() -> None:
    model = tiny_model("gate", sink=True)
    batch = [make_sample([3, 5], 4, seed=1), make_sample([6, 1], 2, seed=2)]
    ids, mask = pad_left([sample.query.ids for sample in batch])
    with torch.no_grad():
        logits = model.read(compress_batch(model, batch), ids, mask)
    for i, sample in enumerate(batch):
        assert_close(logits[i, mask[i]], online_logits(model, sample))


def test_the_gate_depends_on_the_content() -> None:
    model = tiny_model("gate")
    one, other = model.rule.write_weight(1, torch.tensor([[1]]), torch.randn(2, 1, 2, 32)).unbind()
    assert (one - other).abs().min() > 1e-3  # in every head and slot
    before = online_logits(model, SAMPLE)
    with torch.no_grad():
        model.rule.bias[2] += 1
    assert (online_logits(model, SAMPLE) - before).abs().max() > 1e-3


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 2, 1), (2, 3, 0)])
def test_every_layer_head_and_slot_has_a_gate_of_its_own(place: tuple[int, int, int]) -> None:
    layer, head, slot = place
    rule, content = tiny_model("gate").rule, torch.randn(1, 4, 2, 32)
    step = torch.arange(1, 5)[None]
    before = torch.stack([rule.write_weight(i, step, content)[0] for i in range(3)])  # layers, heads, steps, slots
    with torch.no_grad():
        rule.weight[place] += 0.1
    changed = torch.stack([rule.write_weight(i, step, content)[0] for i in range(3)]) != before
    expected = torch.zeros_like(changed)
    expected[layer, head, :, slot] = True
    assert torch.equal(changed, expected)


def test_the_gate_is_trained_in_every_layer() -> None:
    model = tiny_model("gate")
    sample = Sample(SAMPLE.steps, Step([5, 6], [6, 7]))
    model(layout_of(model, [sample])).loss.backward()
    assert (model.rule.weight.grad.abs().amax((1, 2, 3)) > 0).all()
    assert (model.rule.bias.grad.abs().amax((1, 2)) > 0).all()
    assert model.rule.weight.grad.isfinite().all()
    assert {"rule.weight", "rule.bias"} < set(model.adapter_tensors())


def test_the_gate_travels_with_the_adapter(tmp_path: Path) -> None:
    model = tiny_model("gate")
    model.save_pretrained(tmp_path)
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base())
    assert torch.equal(loaded.rule.weight, model.rule.weight)
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))
    assert loaded.origin.adapter == model.origin.adapter
    with torch.no_grad():
        loaded.rule.bias[0] += 1
    assert loaded.origin.adapter != model.origin.adapter
    assert CCMModel.from_pretrained(tmp_path, tiny_base(), rule="full").rule.name == "full"  # which owns no gates


def gate_mixing(bias: float) -> tuple[Rule, Tensor]:
    """A rule whose gates all tend to one side, and its mixing of 80 steps of random content."""
    rule = make_rule("gate", {"bias": bias})
    rule.build(layers=1, kv_heads=2, hidden=8, n_tok=2)
    with torch.no_grad():
        rule.weight.normal_(std=0.2)
    return rule, rule.mixing(0, 80, 2, torch.randn(3, 160, 8))


@pytest.mark.parametrize("bias", [-30.0, -5.0, 0.0, 5.0, 12.0, 18.0, 40.0])
def test_gated_weights_of_many_steps_are_finite(bias: float) -> None:
    """A sigmoid rounds to exactly 1 in float32 from about 17 on: a step that overwrites the memory is legal."""
    rule, mix = gate_mixing(bias)
    assert mix.isfinite().all()
    assert_close(mix.sum(-1), torch.ones_like(mix.sum(-1)))
    mix.square().sum().backward()
    assert rule.weight.grad.isfinite().all()
    assert rule.bias.grad.isfinite().all()


def test_a_gate_that_is_fully_open_keeps_only_the_last_step() -> None:
    _, mix = gate_mixing(40.0)
    assert_close(mix, torch.eye(160).expand_as(mix))


def test_a_gate_that_is_fully_shut_keeps_only_the_first_step() -> None:
    _, mix = gate_mixing(-40.0)
    assert_close(mix[..., :2], torch.eye(2).repeat(80, 1).expand(3, 2, 160, 2))


@pytest.fixture(autouse=True)
def _registered_rules_stay_the_same() -> Iterator[None]:
    before = dict(RULES)
    yield
    assert before == RULES
