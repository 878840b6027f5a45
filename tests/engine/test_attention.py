"""Masks against slow loops that are written from the table of docs' semantics, not from the code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import (
    BOS,
    PUBLISHED,
    ccm_config,
    compress_all,
    layout_of,
    make_sample,
    parallel_logits,
    samples,
    tiny_base,
    tiny_model,
)
from hypothesis import given
from torch import Tensor
from transformers import AttentionInterface

from ccm.core.rules import make_rule
from ccm.engine.attention import SDPA, CachedPass, ParallelPass, additive
from ccm.engine.call import Call
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Layout, Sample, Step, build_layout
from ccm.engine.reach import Reach

N_TOK = 2
REACHES = (None, Reach(3), Reach(4, chunked=True))


def parallel_pass(rows: list[Sample], rule: str, *, sink: bool = False, recurrent: bool = True) -> ParallelPass:
    """The pass of a batch under a rule, without a model."""
    made = make_rule(rule)
    layout = build_layout(rows, ccm_config(rule, n_tok=N_TOK, recurrent=recurrent, sink=sink), made, pad_id=0)
    return ParallelPass(layout, made)


def slow_visible(
    sample: Sample, rule: str, *, sink: bool, recurrent: bool, reach: Reach | None
) -> tuple[list[list[bool]], list[list[bool]]]:
    """For each token of an unpadded row: which tokens it sees, and which memory slots (step, k) of rules that mix.

    A token is (block, is COMP, position); the context's blocks are numbered from 1, the query's is the last.
    """
    steps = [] if rule == "none" else sample.steps
    head = len(sample.head)
    raw = (0 if rule in ("full", "pos_control", "none") else head) if head else int(sink)
    tokens, at = [(1, False, i) for i in range(head)], head
    for number, step in enumerate(steps, start=1):
        one_block = rule in ("gist", "full", "pos_control")
        block = 1 if one_block else number
        tokens += [(block, False, at + i) for i in range(len(step.ids))]
        at += len(step.ids)
        if rule in ("concat", "merge", "ema") or (rule in ("gist", "pos_control") and number == len(steps)):
            tokens += [(block, True, at + k) for k in range(N_TOK)]
    last = max((block for block, _, _ in tokens if steps), default=0)
    query = 1 if rule in ("full", "pos_control", "none") else last + 1
    tokens += [(query, False, at + i) for i in range(len(sample.query.ids))]
    sees, slots = [], []
    for i, (block, _, position) in enumerate(tokens):
        row = []
        for j, (other, comp, other_position) in enumerate(tokens):
            near = reach is None or comp or slow_covers(reach, position, other_position)
            own = block == other and near
            reads = recurrent or block == query
            memory = rule in ("concat", "gist") and comp and other < block and reads
            row.append(j <= i and (own or memory or j < raw <= i))
        sees.append(row)
        mixes = rule in ("merge", "ema") and (recurrent or block == query)
        slots.append([mixes and written == block - 1 for written in range(1, len(steps) + 1) for _ in range(N_TOK)])
    return sees, slots


def slow_covers(reach: Reach, query: int, key: int) -> bool:
    """The window ends at the query; its chunk begins at a multiple of the size."""
    return key > query - reach.size if not reach.chunked else key >= query - query % reach.size


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", PUBLISHED)
def test_masks_equal_the_slow_loops(rule: str, sink: bool, recurrent: bool, reach: Reach | None) -> None:
    @given(samples(max_rows=3, longest_head=5))
    def check(rows: list[Sample]) -> None:
        current = parallel_pass(rows, rule, sink=sink, recurrent=recurrent)
        mask, layout = current.mask(reach)[:, 0], current.layout
        width = layout.ids.shape[1]
        for i, row in enumerate(rows):
            sees, slots = slow_visible(row, rule, sink=sink, recurrent=recurrent, reach=reach)
            pads = width - len(sees)
            assert mask[i, pads:, pads:width].tolist() == sees
            assert not mask[i, pads:, :pads].any()
            if current.mixes:
                own = len(slots[0])
                assert mask[i, pads:, width : width + own].tolist() == slots
                assert not mask[i, pads:, width + own :].any()
            else:
                assert mask.shape[-1] == width

    check()


def test_the_table_of_the_semantics_by_hand() -> None:
    """`a C | b C | q` with one COMP token: what each row of the table says, written out."""
    rows = [Sample([Step([5]), Step([6])], Step([7]))]

    def visible(rule: str, **settings: bool) -> list[str]:
        made = make_rule(rule)
        layout = build_layout(rows, ccm_config(rule, n_tok=1, **settings), made, pad_id=0)
        mask = ParallelPass(layout, made).mask()[0, 0]
        return ["".join("x" if cell else "." for cell in row) for row in mask]

    assert visible("concat", recurrent=True) == ["x....", "xx...", ".xx..", ".xxx.", ".x.xx"]
    assert visible("concat", recurrent=False) == ["x....", "xx...", "..x..", "..xx.", ".x.xx"]
    assert visible("merge", recurrent=True) == ["x......", "xx.....", "..x..x.", "..xx.x.", "....x.x"]
    assert visible("merge", recurrent=False) == ["x......", "xx.....", "..x....", "..xx...", "....x.x"]
    assert visible("gist") == ["x...", "xx..", "xxx.", "..xx"]
    assert visible("pos_control") == ["x...", "xx..", "xxx.", "xxxx"]
    assert visible("full") == ["x..", "xx.", "xxx"]
    assert visible("none") == ["x"]


@pytest.mark.parametrize("rule", PUBLISHED)
def test_no_row_of_a_mask_is_empty(rule: str) -> None:
    """A softmax over nothing is NaN; padding sees padding."""
    current = parallel_pass([make_sample([1], 1), make_sample([6, 6, 6], 5)], rule, sink=True)
    for reach in (*REACHES, Reach(1)):
        assert current.mask(reach).any(-1).all()


def test_bos_within_the_text_is_not_a_sink() -> None:
    rows = [Sample([Step([BOS, 5]), Step([BOS, 6])], Step([BOS, 7]))]
    mask = parallel_pass(rows, "concat", sink=True).mask()[0, 0]
    assert mask[-1].nonzero().flatten().tolist() == [0, 2, 3, 6, 7, 8, 9]


def test_the_sink_of_a_padded_row_is_its_first_token() -> None:
    rows = [make_sample([2], 1), make_sample([6], 4)]
    mask = parallel_pass(rows, "concat", sink=True).mask()[:, 0]
    assert mask[0, -1].nonzero().flatten().tolist() == [7, 9, 10, 11]
    assert mask[1, -1].nonzero().flatten().tolist() == [0, 6, 7, 8, 9, 10, 11]


def test_comp_rows_are_numbered_through_the_flattened_batch() -> None:
    rows = [make_sample([1], 2), make_sample([2, 2], 1)]
    current = parallel_pass(rows, "concat")
    assert current.layout.ids.shape == (2, 9)
    assert current.rows.tolist() == [5, 6, 9 + 2, 9 + 3, 9 + 6, 9 + 7]


class _Layer:
    layer_idx = 0


def _seen(module: _Layer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return key, value


def test_mixed_memory_columns_are_the_mean_of_the_rows_own_comp_columns() -> None:
    rows = [make_sample([1], 2), make_sample([2, 3], 1)]
    current = parallel_pass(rows, "merge")
    key = torch.randn(2, 3, current.layout.ids.shape[1], 4)
    extended, value = current.attend(Call(_seen, _Layer(), key, key, key + 1, None, {}))
    memory = extended[:, :, key.shape[2] :]
    assert memory.shape == (2, 3, 4, 4)
    torch.testing.assert_close(value[:, :, key.shape[2] :], memory + 1)
    first, second = (current.layout.comp_columns[1, i : i + 2] for i in (0, 2))
    torch.testing.assert_close(memory[1, :, :2], key[1, :, first])
    torch.testing.assert_close(memory[1, :, 2:], (key[1, :, first] + key[1, :, second]) / 2)
    torch.testing.assert_close(memory[0, :, :2], key[0, :, current.layout.comp_columns[0, :2]])


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("reach", [Reach(1), Reach(3), Reach(100), Reach(4, chunked=True)], ids=str)
def test_what_a_limited_layer_sees_after_a_memory_equals_the_slow_loop(reach: Reach, sink: bool) -> None:
    mask = torch.tensor([[True, False, True, True, True, True], [True, True, True, True, False, True]])
    columns = torch.tensor([[-1, 0, 3, 4, 5, 6], [0, 1, 2, -1, 3, 3]])  # three of a memory, one read, two of the pass
    positions = columns[:, -2:]
    raw = torch.tensor([int(sink)] * 2)
    seen = CachedPass(mask, columns, positions, raw).mask(reach)
    assert seen.shape == (2, 1, 2, 6)
    for b in range(2):
        for q in range(2):
            for k in range(6):
                at = int(columns[b, k])
                near = at < 0 or slow_covers(reach, int(positions[b, q]), at) or (sink and k == 0)
                assert seen[b, 0, q, k] == (mask[b, k] and k <= 4 + q and near)


def test_a_boolean_mask_becomes_numbers_to_add() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        numbers = additive(torch.tensor([True, False]), dtype)
        assert numbers.dtype == dtype
        assert numbers.tolist() == [0.0, torch.finfo(dtype).min]


@pytest.mark.covers("rule", "recurrent")
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("rule", ["concat", "merge", "gist"])
def test_text_reaches_a_query_through_the_entries_alone(rule: str, recurrent: bool) -> None:
    """In one layer, what COMP tokens write does not depend on the text: then nothing of it may reach the query."""
    for layers in (1, 2):
        model = tiny_model(rule, recurrent=recurrent, base=tiny_base("llama", num_hidden_layers=layers))
        layout = layout_of(model, [make_sample([4, 3], 3)])
        before = _logits(model, layout)
        for column in range(layout.ids.shape[1]):
            ids = layout.ids.clone()
            ids[0, column] = 60
            touched = ((_logits(model, replace(layout, ids=ids)) - before).abs().amax(-1) > 1e-6)[0]
            text = layout.slots[0, column] < 0  # the id at a COMP column is never looked up
            assert touched[column] == text
            assert not touched[:column].any()
            query = layout.blocks[0] == layout.blocks[0].max()
            if text and not query[column]:
                assert touched[query].all() == (layers == 2)
                assert touched[query].any() == (layers == 2)


def _logits(model: CCMModel, layout: Layout) -> Tensor:
    with torch.no_grad():
        return model(layout).logits


def test_masks_are_made_from_steps_and_never_from_ids() -> None:
    rows = [make_sample([3, 2], 2, seed=1)]
    same = [Sample([Step([BOS] * 3), Step([0] * 2)], Step([0] * 2))]
    for rule in PUBLISHED:
        masks = (parallel_pass(batch, rule, sink=True).mask() for batch in (rows, same))
        assert torch.equal(*masks)


def test_attention_and_what_it_mixes_stay_in_float32_in_mixed_precision() -> None:
    rows = [make_sample([3, 5, 2], 4, seed) for seed in (0, 1)]
    attend = AttentionInterface()[SDPA]
    module = torch.nn.Module()
    module.layer_idx = 0
    module.num_key_value_groups = 1
    passed = parallel_pass(rows, "merge")
    query, key, value = torch.randn(3, 2, 2, passed.layout.ids.shape[1], 8).unbind()
    exact = attend(module, query, key, value, None, ccm=passed)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = attend(module, query, key, value.bfloat16(), None, ccm=passed)[0]
        assert torch.equal(mixed, attend(module, query, key, value.bfloat16().float(), None, ccm=passed)[0])
    assert mixed.dtype == torch.float32
    assert (mixed - exact).abs().max() < 0.02  # of numbers of size 1, rounded to 8 bits


def test_a_model_runs_plainly_after_a_pass_with_memory() -> None:
    """Nothing of a pass is left behind that the next, plain call would see."""
    model = tiny_model("merge", sink=True)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        before = model.base(ids).logits
        parallel_logits(model, [make_sample([3, 2], 2)])
        compress_all(model, make_sample([3], 1))
        assert torch.equal(model.base(ids).logits, before)
