"""MetaICL and LaMP are trained on from files in their publishers' formats."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_training import Tiny, adapter, assert_same, begin, checkpoints, records

from ccm import cli
from ccm.training.loop import StepReport
from ccm.training.recipe import Recipe, load_recipe


def write_metaicl(folder: Path) -> None:
    for task in ("upper", "twice"):
        (folder / task).mkdir(parents=True)
        words = [letter * 3 for letter in "abcdefghijkl"]
        rows = [{"input": w, "output": {"upper": w.upper(), "twice": w + w}[task], "options": []} for w in words]
        path = folder / task / f"{task}_16384_100_train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "hr_to_lr.json").write_text(json.dumps({"train": ["upper", "twice"], "test": []}))


def write_lamp(folder: Path) -> None:
    folder.mkdir()
    profile = [{"id": str(i), "text": f"Boat {i}.", "score": str(1 + i % 5)} for i in range(33)]
    for split in ("train", "dev"):
        examples = [{"id": str(i), "input": f"What score? review: Boat {i}.", "profile": profile} for i in range(6)]
        golds = [{"id": str(i), "output": str(1 + i % 5)} for i in range(6)]
        (folder / f"{split}_questions.json").write_text(json.dumps(examples))
        (folder / f"{split}_outputs.json").write_text(json.dumps({"golds": golds}))


OPTIONS = {"metaicl": ["longest=32", "max_length=64"], "lamp": ["number=3", "max_length=96"]}


@pytest.fixture(params=OPTIONS)
def changes(request: pytest.FixtureRequest, tiny: Tiny, tmp_path: Path) -> list[str]:
    """The recipe, and what makes of it a short training on the tiny base: a demonstration or two have room."""
    {"metaicl": write_metaicl, "lamp": write_lamp}[request.param](tmp_path / "data")
    short = {"model": tiny.base, "data.path": tmp_path / "data", "device": "cpu", "data.eval_samples": 2}
    short |= {"max_steps": 3, "batch_size": 4, "pool": 2, "log_every": 1, "save_every": 1, "tensorboard": "false"}
    settings = [f"{key}={value}" for key, value in short.items()]
    return [request.param, *settings, *(f"data.options.{option}" for option in OPTIONS[request.param])]


def recipe(changes: list[str], out: Path, *more: str) -> Recipe:
    return load_recipe(changes[0], [*changes[1:], f"output_dir={out}", *more])


@pytest.mark.parametrize("rule", ["concat", "merge", "gist"])
def test_three_steps_are_trained_and_measured_on_the_held_out(changes: list[str], tmp_path: Path, rule: str) -> None:
    begin(recipe(changes, tmp_path / "out", f"adapter.rule={rule}")).go()
    told = records(tmp_path / "out")
    assert [record["step"] for record in told] == [1, 2, 3]
    assert all(0 < record["loss"] < 20 for record in told)
    assert 0 < told[-1]["eval_last"] < 20
    assert adapter(tmp_path / "out")


def test_a_training_that_goes_on_ends_as_if_it_had_never_stopped(changes: list[str], tmp_path: Path) -> None:
    whole = begin(recipe(changes, tmp_path / "whole")).go()
    broken = begin(recipe(changes, tmp_path / "broken"), break_off)
    with pytest.raises(KeyboardInterrupt):
        broken.go()
    assert checkpoints(tmp_path / "broken") == ["step-000001"]
    again = begin(recipe(changes, tmp_path / "broken")).go()
    assert_same(adapter(again), adapter(whole))


def break_off(report: StepReport) -> None:
    if report.step == 2:
        raise KeyboardInterrupt


def test_a_dry_run_shows_steps_and_what_is_learned(
    changes: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    words = [word for change in changes[1:] for word in ("--set", change)]
    monkeypatch.setattr(sys, "argv", ["ccm", "train", changes[0], "--dry-run", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "block 0  | <s>" in out
    assert "[COMP 1][COMP 2][COMP 3][COMP 4]" in out
    assert "         > " in out
