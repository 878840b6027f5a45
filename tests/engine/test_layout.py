"""Layouts against a slow builder of rows, and what they must leave alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from helpers import BOS, EOS, PAD, PUBLISHED, ccm_config, make_sample, samples
from hypothesis import given

from ccm.core.errors import InputError
from ccm.core.rules import make_rule
from ccm.engine.layout import IGNORE, Layout, Sample, Step, build_layout


def layout(rows: Sequence[Sample], rule: str = "concat", **settings: object) -> Layout:
    """The layout of a batch under a rule."""
    return build_layout(rows, ccm_config(rule, **settings), make_rule(rule), pad_id=PAD)


def slow_row(sample: Sample, rule: str, n_tok: int, positions: str) -> list[tuple[int, int, int]]:
    """id (None at COMP), slot and position of every column, read off the table of rules word by word."""
    columns, at = [], 0
    context = [] if rule == "none" else list(sample.steps)
    for number, step in enumerate(context, start=1):
        for token in step.ids:
            columns.append((token, -1, at))
            at += 1
        last = number == len(context)
        if rule in ("concat", "merge", "ema") or (rule in ("gist", "pos_control") and last):
            columns += [(None, k, at + k) for k in range(n_tok)]
            at += n_tok if positions == "base" else 0
    for token in sample.query.ids:
        columns.append((token, -1, at))
        at += 1
    return columns


@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("rule", PUBLISHED)
def test_layout_equals_the_slow_builder(rule: str, positions: str) -> None:
    @given(samples(max_rows=3))
    def check(rows: list[Sample]) -> None:
        got = layout(rows, rule, n_tok=3, positions=positions)
        expected = [slow_row(row, rule, 3, positions) for row in rows]
        assert got.ids.shape[1] == max(map(len, expected))
        for i, columns in enumerate(expected):
            pads = got.ids.shape[1] - len(columns)
            assert (got.blocks[i, :pads] == -1).all()
            assert (got.slots[i, :pads] == -1).all()
            assert (got.targets[i, :pads] == IGNORE).all()
            assert (got.blocks[i, pads:] >= 0).all()
            ids, slots, at = zip(*columns, strict=True)
            assert got.slots[i, pads:].tolist() == list(slots)
            assert got.positions[i, pads:].tolist() == list(at)
            assert [t for t in ids if t is not None] == got.ids[i, pads:][got.slots[i, pads:] < 0].tolist()

    check()


def test_the_picture_of_the_module() -> None:
    rows = [Sample([Step([BOS, 10, 11]), Step([12, 13, 14])], Step([15, 16, 17, 18]))]
    got = layout(rows, n_tok=2)
    assert got.blocks[0].tolist() == [0] * 5 + [1] * 5 + [2] * 4
    assert got.slots[0].tolist() == [-1, -1, -1, 0, 1, -1, -1, -1, 0, 1, -1, -1, -1, -1]
    assert got.positions[0].tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 6, 7, 6, 7, 8, 9]
    assert got.comp_columns.tolist() == [[3, 4, 8, 9]]
    assert got.steps == 2


def test_base_positions_count_comp_tokens_as_text() -> None:
    rows = [Sample([Step([5, 6, 7]), Step([8])], Step([9, 9]))]
    assert layout(rows, n_tok=2, positions="base").positions[0].tolist() == list(range(10))


@pytest.mark.parametrize(("recurrent", "expected"), [(True, [True] * 7), (False, [False] * 5 + [True] * 2)])
def test_only_the_query_reads_the_memory_of_isolated_steps(recurrent: bool, expected: list[bool]) -> None:
    rows = [Sample([Step([5, 6]), Step([7])], Step([8, 9]))]
    assert layout(rows, n_tok=1, recurrent=recurrent).reads[0].tolist() == expected


@pytest.mark.parametrize("rule", [name for name in PUBLISHED if name != "none"])
def test_every_target_stands_at_its_token(rule: str) -> None:
    first = Sample([Step([10, 11], [11, 12]), Step([12, 13])], Step([14, 15], [IGNORE, EOS]))
    second = Sample([Step([20])], Step([21, 22, 23], [22, 23, EOS]))
    got = layout([first, second], rule)
    for i, expected in enumerate(({10: 11, 11: 12, 15: EOS}, {21: 22, 22: 23, 23: EOS})):
        at = (got.targets[i] != IGNORE).nonzero().flatten()
        assert {int(got.ids[i, c]): int(got.targets[i, c]) for c in at} == expected
        assert (got.slots[i, at] == -1).all()


def test_targets_of_a_forgotten_context_are_forgotten_with_it() -> None:
    got = layout([Sample([Step([10, 11], [11, 12])], Step([14, 15], [15, EOS]))], "none")
    assert got.ids.tolist() == [[14, 15]]
    assert got.targets.tolist() == [[15, EOS]]


@pytest.mark.parametrize("rule", PUBLISHED)
def test_the_samples_lists_are_never_changed(rule: str) -> None:
    rows = [
        Sample([Step([3, 4], [4, 5]), Step([6])], Step([7, 8], [8, EOS])),
        Sample([Step([9, 9, 9, 9])], Step([1])),
    ]
    before = copy.deepcopy(rows)
    for _ in range(2):
        layout(rows, rule)
    assert rows == before


def test_rows_are_padded_on_the_left_to_the_longest() -> None:
    got = layout([make_sample([1], 1), make_sample([4, 4], 3)], n_tok=2)
    assert got.ids.shape == (2, 15)
    assert got.blocks[0].tolist() == [-1] * 11 + [0, 0, 0, 1]
    assert got.comp_columns.tolist() == [[12, 13, 0, 0], [4, 5, 10, 11]]


def test_a_pad_id_within_the_text_is_text() -> None:
    got = layout([Sample([Step([PAD, PAD])], Step([PAD])), make_sample([3], 3)], n_tok=1)
    assert got.blocks[0].tolist() == [-1, -1, -1, 0, 0, 0, 1]
    assert got.positions[0, 3:].tolist() == [0, 1, 2, 2]


def test_a_context_without_a_query_and_a_query_without_a_context_are_rows() -> None:
    assert layout([Sample([Step([5, 6])], Step([]))], n_tok=2).blocks.tolist() == [[0, 0, 0, 0]]
    alone = layout([Sample([], Step([5, 6]))], n_tok=2)
    assert alone.blocks.tolist() == [[0, 0]]
    assert alone.steps == 0


@pytest.mark.parametrize("rows", [[], [Sample([], Step([]))], [make_sample([2], 2), Sample([], Step([]))]])
def test_an_empty_batch_or_row_is_refused(rows: list[Sample]) -> None:
    with pytest.raises(InputError, match="at least one"):
        layout(rows)


def test_targets_that_do_not_match_the_tokens_are_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"3 tokens but 2 targets"):
        Step([1, 2, 3], [4, 5])


def test_a_layout_moves_as_a_whole() -> None:
    got = layout([make_sample([2], 2)])
    moved = got.to("meta")
    assert all(getattr(moved, name).is_meta for name, value in vars(got).items() if isinstance(value, torch.Tensor))
    assert moved.n_tok == got.n_tok


def test_a_step_without_tokens_is_refused_with_its_row() -> None:
    with pytest.raises(InputError, match="row 1 has no tokens"):
        layout([make_sample([2], 1), Sample([Step([3]), Step([])], Step([4]))])
