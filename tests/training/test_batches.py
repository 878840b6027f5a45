"""Batches: every sample once, little padding, and the same ones after an interruption."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.chat.turns import make_turns
from ccm.core.config import CCMConfig
from ccm.core.rules import make_rule
from ccm.data import DataSet, open_data
from ccm.data.settings import DataSettings
from ccm.engine.layout import Sample, Step, build_layout, length
from ccm.models.builtin import TURNS, WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.batches import Batch, Batches
from ccm.training.recipe import Recipe


def sample_of(size: int, steps: int = 1, name: int = 7) -> Sample:
    """A sample of ``size`` tokens, ``name`` among them, in so many steps and a query."""
    ids = [name, *[7] * (size - 1)]
    cut = [size * i // (steps + 1) for i in range(steps + 2)]
    parts = [Step(ids[a:b]) for a, b in pairwise(cut) if b > a]
    return Sample(parts[:-1], parts[-1])


@dataclass(frozen=True)
class Synthetic:
    """Conversations of 2 to 17 turns, most of 10 to 40 tokens and few of hundreds, cut to a random number of them."""

    seed: int = 0
    longest: int = 17 * 512
    deepest: int = 16

    def pool(self, index: int, count: int) -> list[Sample]:
        rng = random.Random(f"{self.seed} {index}")
        return [self._draw(rng, index * count + i) for i in range(count)]

    def _draw(self, rng: random.Random, name: int) -> Sample:
        steps = rng.randint(1, rng.randint(1, 16))
        sizes = [min(max(int(rng.lognormvariate(3.0, 0.7)), 5), 512) for _ in range(steps + 1)]
        parts = [Step([name, *[7] * (size - 1)]) for size in sizes]
        return Sample(parts[:-1], parts[-1])

    def held_out(self) -> list[Sample]:
        return []

    def measure(self, model: Any) -> dict[str, float]:
        return {}


def batches(data: Any, *, size: int = 4, pool: int = 3, **settings: Any) -> Batches:
    return Batches(data, size, pool, **{"n_tok": (2, 2), "max_offset": 0, "seed": 0, **settings})


def names(batch: Batch) -> list[int]:
    return [sample.steps[0].ids[0] for sample in batch.samples]


@given(
    st.lists(st.integers(2, 90), min_size=8, max_size=40), st.integers(20, 200), st.sampled_from([1, 2, 4]), st.data()
)
def test_passes_hold_every_sample_once_within_their_tokens(
    sizes: list[int], tokens: int, processes: int, data: st.DataObject
) -> None:
    starts = data.draw(st.lists(st.integers(0, 50), min_size=len(sizes), max_size=len(sizes)))
    sizes = sizes[: len(sizes) // processes * processes]
    batch = Batch([sample_of(size, name=i) for i, size in enumerate(sizes)], starts[: len(sizes)], 3)
    passes = batch.passes(tokens, processes)
    assert len(passes) % processes == 0
    assert sorted(name for part in passes for name in names(part)) == list(range(len(sizes)))
    for part in passes:
        assert part.n_tok == 3
        assert [starts[name] for name in names(part)] == list(part.starts)
        assert part.samples
        assert len(part.samples) * max(map(length, part.samples)) <= tokens or len(part.samples) == 1


def test_passes_are_few() -> None:
    batch = Batch([sample_of(10) for _ in range(12)], [0] * 12, 1)
    assert [len(batch.passes(tokens, 1)) for tokens in (132, 131, 66, 11, 1)] == [1, 2, 2, 12, 12]
    assert [len(batch.passes(tokens, 4)) for tokens in (132, 33, 32)] == [4, 4, 8]


@pytest.mark.parametrize(("rows", "processes", "tokens"), [(3, 2, 100), (3, 2, 10), (5, 4, 10)])
def test_no_pass_is_empty_where_the_batch_does_not_divide(rows: int, processes: int, tokens: int) -> None:
    passes = Batch([sample_of(10) for _ in range(rows)], [0] * rows, 1).passes(tokens, processes)
    assert len(passes) % processes == 0
    assert all(part.samples for part in passes)


def test_batches_are_the_same_after_an_interruption() -> None:
    endless = batches(Synthetic(), max_offset=9, n_tok=(1, 4))
    whole = list(islice(endless.since(0), 10))
    for step in (1, 3, 4, 7):
        assert list(islice(endless.since(step), 10 - step)) == whole[step:]
    assert list(islice(batches(Synthetic(), max_offset=9, n_tok=(1, 4), seed=1).since(0), 10)) != whole


def test_the_batches_of_a_pool_hold_every_sample_once_in_random_order() -> None:
    drawn = list(islice(batches(Synthetic(), size=4, pool=5).since(0), 15))
    for index in range(3):
        within = drawn[5 * index : 5 * index + 5]
        assert Counter(name for b in within for name in names(b)) == Counter(range(20 * index, 20 * index + 20))
        assert all(len(b.samples) == 4 for b in within)
    lengths = [sum(map(length, b.samples)) for b in drawn]
    assert lengths[:5] != sorted(lengths[:5]) or lengths[5:10] != sorted(lengths[5:10])


def test_every_batch_draws_its_n_and_every_sample_its_start() -> None:
    drawn = list(islice(batches(Synthetic(), n_tok=(1, 3), max_offset=2).since(0), 60))
    assert {b.n_tok for b in drawn} == {1, 2, 3}
    assert {start for b in drawn for start in b.starts} == {0, 1, 2}
    assert any(len(set(b.starts)) > 1 for b in drawn)


@pytest.fixture(scope="module")
def kinds() -> dict[str, DataSet]:
    """Either kind of data."""
    turns = make_turns(load_tokenizer(WEIGHTS / "base"), TURNS)
    kinds = {"custom": Synthetic(), "builtin": open_data(DataSettings("builtin"), turns, 0)}
    return kinds


@pytest.mark.covers("kind", "n_tok")
@pytest.mark.parametrize(
    ("kind", "n_tok"),
    [("builtin", 2), ("builtin", 4), ("custom", 2), ("custom", 4), ("custom", 8)],
)
def test_at_most_a_tenth_is_padding(kinds: dict[str, DataSet], kind: str, n_tok: int) -> None:
    padding = columns = 0
    for batch in islice(batches(kinds[kind], size=32, pool=16, n_tok=(n_tok, n_tok)).since(0), 32):
        for part in batch.passes(Recipe().pass_tokens, 1):
            widths = [length(sample) + n_tok * len(sample.steps) for sample in part.samples]
            padding += len(widths) * max(widths) - sum(widths)
            columns += len(widths) * max(widths)
    assert 0 < padding <= 0.1 * columns


def test_columns_are_what_a_layout_has() -> None:
    """The width by which padding is counted above."""
    rows = Synthetic().pool(0, 3)
    layout = build_layout(rows, CCMConfig(n_tok=8), make_rule("concat"), 0)
    assert [int((row >= 0).sum()) for row in layout.blocks] == [length(s) + 8 * len(s.steps) for s in rows]
