"""Chunked attention equals attention over the whole mask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers import KERNELS, assert_close, layout_of, make_sample, tiny_model
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ccm.engine.attention import ParallelPass
from ccm.engine.call import Call
from ccm.engine.chunks import SIZE, Chunks

MODULE = SimpleNamespace(num_key_value_groups=2, is_causal=True)


def banded(batch: int, length: int, extra: int, near: int, seed: int) -> Tensor:
    """A mask (B, 1, T, T + extra) of a near past, some columns of the extra ones, and rows of padding that see one."""
    q, k = torch.arange(length)[:, None], torch.arange(length + extra)[None]
    mask = ((q - k < near) & (k <= q))[None, None].repeat(batch, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    mask[..., length:] = torch.rand(batch, 1, length, extra, generator=generator) < 0.1
    return mask


@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 5 * SIZE),
    extra=st.integers(0, 40),
    near=st.integers(1, 2 * SIZE),
    seed=st.integers(0, 99),
)
def test_chunks_give_what_the_whole_mask_gives(batch: int, length: int, extra: int, near: int, seed: int) -> None:
    mask = banded(batch, length, extra, near, seed)
    chunks = Chunks.of(mask)
    assume(chunks is not None)
    torch.manual_seed(seed)
    query = torch.randn(batch, 4, length, 8, dtype=torch.float64, requires_grad=True)
    key = torch.randn(batch, 2, length + extra, 8, dtype=torch.float64, requires_grad=True)
    value = torch.randn(batch, 2, length + extra, 8, dtype=torch.float64, requires_grad=True)
    inputs = (query, key, value)
    whole = sdpa_attention_forward(MODULE, *inputs, mask)[0]
    parted = chunks.attend(Call(sdpa_attention_forward, MODULE, *inputs, None, {}))[0]
    assert_close(parted, whole, dtype=torch.float64)
    weight = torch.randn_like(whole)
    wanted = torch.autograd.grad((whole * weight).sum(), inputs)
    for got, want in zip(torch.autograd.grad((parted * weight).sum(), inputs), wanted, strict=True):
        assert_close(got, want, dtype=torch.float64)


def test_a_narrow_mask_is_parted_and_a_wide_one_is_not() -> None:
    narrow = Chunks.of(banded(2, 8 * SIZE, 0, 10, 0))
    assert narrow is not None
    assert narrow.columns.shape == (2, 8, SIZE + 9)
    assert narrow.mask.shape == (16, 1, SIZE, SIZE + 9)
    assert Chunks.of(torch.ones(1, 1, 8 * SIZE, 8 * SIZE, dtype=torch.bool).tril()) is None


@pytest.mark.parametrize("rule", ["concat", "merge"])
@pytest.mark.parametrize(("family", "attn"), KERNELS)
def test_every_family_gives_the_same_in_chunks(
    family: str, rule: str, attn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(rule, family=family, attn=attn, sink=True)
    layout = layout_of(model, [make_sample([7, 5, 6] * 3, 4), make_sample([3, 7] * 3, 5)])
    mask = ParallelPass(layout, model.rule).mask()
    assert Chunks.of(mask) is None  # too short for chunks of the usual size
    with torch.no_grad():
        whole = model(layout).logits
        monkeypatch.setattr("ccm.engine.chunks.SIZE", 4)
        assert Chunks.of(mask) is not None
        parted = model(layout).logits
    read = layout.blocks >= 0  # what padding gives is nobody's business
    assert_close(parted[read], whole[read])
