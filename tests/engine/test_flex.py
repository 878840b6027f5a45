"""flex_attention gives what the whole mask gives. A CPU runs it forward only, uncompiled; a GPU both ways."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from helpers import RULE_NAMES, WINDOWED, assert_close, layout_of, make_sample, samples, tiny_base, tiny_model
from hypothesis import given
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ccm.engine import flex
from ccm.engine.attention import SDPA, ParallelPass, WholeMask
from ccm.engine.call import Call
from ccm.engine.decoder import CCMModel
from ccm.engine.flex import Flex
from ccm.engine.layout import Sample, Step
from ccm.engine.reach import Reach

ROWS = [make_sample([7, 5, 6], 4, seed=1), make_sample([3, 9], 5, seed=2)]
LONG = {"hidden_size": 64, "max_position_embeddings": 4096}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> list[Flex]:
    """flex_attention wherever it is wanted; gives those that were made."""
    made: list[Flex] = []
    kept = flex.create_block_mask

    def note(*arguments: Any, **options: Any) -> Any:
        made.append(Flex(kept(*arguments, **options)))
        return made[-1].blocks

    monkeypatch.setattr(flex, "lacks", lambda query, options: "")
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    monkeypatch.setattr(flex, "create_block_mask", note)
    return made


@torch.no_grad()
def logits_of(model: CCMModel, rows: list[Sample], *, wanted: bool) -> Tensor:
    """At all that is no padding."""
    model.flex = wanted
    layout = layout_of(model, rows)
    return model(layout).logits[layout.blocks >= 0]


def at_comp_tokens(seen: Tensor, current: ParallelPass) -> Tensor:
    """What is seen of memory columns (B, T, T + M), told of the COMP tokens (B, T, T) whose copies they are; none
    is seen twice, which would weigh it double."""
    length, columns = seen.shape[1], current.layout.comp_columns[:, None].expand(-1, seen.shape[1], -1)
    found = seen[..., :length].long()
    found = found.scatter_add(2, columns, seen[..., length:].long())
    assert found.max() == 1
    return found.bool()


@pytest.mark.covers("rule", "reach sink recurrent")
@pytest.mark.parametrize("reach", [None, Reach(3), Reach(4, chunked=True)], ids=str)
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_blocks_hold_the_mask_of_every_rule(rule: str, sink: bool, recurrent: bool, reach: Reach | None) -> None:
    model = tiny_model(rule, sink=sink, recurrent=recurrent)

    @given(samples(max_rows=3, longest_head=5))
    def check(rows: list[Sample]) -> None:
        current = ParallelPass(layout_of(model, rows), model.rule)
        mask = current.mask(reach)[:, 0]
        batch, length, columns = len(mask), mask.shape[1], mask.shape[1] + current.layout.comp_columns.shape[1]
        query = torch.zeros(batch, 1, length, 16, device="cpu")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flex, "lacks", lambda query, options: "")
            found = Flex.of(current.mask_function(reach, apart=True), query, columns, {}, True)
        assert found is not None
        b, q, k = (torch.arange(size) for size in (batch, length, columns))
        seen = found.blocks.mask_mod(b[:, None, None], torch.tensor(0), q[:, None], k)
        assert torch.equal(seen if current.mixes else at_comp_tokens(seen, current), mask)

    check()


@pytest.mark.covers("sink", cases=4)
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_every_rule_gives_the_same_logits(rule: str, sink: bool, on_cpu: list[Flex]) -> None:
    model = tiny_model(rule, family="llama_gqa", sink=sink)
    whole = logits_of(model, ROWS, wanted=False)
    assert not on_cpu
    assert_close(logits_of(model, ROWS, wanted=True), whole)
    assert len(on_cpu) == 1  # for all three layers


@pytest.mark.covers("rule", cases=4)
@pytest.mark.parametrize("rule", ["concat", "merge"])
@pytest.mark.parametrize("family", ["qwen3", "gpt_neox", *WINDOWED])
def test_families_with_and_without_windows_give_the_same_logits(family: str, rule: str, on_cpu: list[Flex]) -> None:
    model = tiny_model(rule, family=family, sink=True)
    whole = logits_of(model, ROWS, wanted=False)
    assert_close(logits_of(model, ROWS, wanted=True), whole)
    kinds = set(getattr(model.base.config, "layer_types", None) or ["full"])  # of layers: each has a mask
    assert len(on_cpu) == (len(kinds) if model.base.config._attn_implementation == SDPA else 0)  # Gemma 2 is eager


def call_of(query: torch.Tensor) -> Call:
    return Call(sdpa_attention_forward, None, query, query, query, None, {})


def test_it_is_taken_by_itself_where_rows_are_long_and_see_few_blocks(on_cpu: list[Flex]) -> None:
    concat, full = tiny_model("concat", family="llama_gqa"), tiny_model("full", family="llama_gqa")

    def way(model: CCMModel, row: Sample) -> object:
        layout = layout_of(model, [row])
        query = torch.zeros(1, 4, layout.ids.shape[1], 16)
        return ParallelPass(layout, model.rule, flex=None)._plan(call_of(query))

    assert isinstance(way(concat, make_sample([60] * 20, 40)), Flex)
    assert 70 < on_cpu[0].blocks.sparsity() < 75  # of ten rows of blocks each sees itself, the one before, the memory
    assert not isinstance(way(full, make_sample([60] * 20, 40)), Flex)
    assert len(on_cpu) == 2  # its blocks were counted
    assert not isinstance(way(concat, make_sample([60] * 8, 40)), Flex)
    assert len(on_cpu) == 2  # too short to be asked


def test_eager_attention_stays_eager(on_cpu: list[Flex]) -> None:
    model = tiny_model("concat", attn="eager")
    logits_of(model, ROWS, wanted=True)
    assert not on_cpu


def test_where_it_does_not_run_it_says_so_once_and_the_result_is_the_same(caplog: pytest.LogCaptureFixture) -> None:
    flex._note.cache_clear()
    model = tiny_model("merge")
    with caplog.at_level(logging.WARNING, "ccm.engine.flex"):
        whole = logits_of(model, ROWS, wanted=False)
        assert not caplog.records
        for _ in range(2):
            assert torch.equal(logits_of(model, ROWS, wanted=True), whole)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "flex_attention was asked for, but is not used"
    ]
    assert "a cpu device" in caplog.text


@pytest.mark.parametrize("option", ["dropout", "softcap", "s_aux"])
def test_what_it_does_not_have_is_left_to_the_others(option: str) -> None:
    query = torch.zeros(1, 1, 2, 16, device="meta")
    assert "meta device" in flex.lacks(query, {})
    on_cuda = type("Query", (), {"device": torch.device("cuda"), "shape": (1, 1, 2, 16)})()
    assert flex.lacks(on_cuda, {option: 0.0, "scaling": 0.5}) == ""
    assert option in flex.lacks(on_cuda, {option: 0.1})


def test_seen_and_the_whole_mask_are_one_when_nothing_is_said() -> None:
    model = tiny_model("concat")
    layout = layout_of(model, ROWS)
    query = torch.zeros(2, 4, layout.ids.shape[1], 16)
    assert isinstance(ParallelPass(layout, model.rule)._plan(call_of(query)), WholeMask)


@pytest.mark.slow
def test_few_compilations_serve_batches_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond torch's limit it would go on uncompiled, with scores of T x S in memory.

    What is counted are the graphs that are asked for; no code is made of them.
    """
    monkeypatch.setattr(flex, "lacks", lambda query, options: "")
    compiled = torch.compile(flex_attention, backend="eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    model = tiny_model("concat", base=tiny_base("llama_gqa", **LONG))
    torch._dynamo.reset()
    counters.clear()
    sizes = random.Random(0)
    for _ in range(12):
        lengths = [[sizes.randint(20, 60) for _ in range(sizes.randint(2, 6))] for _ in range(sizes.randint(1, 4))]
        rows = [make_sample(row, sizes.randint(3, 20), seed=seed) for seed, row in enumerate(lengths)]
        assert_close(logits_of(model, rows, wanted=True), logits_of(model, rows, wanted=False))
    assert 1 < counters["frames"]["ok"] <= 6 < torch._dynamo.config.recompile_limit


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "full"])
def test_on_cuda_logits_and_gradients_are_those_of_sdpa(rule: str, sink: bool, dtype: torch.dtype) -> None:
    """In batches of other sizes, too: what is compiled for one must serve the others."""
    base = tiny_base("llama_gqa", **LONG, head_dim=16).to("cuda", dtype)
    model = tiny_model(rule, base=base, sink=sink).to("cuda")
    most = 1e-3 if dtype == torch.float32 else 0.2
    for lengths in ([60] * 20, [150] * 9, [33] * 40):
        row = make_sample(lengths, 40)
        query = Step(row.query.ids, row.query.ids)
        layout = layout_of(model, [Sample(row.steps, query), Sample(row.steps[:5], query)]).to("cuda")
        found = []
        for wanted in (False, True):
            model.flex = wanted
            output = model(layout)
            output.loss.backward()
            grads = {name: tensor.grad for name, tensor in model.adapter_tensors().items()}
            model.zero_grad()
            found.append((output.logits.float().detach(), {n: g for n, g in grads.items() if g is not None}))
        (whole, expected), (blocks, gradients) = found
        assert (blocks - whole).abs().max() < most
        for name, gradient in expected.items():
            scale = gradient.abs().max().clamp(min=1e-6)
            assert (gradients[name] - gradient).abs().max() < 10 * most * scale


@pytest.mark.gpu
@needs_cuda
def test_on_cuda_it_is_taken_by_itself() -> None:
    model = tiny_model("concat", base=tiny_base("llama_gqa", **LONG, head_dim=16).to("cuda")).to("cuda")
    layout = layout_of(model, [make_sample([60] * 20, 40)]).to("cuda")
    query = torch.zeros(1, 4, layout.ids.shape[1], 16, device="cuda")
    assert isinstance(ParallelPass(layout, model.rule, flex=None)._plan(call_of(query)), Flex)
