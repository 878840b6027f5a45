"""A whole evaluation, through the command line, of the built-in model on small files."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from copies import copied_builtin
from helpers import TOLERANCE
from matplotlib.figure import Figure
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from ccm.chat.turns import Turns
from ccm.cli import main
from ccm.core.errors import ConfigError
from ccm.core.files import load_tensors, save_tensors
from ccm.data.tasks import Task, TaskSettings
from ccm.evaluation import answering, methods, run, scoring
from ccm.evaluation.run import evaluation_methods
from ccm.evaluation.settings import EvaluationSettings, Selection
from ccm.evaluation.texts import FIGURES
from ccm.models.builtin import WEIGHTS

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


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in model is read once. Pictures would take half the time: one test here draws them, and those of the
    report do."""
    copied_builtin(monkeypatch, "ccm.evaluation.methods.load_model")
    if request.function is not test_results_are_kept_and_not_measured_again:
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).touch())


def ccm(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccm", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
    return int(end.value.code or 0)


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def dialog(folder: Path, *more: object) -> int:
    return ccm("evaluate", "dialog", "--data", folder, "--steps", "1,2", "--no-control", *more)


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


def test_methods_that_read_a_task_alike_open_it_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_task = run.open_task

    def counted(settings: TaskSettings, turns: Turns) -> Task:
        opened.append(turns.form)
        return open_task(settings, turns)

    monkeypatch.setattr(run, "open_task", counted)
    turns = {"separator": "\n", "reply_separator": "\n"}
    other = adapter_like_concat(tmp_path / "other", turns=turns)
    own = adapter_like_concat(tmp_path / "own")
    assert dialog(folder, "--rule", "full", "--rule", "none", "--baseline", "bm25", "--adapter", own) == 0
    assert len(opened) == 1
    assert dialog(folder, "--rule", "full", "--adapter", own, "--adapter", other) == 0
    assert [form.separator for form in opened[1:]] == [opened[0].separator, "\n"]


def test_several_tasks_share_a_model_and_keep_their_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], methods.load_model
    monkeypatch.setattr(methods, "load_model", lambda *given, **more: loaded.append(given) or load(*given, **more))
    tasks = [TaskSettings("dialog", str(folder), {"protocol": name}) for name in ("paper", "fixed-target")]
    settings = EvaluationSettings(depths=[1], control=False)
    (folder / "dialogues_test.txt").write_text(" __eou__ ".join(f"Turn {i} ." for i in range(16)) + " __eou__\n")
    found = run.evaluate(tasks, Selection(rules=["none", "gate", "full"]), settings)
    assert [(r.line.task["protocol"], r.line.method) for r in found] == [
        (name, rule) for name in ("paper", "fixed-target") for rule in ("none", "gate", "full")
    ]
    assert len(loaded) == 1  # all share the weights of the base


def test_whatever_shortens_contexts_is_measured_with_other_memories_too(folder: Path) -> None:
    chosen = Selection(rules=["concat"], baselines=["window", "bm25", "pool"])
    found = run.evaluate([TaskSettings("dialog", str(folder))], chosen, EvaluationSettings(depths=[2]))
    there = [[other is not None for other in result.others] for result in found]
    assert any(there[0])
    assert there == [there[0]] * 4, "the same questions have another conversation"


def test_no_context_is_the_query_as_it_opens_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"steps": ["I like tea.", "I like dogs."], "query": "What do I like?", "answer": "Tea and dogs."}
    (folder / "mine.jsonl").write_text(json.dumps(row))
    asked = ("evaluate", "custom", "--data", folder / "mine.jsonl", "--steps", "0,1,2", "--json", "--rule", "full")
    assert ccm(*asked, "--rule", "none") == 0
    found = [line["figures"]["perplexity"] for line in lines(capsys.readouterr().out)]
    assert found[3:] == pytest.approx([found[0]] * 3, rel=TOLERANCE)  # as of full context that has no step
    assert found[1] != pytest.approx(found[0], rel=1e-3)


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
        "scores", "results.jsonl", "report.md", "steps.png", "memory.png",
    }  # fmt: skip
    before = (out / "results.jsonl").read_text()
    monkeypatch.setattr(scoring.Scorer, "score", lambda *_: pytest.fail("measured again"))
    assert dialog(folder, "--rule", "full", "--rule", "none", "--output", out) == 0
    assert (out / "results.jsonl").read_text() == before
    report = (out / "report.md").read_text()
    assert "filtered" in report
    assert report.count("\n| 1 |") == 4  # two methods, in the table of figures and in that of memory and time
    full = [row for row in report.splitlines() if row.startswith("| full |")]
    assert full[0].count(".") == 2  # the perplexities of both steps
    for path in (out / "scores").iterdir():
        path.write_text(path.read_text()[:50])
    assert dialog(folder, "--rule", "full", "--rule", "none", "--output", out) == 2
    assert "delete it, and it is measured again" in capsys.readouterr().err


def test_another_adapter_of_the_same_name_is_measured_for_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("x", "y"):
        shutil.copytree(WEIGHTS / "concat", tmp_path / place / "ad", copy_function=shutil.copyfile)
        shutil.copytree(WEIGHTS / "base", tmp_path / place / "base", copy_function=shutil.copyfile)
    path = tmp_path / "y" / "ad" / "ccm_adapter.safetensors"
    save_tensors(path, {name: tensor * 1.5 for name, tensor in load_tensors(path)[0].items()})
    found = []
    for place in ("x", "y", "x"):
        arguments = ("--rule", "none", "--adapter", tmp_path / place / "ad", "--output", tmp_path / "out", "--json")
        assert dialog(folder, *arguments) == 0
        found.append([line["figures"]["perplexity"] for line in lines(capsys.readouterr().out)])
    assert found[0] == found[2]
    assert found[0][:2] == found[1][:2]  # without context
    assert found[0][2:] != found[1][2:]
    assert len([*(tmp_path / "out" / "scores").iterdir()]) == 6  # without context no adapter plays a part


def test_an_n_asked_for_holds_for_rules_as_well(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dialog(folder, "--rule", "none", "--rule", "gate", "--n-tok", "2") == 2
    assert "trained with n_tok 4; it cannot run with 2" in capsys.readouterr().err


def test_dialogues_with_an_empty_query_or_answer_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["Hi . __eou__ __eou__ Bye . __eou__", "Hi . __eou__ There . __eou__ __eou__", "Hi . __eou__ There . __eou__"]
    (folder / "dialogues_test.txt").write_text("".join(f"{line}\n" for line in odd))
    assert ccm("evaluate", "dialog", "--data", folder, "--steps", "1", "--rule", "none", "--json") == 0
    (line,) = lines(capsys.readouterr().out)
    assert (line["questions"], line["skipped"]["an empty first turn, query or answer"]) == (2, 2)


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


def test_metaicl_may_be_averaged_as_the_authors_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task, options in {"glue-mrpc": ["yes", "no"], "poem_sentiment": ["a", "b"], "sick": ["c", "d"]}.items():
        (tmp_path / task).mkdir()
        line = json.dumps({"input": "so", "output": options[0], "options": options}) + "\n"
        for name in ("16_100_train", "16_13_train", "test"):
            (tmp_path / task / f"{task}_{name}.jsonl").write_text(line)
    command = ("evaluate", "metaicl", "--data", tmp_path, "--k", "1", "--rule", "full", "--mean", "authors", "--json")
    assert ccm(*command) == 0
    (line,) = lines(capsys.readouterr().out)
    by_task, figures = line["by_task"], line["figures"]
    counted = (by_task["poem_sentiment"]["acc_base"], by_task["sick"]["acc_norm"])
    assert figures["acc_norm"] == pytest.approx(sum(counted) / 2)
    assert figures["acc"] == pytest.approx(sum(task["acc"] for task in by_task.values()) / 3)
    assert line["task"]["mean"] == "authors"


def test_lamp_is_measured_by_its_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = [{"id": str(i), "title": f"On number {i}", "abstract": "Numbers."} for i in range(4)]
    head = 'For an author who has written the paper with the title "On boats", which reference is related? '
    asked = f'{head}Just answer with [1] or [2] without explanation. [1]: "Boats" [2]: "Trains"'
    (tmp_path / "dev_questions.json").write_text(json.dumps([{"id": "1", "input": asked, "profile": profile}]))
    (tmp_path / "dev_outputs.json").write_text(json.dumps({"golds": [{"id": "1", "output": "[1]"}]}))
    arguments = ("--data", tmp_path, "--number", "1", "--k", "2", "--rule", "concat", "--json")
    assert ccm("evaluate", "lamp", *arguments) == 0
    (line,) = lines(capsys.readouterr().out)
    assert (line["main"], line["entries"], line["questions"]) == ("acc", 4.0, 1)
    assert line["figures"]["acc"] in (0.0, 1.0)
    assert line["figures"]["f1"] == line["figures"]["acc"] / 2  # of one question, and two classes
    assert "mae" not in line["figures"]


def test_classes_that_are_numbers_have_distances(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = [{"id": str(i), "text": "It is fine.", "score": "4"} for i in range(32)]
    asked = "What is the score of the following review? review: It broke."
    (tmp_path / "dev_questions.json").write_text(json.dumps([{"id": "1", "input": asked, "profile": profile}]))
    found = []
    for gold in "15":
        (tmp_path / "dev_outputs.json").write_text(json.dumps({"golds": [{"id": "1", "output": gold}]}))
        assert ccm("evaluate", "lamp", "--data", tmp_path, "--number", "3", "--k", "2", "--rule", "none", "--json") == 0
        (line,) = lines(capsys.readouterr().out)
        assert line["figures"]["mae"] == line["figures"]["rmse"]
        found.append(line["figures"]["mae"])
    assert sum(found) == 4.0  # the same answer both times, as far from 1 as it is nearer to 5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "3"], "There is no time step 3; the steps are 1, 2, 4, 8, 12"),
        (["--steps", "a"], "write whole numbers with commas"),
        (["--rule", "gist"], "no adapter for the rule 'gist'"),
        (["--rule", "full", "--rule", "full"], "full is asked for twice"),
        (["--rule", "none", "--rule", "Gate"], "There is no rule 'Gate'"),
        (["--steps", "1,12"], "No question of the task is left at step 12"),
        (["--steps", "1,12"], "Measure the others with --steps 1."),
        (["--batch", "0"], "ccm: --batch is 0; it must be at least 1."),
        (["--most", "-1"], "ccm: --most is -1; it must be at least 0."),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ccm("evaluate", "dialog", "--data", folder, *arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("broken", [1, 5])
def test_likelihoods_that_are_no_numbers_are_counted_beside_the_score(
    folder: Path, broken: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [broken]

    def likelihood(logits: Tensor, answer: Sequence[int]) -> float:
        left[0] -= 1
        return math.nan if left[0] >= 0 else -2.0 * len(answer)

    monkeypatch.setattr(answering, "likelihood", likelihood)
    done = ccm("evaluate", "dialog", "--data", folder, "--steps", 1, "--rule", "full", "--json")
    shown = capsys.readouterr()
    if broken == 5:
        assert done == 2
        assert "No likelihood under full at step 1 is a finite number" in shown.err
    else:
        (line,) = lines(shown.out)
        assert (line["questions"], line["skipped"]["a likelihood is not a finite number"]) == (4, 1)
        assert line["figures"]["perplexity"] == pytest.approx(math.exp(2.0))


def test_the_time_left_is_told_of_all_methods_and_steps(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    task, settings = TaskSettings("dialog", str(folder)), EvaluationSettings(depths=(1, 2), batch=2)
    asked = Selection(output=tmp_path / "out", rules=("full", "none"))
    run.evaluate([task], asked, settings, lambda *one: told.append(one))
    assert told[:2] == [("loading full", 0, 0), ("full, step 1", 0, 40)]
    assert {total for _, _, total in told[1:]} == {
        40,
        30,
    }  # five questions, two steps, twice each; then none, once each
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1] == ("none, step 2", 30, 30)
    told.clear()
    more = replace(asked, rules=("full", "none", "concat"))
    run.evaluate([task], more, settings, lambda *one: told.append(one))
    told = [one for one in told if not one[0].startswith("loading")]
    assert {(name.split(",")[0], total) for name, _, total in told} == {("concat", 20)}  # the rest was measured before


def test_what_the_built_in_model_is_not_for_is_said_once_as_figures_come(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("My name is Anna. I live in Oslo. " * 30)
    row = {"steps": ["I like tea."], "query": "What do I like?", "answer": "Tea."}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    for task, data in (("dialog", folder), ("custom", tmp_path / "text.txt"), ("custom", tmp_path / "mine.jsonl")):
        again = ("--output", tmp_path / Path(data).stem)
        for _ in range(2):  # the second time nothing is measured
            assert ccm("evaluate", task, "--data", data, "--rule", "none", "--steps", 1, "--most", 1, *again) == 0
            err = capsys.readouterr().err
            assert err.startswith("Note: the built-in model knows only the small talk")
            assert err.count("Note:") == 1
        assert ccm("evaluate", task, "--data", tmp_path / "none") == 2
        assert "Note:" not in capsys.readouterr().err


def test_an_adapter_gives_its_rule_and_serves_those_that_it_runs_with() -> None:
    concat, gate = str(WEIGHTS / "concat"), str(WEIGHTS / "gate")
    methods = evaluation_methods(Selection(adapters=[concat, gate], rules=["full"]))
    assert [(m.name, m.rule, m.adapter) for m in methods] == [
        ("full", "full", concat), ("concat", None, concat), ("gate", None, gate),
    ]  # fmt: skip


def test_a_plain_lora_is_the_base_of_the_rules_that_compress_nothing(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    methods = evaluation_methods(Selection(adapters=[str(tmp_path)]))
    assert [(m.name, m.rule, m.adapter) for m in methods] == [(n, n, str(tmp_path)) for n in ("full", "none")]


def test_a_plain_lora_is_measured(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    assert dialog(folder, "--adapter", tmp_path / "lora", "--json") == 0
    found = [(line["method"], line["adapter"]) for line in lines(capsys.readouterr().out)]
    assert found == [(name, str(tmp_path / "lora")) for name in ("full", "full", "none", "none")]


def test_recall_of_held_out_facts_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert ccm("evaluate", "recall", "--dialogues", 2, "--rule", "none", "--no-control", "--json") == 0
    (line,) = lines(capsys.readouterr().out)
    assert (line["depth"], line["questions"], line["main"]) == (12, 8, "holds")
    assert line["figures"]["holds"] < 0.5


def test_baselines_have_the_memory_of_the_adapter_of_concat() -> None:
    concat, gate = str(WEIGHTS / "concat"), str(WEIGHTS / "gate")
    chosen = Selection(adapters=[gate, concat], rules=["full"], baselines=["window", "pool"])
    methods = evaluation_methods(chosen)
    assert [(m.name, m.adapter) for m in methods[:3]] == [("full", gate), ("window", concat), ("pool", concat)]
    alone = evaluation_methods(replace(chosen, adapters=[gate], rules=[]))
    assert alone[0].adapter == gate


def test_baselines_are_measured_at_equal_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--rule", "full", "--rule", "concat", "--baseline", "window", "--baseline", "bm25", "--baseline", "pool")
    assert dialog(folder, *methods, "--json") == 0
    found = lines(capsys.readouterr().out)
    assert [line["rule"] for line in found[::2]] == ["full", "concat", "window", "bm25", "pool"]
    assert [line["n_tok"] for line in found[::2]] == [None, 2, None, None, None]
    assert [line["entries"] for line in found[4:]] == [3.0, 5.0, 3.0, 5.0, 2.0, 4.0]  # the sink, and N a step; N alone
    assert dialog(folder, "--rule", "full", "--baseline", "window", "--room", 1000, "--json") == 0
    whole = lines(capsys.readouterr().out)
    assert [line["figures"] for line in whole[:2]] == [line["figures"] for line in whole[2:]]
    assert dialog(folder, "--baseline", "bm52") == 2
    assert "did you mean bm25" in capsys.readouterr().err.lower()
    assert dialog(folder, "--baseline", "embedding") == 2
    assert "name a folder or Hub id with --embedder" in capsys.readouterr().err
    assert dialog(folder, "--baseline", "window", "--room", 0) == 2
    assert "room is 0; it must be at least 1" in capsys.readouterr().err


def test_a_gain_that_is_not_stated_has_a_footnote_on_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("--rule", "full", "--rule", "none", "--rule", "concat")
    assert dialog(folder, *methods, "--most", 1) == 0
    shown = capsys.readouterr().out
    assert [line.split()[3] for line in shown.splitlines() if " concat " in line] == ["*", "*"]
    assert " * " not in "".join(line for line in shown.splitlines() if " full " in line or " none " in line)
    assert "\n* The gain is stated only if full beats none by two standard errors, both were" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert dialog(folder, "--rule", "full", "--rule", "none") == 0
    assert "*" not in capsys.readouterr().out


def test_several_draws_of_demonstrations_give_a_mean_and_a_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = tmp_path / "data", tmp_path / "output"
    (data / "sums").mkdir(parents=True)
    asked = [{"input": f"{n} and {n}", "output": ["odd", "even"][n % 2], "options": ["odd", "even"]} for n in range(6)]
    for seed, first in ((100, 0), (13, 3)):
        text = "".join(json.dumps(row) + "\n" for row in (asked[first], asked[first + 1]))
        (data / "sums" / f"sums_16_{seed}_train.jsonl").write_text(text)
    (data / "sums" / "sums_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    command = ("evaluate", "metaicl", "--data", data, "--k", "1", "--rule", "full", "--output", output)
    assert ccm(*command, "--demonstrations", "100,13", "--json") == 0
    one, other = (line["figures"]["acc_norm"] for line in lines(capsys.readouterr().out))
    mean, deviation = (one + other) / 2, abs(one - other) / 2**0.5
    assert ccm(*command, "--demonstrations", "100,13") == 0  # nothing is measured again
    shown = f"{mean:.1%} ± {deviation:.1%}"
    assert shown in capsys.readouterr().out
    page = (output / "report.md").read_text()
    assert f"| 1 | full |  | {shown} |" in page
    title, _, made_of = page.splitlines()[:3]
    assert "demonstrations 100, 13" in title
    assert made_of.startswith("model: builtin (")
    assert ccm(*command, "--demonstrations", "7") == 2
    assert "demonstrations of the seeds 13, 100" in capsys.readouterr().err


@pytest.mark.slow  # real processes, each of which imports torch
def test_two_processes_measure_what_one_does(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("--rule", "full", "--rule", "concat", "--steps", "1,2", "--json")
    assert dialog(folder, *methods, "--output", tmp_path / "alone") == 0
    alone = lines(capsys.readouterr().out)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    torchrun += [
        "--rdzv-endpoint",
        "localhost:0",
        "-m",
        "ccm.cli",
        "evaluate",
        "dialog",
        "--data",
        str(folder),
        "--no-control",
        *methods,
    ]
    output = tmp_path / "output"
    done = subprocess.run(
        [*torchrun, "--output", str(output)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    both = lines(done.stdout)
    for line, other in zip(alone, both, strict=True):
        assert other["figures"] == pytest.approx(line["figures"], rel=TOLERANCE)
        assert [other[key] for key in ("questions", "tokens", "entries")] == [
            line[key] for key in ("questions", "tokens", "entries")
        ]
    kept = {path.name: json.loads(path.read_text())["values"] for path in (tmp_path / "alone" / "scores").iterdir()}
    assert len(kept) == len([*(output / "scores").iterdir()]) == 4
    for name, values in kept.items():  # question by question, in the same order
        assert json.loads((output / "scores" / name).read_text())["values"] == pytest.approx(values, rel=TOLERANCE)


def test_runs_are_merged_into_one_page(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    assert dialog(folder, "--rule", "full", "--rule", "none", "--output", one) == 0
    assert dialog(folder, "--rule", "concat", "--rule", "none", "--output", other) == 0
    assert dialog(folder, "--rule", "none", "--most", 3, "--output", third) == 0
    assert "- steps 1, 2: beyond the first 3, not asked (2)\n" in (third / "report.md").read_text()
    assert ccm("report", one, other, "--output", tmp_path / "page") == 0
    page = (tmp_path / "page" / "report.md").read_text()
    rows = [row.split(" | ")[:3] for row in page.splitlines() if row.startswith("| 2")]
    assert [row[1] for row in rows] == ["full", "none", "concat"] * 2  # figures, then memory and time
    assert page.count("## dialog: protocol paper") == 1
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["1-memory.png", "1-steps.png", "report.md"]
    assert ccm("report", one, third, "--output", tmp_path / "page") == 0
    page = (tmp_path / "page" / "report.md").read_text()
    assert page.count("\n## dialog: protocol paper") == 2  # of other questions
    capsys.readouterr()
    assert ccm("report", tmp_path / "nothing", "--output", tmp_path / "page") == 2
    assert "name the output of an evaluation that ended" in capsys.readouterr().err
    next((one / "scores").iterdir()).unlink()
    assert ccm("report", one, "--output", tmp_path / "page") == 2
    assert "run the same evaluation again" in capsys.readouterr().err
    assert ccm("report", other, "--output", one / "report.md") == 2
    assert "is a file" in capsys.readouterr().err


def test_runs_on_other_questions_are_other_tasks_and_are_measured_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, found = tmp_path / "mine.jsonl", []
    for number, name in enumerate(("tea", "dogs")):
        rows = [{"steps": [f"I like {name}."], "query": "What?", "answer": f"{name} {i}"} for i in range(3 + number)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ("evaluate", "custom", "--data", path, "--rule", "none", "--steps", 1, "--json")
        assert ccm(*command, "--output", tmp_path / "same") == 0
        assert ccm(*command, "--output", tmp_path / name) == 0
        found += lines(capsys.readouterr().out)
    assert [line["questions"] for line in found] == [3, 3, 4, 4]
    assert ccm("report", tmp_path / "tea", tmp_path / "dogs", "--mean", "--output", tmp_path / "page") == 0
    page = (tmp_path / "page" / "report.md").read_text()
    assert page.count("\n## custom") == 2
    assert "±" not in page.partition("The number after ±")[0]


def adapter_like_concat(folder: Path, **changes: object) -> Path:
    """The built-in concat adapter with other settings."""
    shutil.copytree(WEIGHTS / "concat", folder)
    path = folder / "ccm_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model": str(WEIGHTS / "base"), **changes}))
    return folder


def test_gist_online_compresses_each_step_by_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gist = adapter_like_concat(tmp_path / "gist", rule="gist")
    apart = adapter_like_concat(tmp_path / "apart", recurrent=False)
    assert dialog(folder, "--adapter", apart, "--adapter", gist, "--rule", "gist-online", "--json") == 0
    found = lines(capsys.readouterr().out)
    assert [line["method"] for line in found[::2]] == ["gist-online", "concat", "gist"]
    assert [line["entries"] for line in found] == [2.0, 4.0, 2.0, 4.0, 2.0, 2.0]
    assert [line["figures"] for line in found[:2]] == [line["figures"] for line in found[2:4]]
    assert found[5]["figures"] != found[1]["figures"]
    assert dialog(folder, "--rule", "gist-online") == 2
    assert "trained for the rule 'gist'" in capsys.readouterr().err


def locomo(folder: Path, *more: object) -> int:
    """One conversation of two sessions, of which the first holds the answers."""
    talk = {
        "session_1_date_time": "1 May",
        "session_1": [{"speaker": "Ann", "dia_id": f"D1:{i}", "text": f"I have {i} cats."} for i in (1, 2, 3)],
        "session_2_date_time": "2 May",
        "session_2": [{"speaker": "Ben", "dia_id": "D2:1", "text": "Fine."}],
    }
    qa = [
        {"question": f"Who has {i} cats?", "answer": "Ann", "evidence": [f"D1:{i}"], "category": 1 + 3 * (i > 1)}
        for i in (1, 2, 3)
    ]
    (folder / "locomo10.json").write_text(json.dumps([{"conversation": talk, "qa": qa}]))
    return ccm("evaluate", "locomo", "--data", folder, "--steps", "1,2", *more)


def test_replies_are_generated_judged_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = iter(range(1, 100))
    monkeypatch.setattr(scoring, "judge", lambda *_: dict.fromkeys(FIGURES, next(marks) / 16))
    rules, out = ("--rule", "full", "--rule", "concat"), tmp_path / "out"
    assert locomo(tmp_path, *rules, "--output", out) == 0
    assert "answer F1" in capsys.readouterr().out
    found = lines((out / "results.jsonl").read_text())
    assert {path.stem for path in (out / "replies").iterdir()} == {path.stem for path in (out / "scores").iterdir()}
    for line in found:
        assert line["main"] == "answer_f1"
        assert line["task"]["generate"] == 32
        assert {"perplexity", "loss", *FIGURES} == set(line["figures"])
        assert {name: set(figures) for name, figures in line["by_task"].items()} == {
            "multi-hop": set(line["figures"]), "single-hop": set(line["figures"]),
        }  # fmt: skip
        (path,) = (out / "replies").glob(f"{line['method']}-{line['depth']}-*.jsonl")
        replies = lines(path.read_text())
        assert [reply["question"].partition("Question: ")[2] for reply in replies] == [
            "Who has 1 cats?", "Who has 2 cats?", "Who has 3 cats?",
        ]  # fmt: skip
        assert all(reply["reply"] and reply["references"] == ["Ann"] for reply in replies)
        for name in FIGURES:
            values = [reply["figures"][name] for reply in replies]
            assert line["figures"][name] == pytest.approx(sum(values) / 3)  # of the questions, whatever their category
            assert line["by_task"]["single-hop"][name] == pytest.approx(sum(values[1:]) / 2)
    report = (out / "report.md").read_text()
    assert "answer F1 by task" in report
    assert "| step | method | multi-hop | single-hop |" in report
    assert "step 1: none of the evidence in view (2)" in report


def test_most_is_counted_by_kind_and_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert locomo(tmp_path, "--rule", "none", "--generate", 0, "--most", 1) == 0
    shown = capsys.readouterr().out
    assert [line.split()[3] for line in shown.splitlines() if " none " in line] == ["2", "2"]
    assert "--most 1: so many questions at most of each of 2 kinds, at every step." in shown


def test_replies_may_be_left_out_or_asked_for(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert locomo(tmp_path, "--rule", "full", "--generate", 0, "--output", tmp_path / "out", "--json") == 0
    without = lines(capsys.readouterr().out)
    assert locomo(tmp_path, "--rule", "full", "--output", tmp_path / "out", "--json") == 0
    replied = lines(capsys.readouterr().out)  # measured for itself
    assert [line["main"] for line in (*without, *replied)] == ["perplexity"] * 2 + ["answer_f1"] * 2
    assert [line["figures"]["loss"] for line in without] == [line["figures"]["loss"] for line in replied]
    assert dialog(folder, "--rule", "none", "--generate", 4, "--json") == 0
    for line in lines(capsys.readouterr().out):
        assert (line["main"], line["task"]["generate"]) == ("rouge_l", 4)
    assert dialog(folder, "--generate", -1) == 2
    assert "generate is -1" in capsys.readouterr().err


def test_chosen_answers_are_not_generated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"steps": ["Grass is green."], "query": "Grass?", "answer": "green", "choices": ["green", "red"]}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row))
    assert ccm("evaluate", "custom", "--data", tmp_path / "mine.jsonl", "--generate", 4) == 2
    assert "no replies that could be judged" in capsys.readouterr().err


def test_where_no_rule_is_named_an_adapter_that_ships_is_measured_beside_the_bounds() -> None:
    assert [method.name for method in evaluation_methods(Selection())] == ["full", "none", "concat"]
    assert [method.name for method in evaluation_methods(Selection(model="org/base"))] == ["full", "none"]
    gate = str(WEIGHTS / "gate")
    assert [method.name for method in evaluation_methods(Selection(adapters=[gate]))] == ["full", "none", "gate"]


def test_a_rule_that_needs_an_adapter_is_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="rule 'concat' needs an adapter for org/base"):
        evaluation_methods(Selection(model="org/base", rules=("full", "concat")))
