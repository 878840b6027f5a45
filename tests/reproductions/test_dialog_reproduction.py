"""The reproduction on DailyDialog runs whole, on a handful of dialogues and a few steps."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng, words = random.Random(1), ["tea", "dog", "sun", "car", "day", "book", "rain", "song", "bread", "house"]
    folder = tmp_path / "data" / "noncommercial" / "dailydialog"
    folder.mkdir(parents=True)
    for split, count in (("train", 60), ("validation", 4), ("test", 4)):
        talks = [[f"I like {rng.choice(words)} and {rng.choice(words)} ." for _ in range(15)] for _ in range(count)]
        text = "".join(" __eou__ ".join(talk) + " __eou__\n" for talk in talks)
        (folder / f"dialogues_{split}.txt").write_text(text)
    return tmp_path / "data"


@pytest.mark.slow
def test_everything_is_built_and_measured_and_not_built_again(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    settings = ("--set", "max_steps=2", "batch_size=4", "save_every=1", "log_every=1")
    command = [
        sys.executable,
        "-m",
        "reproductions.dialog",
        "--data",
        data,
        "--output",
        output,
        "--seeds",
        "1",
        *settings,
    ]
    for _ in range(2):
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=True)
        page = (output / "report" / "report.md").read_text()
    assert "training" not in done.stderr
    assert "step 2/2" not in done.stderr  # the second time nothing is trained
    assert page.count("\n## dialog: protocol") == 2
    for method in ("full", "none", "gist-online", "concat", "merge", "gate", "window", "bm25"):
        assert page.count(f"| 12 | {method} |") == 4  # two tables, of scores and of memory, for each protocol
