"""How sure an order is, from kept scores."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest

from ccm.core.errors import DataError
from ccm.evaluation.results import SCORES, Measurement, Result, build_result
from ccm.evaluation.store import ResultStore
from reproductions.certainty import differences, drawn, read_seeds, recovered

TOKENS = [2, 1, 3, 2]


def found(method: str, values: list[float], depth: int = 12, weights: list[int] = TOKENS, seed: int = 0) -> Result:
    line = dict.fromkeys((field.name for field in fields(Measurement)), 0)
    line |= {"method": method, "depth": depth, "asked": "them", "adapter": f"{method}-{seed}"}
    return Result(Measurement(**line), values, weights, ["" for _ in values])


def keep(folder: Path, *results: Result) -> None:
    store = ResultStore(folder, SCORES, build_result)
    for result in results:
        store.write(store.path(result.line.method, result.line.depth, asdict(result.line)), result)
    store.write_lines("results.jsonl", (asdict(result.line) for result in results))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    none, full = found("none", [-4.0] * 4), found("full", [-2.0] * 4)
    one, other = found("concat", [-2.0, -4.0, -3.0, -2.0]), found("concat", [-3.0, -4.0, -3.0, -3.0])
    keep(tmp_path / "1", none, full, one, found("none", [-9.0] * 4, depth=8))
    keep(tmp_path / "2", other)
    return [tmp_path / "1", tmp_path / "2"]


def test_gains_are_means_over_seeds_and_tokens(folders: list[Path]) -> None:
    methods, tokens = read_seeds(folders, 12)
    assert {name: seeds.shape for name, seeds in methods.items()} == {"none": (1, 4), "full": (1, 4), "concat": (2, 4)}
    shares = drawn(tokens)
    row = recovered(methods, shares, ["none", "concat", "full"])
    assert len(row) == 1
    assert row[0].startswith("| concat | 56 % |")  # (1.5 * 2 + 0 + 1 * 3 + 1.5 * 2) / 8 of 2
    assert row[0].endswith("| 69, 44 |")


def test_what_was_trained_otherwise_is_a_method_of_its_own(folders: list[Path]) -> None:
    methods, _ = read_seeds(folders[:1], 12, {"long": folders[1:]})
    assert {name: len(seeds) for name, seeds in methods.items()} == {
        "none": 1,
        "full": 1,
        "concat": 1,
        "long concat": 1,
    }
    assert methods["long concat"].tolist() == [[-3.0, -4.0, -3.0, -3.0]]


def test_the_error_is_that_of_questions_drawn_anew(folders: list[Path]) -> None:
    methods, tokens = read_seeds(folders, 12)
    shares = drawn(tokens)
    first, second = differences(methods, shares, ["none", "concat", "full"])
    assert first.startswith("| none, concat | 1.125 ± ")
    assert first.endswith("| 2 of 2 |")
    assert second.startswith("| concat, full | 0.875 ± ")
    gain = methods["concat"].mean(0) - methods["none"].mean(0)
    exact = np.sqrt((tokens**2 * (gain - 1.125) ** 2).sum()) / tokens.sum()  # of a ratio, to first order
    told = float(first.split("± ")[1].split(" |")[0])
    assert told == pytest.approx(exact, rel=0.15)
    assert float(first.split(" | ")[2]) == pytest.approx(1.125 / told, rel=0.05)


def test_the_range_is_where_most_draws_are(folders: list[Path]) -> None:
    methods, tokens = read_seeds(folders, 12)
    shares = drawn(tokens)
    (row,) = recovered(methods, shares, ["concat"])
    low, high = map(int, row.split(" | ")[2].removesuffix(" %").split(" to "))
    gains = 100 * shares[1:] @ (methods["concat"].mean(0) + 4) / 2
    assert (gains < low - 1).mean() < 0.025 < (gains < low + 1).mean()
    assert (gains > high + 1).mean() < 0.025 < (gains > high - 1).mean()


def test_what_was_measured_before_is_not_taken(folders: list[Path]) -> None:
    """An adapter that was trained anew leaves the scores of the old one behind."""
    keep(folders[1], found("concat", [-2.5] * 4, seed=1))
    assert len([*(folders[1] / "scores").iterdir()]) == 2
    assert read_seeds(folders, 12)[0]["concat"].tolist() == [[-2.0, -4.0, -3.0, -2.0], [-2.5] * 4]


def test_other_questions_and_none_are_refused(folders: list[Path]) -> None:
    with pytest.raises(DataError, match="Nothing was measured at step 4"):
        read_seeds(folders, 4)
    other = found("merge", [-3.0] * 4)
    for result in (replace(other, weights=[1] * 4), replace(other, line=replace(other.line, asked="others"))):
        keep(folders[1], result)
        with pytest.raises(DataError, match="different questions"):
            read_seeds(folders, 12)
