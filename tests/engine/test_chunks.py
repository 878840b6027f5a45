"""Chunked attention equals attention over the whole mask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import KERNELS, RULE_NAMES, assert_close, ccm_config, layout_of, make_sample, samples, tiny_model
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ccm.core.rules import make_rule
from ccm.engine.attention import ParallelPass
from ccm.engine.call import Call
from ccm.engine.layout import Sample, build_layout
from ccm.engine.reach import Reach

MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccm.engine.chunks.SIZE", 4)


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccm.engine.chunks.MOST", 1.0)


def pass_of(rule: str, rows: list[Sample], **settings: bool) -> ParallelPass:
    made = make_rule(rule)
    return ParallelPass(build_layout(rows, ccm_config(rule, n_tok=2, **settings), made, pad_id=0), made)


@pytest.mark.covers("rule", "recurrent reach")
@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("reach", [None, Reach(3), Reach(4, chunked=True)], ids=str)
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_chunks_hold_the_mask_of_every_rule(rule: str, recurrent: bool, reach: Reach | None) -> None:
    @example([make_sample([9] * 4, 2), make_sample([9], 2, head=6)], False)  # the head comes in view within a chunk
    @given(samples(max_rows=3, max_steps=9, longest_head=5), st.booleans())
    def check(rows: list[Sample], sink: bool) -> None:
        current = pass_of(rule, rows, recurrent=recurrent, sink=sink)
        whole, chunks = current.mask(reach)[:, 0], current._chunks(reach)
        assert chunks is not None
        batch, n, width = chunks.columns.shape
        mask = chunks.mask.reshape(batch, n, 4, width)
        found = torch.zeros(batch, n, 4, whole.shape[2], dtype=torch.bool)
        found.scatter_(3, chunks.columns[:, :, None].expand(mask.shape), mask)
        assert found.flatten(1, 2)[:, : whole.shape[1]].equal(whole)
        assert mask.any(-1).all()

    check()


@pytest.mark.usefixtures("wide")
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=3),
    st.sampled_from(["concat", "merge"]),
    st.integers(0, 99),
)
def test_chunks_give_what_the_whole_mask_gives(lengths: list[list[int]], rule: str, seed: int) -> None:
    current = pass_of(rule, [make_sample(row, 4, seed) for row in lengths])
    chunks, mask = current._chunks(None), current.mask()
    assert chunks is not None
    torch.manual_seed(seed)
    batch, _, length, size = mask.shape
    query, key, value = (
        torch.randn(batch, heads, columns, 8, dtype=torch.float64, requires_grad=True)
        for heads, columns in ((4, length), (2, size), (2, size))
    )
    inputs = (query, key, value)
    whole = sdpa_attention_forward(MODULE, *inputs, mask)[0]
    parted = chunks.attend(Call(sdpa_attention_forward, MODULE, *inputs, None, {}))[0]
    assert_close(parted, whole, dtype=torch.float64)
    weight = torch.randn_like(whole)
    wanted = torch.autograd.grad((whole * weight).sum(), inputs)
    for got, want in zip(torch.autograd.grad((parted * weight).sum(), inputs), wanted, strict=True):
        assert_close(got, want, dtype=torch.float64)


def test_chunks_are_as_wide_as_what_they_see_and_a_wide_mask_has_none() -> None:
    rows = [make_sample([4] * 8, 4)]  # a step and its COMP tokens are six columns: a chunk sees two steps at most
    isolated = pass_of("concat", rows, recurrent=False)._chunks(None)
    assert isolated is not None
    assert isolated.columns.shape == (1, 13, 20)  # the query's chunk: the COMP tokens of eight steps, and itself
    assert isolated.mask.shape == (13, 1, 4, 20)
    assert pass_of("full", rows)._chunks(None) is None


@pytest.mark.covers("rule", "attn", cases=8)
@pytest.mark.parametrize("rule", ["concat", "merge"])
@pytest.mark.parametrize(("family", "attn"), KERNELS)
def test_every_family_gives_the_same_in_chunks(
    family: str, rule: str, attn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(rule, family=family, attn=attn, sink=True)
    layout = layout_of(model, [make_sample([7, 5, 6] * 3, 4), make_sample([3, 7] * 3, 5)])
    with torch.no_grad():
        assert ParallelPass(layout, model.rule)._chunks(None) is not None
        parted = model(layout).logits
        monkeypatch.setattr("ccm.engine.chunks.SIZE", 64)
        assert ParallelPass(layout, model.rule)._chunks(None) is None  # too short for chunks of the usual size
        whole = model(layout).logits
    read = layout.blocks >= 0  # what padding gives is nobody's business
    assert_close(parted[read], whole[read])
