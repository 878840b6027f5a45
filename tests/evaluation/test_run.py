"""A whole evaluation, through the command line, of the built-in model on small files."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ccm.builtin import WEIGHTS
from ccm.cli import main
from ccm.data.tasks import TaskSettings
from ccm.evaluation import scoring
from ccm.evaluation.metrics import Likelihood, perplexity
from ccm.evaluation.report import gain
from ccm.evaluation.run import Evaluation, Measured, Result

TALK = [
    f"I am {word} . __eou__ Why , {word} ? __eou__ So it is . __eou__ Fine ! __eou__ Bye . __eou__"
    for word in ("old", "new", "ill", "well", "late")
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "daily"
    data.mkdir()
    (data / "dialogues_validation.txt").write_text("".join(line + "\n" for line in TALK[:2]))
    (data / "dialogues_test.txt").write_text("".join(line + "\n" for line in [*TALK[2:], "Too short . __eou__"]))
    return data


def ccm(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def dialog(folder: Path, *more: object) -> int:
    return ccm("evaluate", "dialog", "--data", folder, "--steps", "1,2", *more)


def test_a_task_is_measured_with_several_rules(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dialog(folder, "--rule", "full", "--rule", "concat", "--rule", "none", "--json") == 0
    found = lines(capsys.readouterr().out)
    assert [(line["method"], line["depth"]) for line in found] == [
        ("full", 1), ("full", 2), ("concat", 1), ("concat", 2), ("none", 1), ("none", 2),
    ]  # fmt: skip
    assert all(line["questions"] == 5 and line["skipped"]["filtered"] == 1 for line in found)
    assert [line["entries"] for line in found[2:]] == [2.0, 4.0, 0.0, 0.0]
    assert found[0]["entries"] > 4
    assert all(line["figures"]["perplexity"] > 1 for line in found)
    assert len({line["tokens"] for line in found if line["depth"] == 1}) == 1


def test_the_fixed_targets_are_the_same_at_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = " __eou__ ".join(f"Turn {i} ." for i in range(16)) + " __eou__"
    (folder / "dialogues_test.txt").write_text(long + "\n")
    assert dialog(folder, "--protocol", "fixed-target", "--rule", "none", "--rule", "full", "--json") == 0
    found = lines(capsys.readouterr().out)
    assert [line["questions"] for line in found] == [1] * 4
    assert found[0]["figures"] == found[1]["figures"]  # without context, depth makes no difference
    assert found[2]["figures"] != found[3]["figures"]


def test_results_are_kept_and_not_measured_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert dialog(folder, "--rule", "full", "--rule", "none", "--output", out) == 0
    screen = capsys.readouterr().out
    assert "perplexity" in screen
    assert str(out / "report.md") in screen
    assert {path.name for path in out.iterdir()} == {
        "evaluation.json", "scores", "results.jsonl", "report.md", "steps.png", "memory.png",
    }  # fmt: skip
    before = (out / "results.jsonl").read_text()
    monkeypatch.setattr(scoring.Scorer, "score", lambda *_: pytest.fail("measured again"))
    assert dialog(folder, "--rule", "full", "--rule", "none", "--output", out) == 0
    assert (out / "results.jsonl").read_text() == before
    report = (out / "report.md").read_text()
    assert "filtered" in report
    assert report.count("| 1 |") == 2
    assert dialog(folder, "--rule", "full", "--protocol", "fixed-target", "--output", out) == 2
    assert "another task" in capsys.readouterr().err


def test_metaicl_is_measured_by_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"colours": ("grass", ["green", "white"], 2), "numbers": ("two and two", ["four", "six", "nine"], 1)}
    for task, (asked, options, count) in rows.items():
        (tmp_path / task).mkdir()
        line = json.dumps({"input": asked, "output": options[0], "options": options}) + "\n"
        for name in ("16_100_train", "16_13_train", "test"):
            (tmp_path / task / f"{task}_{name}.jsonl").write_text(line * count)
    assert ccm("evaluate", "metaicl", "--data", tmp_path, "--k", "1,2", "--rule", "gate", "--json") == 0
    found = lines(capsys.readouterr().out)
    assert [set(line["figures"]) for line in found] == [{"acc", "acc_norm", "acc_base"}] * 2
    assert [line["entries"] for line in found] == [4.0, 4.0]
    for line in found:
        first, second = (line["by_task"][name]["acc"] for name in ("colours", "numbers"))
        assert first in (0.0, 1.0)  # the same question twice
        assert line["figures"]["acc"] == pytest.approx((first + second) / 2)  # whatever the number of questions


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "3"], "There is no time step 3; the steps are 1, 2, 4, 8, 12"),
        (["--steps", "a"], "write whole numbers with commas"),
        (["--rule", "merge"], "no adapter for the rule 'merge'"),
        (["--rule", "full", "--rule", "full"], "Two methods have one name"),
        (["--steps", "12"], "No question of the task has 12 steps"),
        (["--batch", "0"], "batch 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ccm("evaluate", "dialog", "--data", folder, *arguments) == 2
    assert said in capsys.readouterr().err


def result(rule: str, totals: list[float]) -> Result:
    tokens = [10] * len(totals)
    figures = {"perplexity": perplexity([Likelihood(t, 10) for t in totals])}
    return Result(
        Measured(rule, rule, 1, None, 1, len(totals), {}, figures, {}, sum(tokens), 0, 0, 0, 0, 0, 0), totals, tokens
    )


def test_a_gain_is_stated_only_where_full_and_none_differ_clearly() -> None:
    full, none = result("full", [-20.0, -21.0, -19.0, -20.0]), result("none", [-30.0, -30.0, -29.0, -31.0])
    some = result("concat", [-25.0, -25.0, -25.0, -25.0])
    assert gain(some, [full, none, some]) == pytest.approx(0.5)
    assert gain(full, [full, none, some]) is None
    noisy = result("full", [-20.0, -45.0, -15.0, -38.0])
    assert gain(some, [noisy, none, some]) is None
    assert gain(some, [full, some]) is None


def test_an_adapter_gives_its_rule_and_serves_those_that_it_runs_with() -> None:
    concat, gate = str(WEIGHTS / "concat"), str(WEIGHTS / "gate")
    methods = Evaluation(TaskSettings("dialog"), adapters=[concat, gate], rules=["full"]).methods()
    assert [(m.name, m.rule, m.adapter) for m in methods] == [
        ("full", "full", concat), ("concat", None, concat), ("gate", None, gate),
    ]  # fmt: skip
