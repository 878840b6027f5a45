"""How sure an order is, from kept scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ccm.errors import DataError
from reproductions.certainty import differences, drawn, read_seeds, recovered

TOKENS = [2, 1, 3, 2]


def keep(folder: Path, method: str, values: list[float], depth: int = 12, weights: list[int] = TOKENS) -> None:
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    line = {"method": method, "depth": depth}
    kept = {"line": line, "values": values, "weights": weights, "tasks": []}
    (folder / "scores" / f"{method}-{depth}.json").write_text(json.dumps(kept))


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    keep(tmp_path / "1", "none", [-4.0, -4.0, -4.0, -4.0])
    keep(tmp_path / "1", "full", [-2.0, -2.0, -2.0, -2.0])
    keep(tmp_path / "1", "concat", [-2.0, -4.0, -3.0, -2.0])
    keep(tmp_path / "2", "concat", [-3.0, -4.0, -3.0, -3.0])
    keep(tmp_path / "1", "none", [-9.0] * 4, depth=8)
    return [tmp_path / "1", tmp_path / "2"]


def test_gains_are_means_over_seeds_and_tokens(folders: list[Path]) -> None:
    methods, tokens = read_seeds(folders, 12)
    assert {name: seeds.shape for name, seeds in methods.items()} == {"none": (1, 4), "full": (1, 4), "concat": (2, 4)}
    shares = drawn(tokens)
    row = recovered(methods, shares, ["none", "concat", "full"])
    assert len(row) == 1
    assert row[0].startswith("| concat | 56 % |")  # (1.5 * 2 + 0 + 1 * 3 + 1.5 * 2) / 8 of 2
    assert row[0].endswith("| 69, 44 |")


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


def test_other_questions_and_none_are_refused(folders: list[Path]) -> None:
    with pytest.raises(DataError, match="Nothing was measured at step 4"):
        read_seeds(folders, 4)
    keep(folders[1], "merge", [-3.0] * 4, weights=[1, 1, 1, 1])
    with pytest.raises(DataError, match="different questions"):
        read_seeds(folders, 12)
