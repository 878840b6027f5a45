"""``ccm train`` as it is typed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import call
from rich.progress import Progress
from tiny_t5 import write_t5
from tiny_training import Tiny

from ccm.cli.commands.progress import TrainingDisplay, progress
from ccm.training.loop import StepReport
from ccm.training.recipe import Recipe, load_recipe


def settings(tiny: Tiny, **values: object) -> list[str]:
    """As --set takes them; of a short training."""
    short: dict[str, object] = {"model": tiny.base, "data.path": tiny.chats, "device": "cpu", "adapter.lora.r": 2}
    short |= {"max_steps": 3, "batch_size": 4, "log_every": 1, "tensorboard": "false", **values}
    return [part for key, value in short.items() for part in ("--set", f"{key}={value}")]


def test_help_names_what_it_takes(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "train", "--help") == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--set", "--stage", "--dry-run", "--resume", "--from", "--wandb"))


def test_a_dry_run_shows_recipe_sample_parameters_and_memory_and_writes_nothing(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    changes = settings(tiny, output_dir=tmp_path / "out", lr="1e-4")
    assert call(monkeypatch, "train", "custom", "--dry-run", *changes) == 0
    out = capsys.readouterr().out
    head, sample = out.split("One sample; the text after > is learned.")
    shown = yaml.safe_load(head)
    assert (shown["lr"], shown["max_steps"], shown["data"]["path"]) == (1e-4, 3, str(tiny.chats))
    assert shown["turns"]["reply_separator"] == "\nAssistant:"  # resolved: it comes from the model
    assert re.search(r"(?m)^block 0  \| <s>.*\\nAssistant:.* \[COMP 1\]\[COMP 2\]$", sample)
    assert re.search(r"(?m)^ +> .*</s>$", sample)
    hidden, layers, rank = 32, 2, 2
    lora = layers * rank * sum(n + m for n, m in ((hidden, hidden), (hidden, 16), (hidden, 16), (hidden, hidden)))
    assert f"The training changes {lora + 2 * hidden:,} of " in sample
    assert re.search(r"Estimated memory of a process: [\d.]+ [KMG]B \(weights [\d.]+ [KMG]B, gradients", sample)
    assert not (tmp_path / "out").exists()


def test_the_recipe_that_a_dry_run_shows_is_one_that_it_takes(tiny: Tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "train", "custom", "--dry-run", *settings(tiny)) == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out.split("One sample;")[0])
    recipe = load_recipe(path)
    assert (recipe.max_steps, recipe.batch_size, recipe.model) == (3, 4, str(tiny.base))


def test_a_dry_run_refuses_what_a_training_would(tiny: Tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "train", "custom", "--dry-run", *settings(tiny, max_offset=4000)) == 2
    assert "model supports 512 positions" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "mine.txt").write_text("kept")
    assert call(monkeypatch, "train", "custom", "--dry-run", *settings(tiny, output_dir=tmp_path)) == 2
    assert "holds other files (mine.txt" in " ".join(capsys.readouterr().err.split())
    refused = {
        "shard": "several processes",
        "mixed_precision": "keeps the base in float32",
        "wandb": "wandb=true needs wandb, not installed here: `pip install -e '.[wandb]'` or `pip install wandb`.",
    }
    monkeypatch.setitem(sys.modules, "wandb", None)
    for key, said in refused.items():
        changes = settings(tiny, dtype="bfloat16", **{key: "true"})
        assert call(monkeypatch, "train", "custom", "--dry-run", *changes) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_a_dry_run_of_the_first_stage_has_no_comp_token(tiny: Tiny, monkeypatch, capsys) -> None:
    assert call(monkeypatch, "train", "custom", "--dry-run", "--stage", "base", *settings(tiny)) == 0
    out = capsys.readouterr().out
    assert "stage: base" in out
    assert "COMP" not in out
    assert "The training changes" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["custum"], "ccm: There is no recipe 'custum'. Did you mean custom?"),
        (
            ["chats.jsonl"],
            "ccm: chats.jsonl is a data file, not a recipe. Name a recipe such as custom, with --set data.path=FILE.",
        ),
        (
            ["custom", "--set", "max_stps=3"],
            "ccm: The recipe custom has unknown keys ['max_stps']. Did you mean max_steps?\n",
        ),
        (["custom", "--set", "output_dir=out"], "name it as --set data.path=PATH"),
        (["custom", "--set", "data.path=nowhere.jsonl", "--set", "output_dir=out"], "no file or folder nowhere.jsonl"),
        (["custom", "--set", "data.path=nowhere.jsonl"], "for the result with --set output_dir=DIR"),
        (["custom", "--resume", "--set", "output_dir=nowhere"], "no run in nowhere to resume; leave --resume out"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(
    tmp_path: Path, monkeypatch, capsys, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "train", *arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_another_run_in_the_output_directory_is_refused_and_can_be_resumed(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    changes = settings(tiny, output_dir=tmp_path / "out", max_steps=1)
    assert call(monkeypatch, "train", "custom", "--stage", "base", *changes) == 0
    assert f"--stage compress --set base_adapter={tmp_path / 'out'}" in capsys.readouterr().err
    assert call(monkeypatch, "train", "custom", "--stage", "base", *changes) == 2
    assert "holds another run. Resume it with --resume" in capsys.readouterr().err
    assert call(monkeypatch, "train", "custom", "--stage", "base", "--resume", *changes) == 0
    assert call(monkeypatch, "train", "custom", "--resume", *changes) == 2
    assert "has other settings: stage" in capsys.readouterr().err


def test_on_a_terminal_a_bar_shows_how_it_goes(tiny: Tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert call(monkeypatch, "train", "custom", *settings(tiny, output_dir=tmp_path / "out")) == 0
    err = capsys.readouterr().err
    assert "3/3" in err
    assert re.search(r"loss \d+\.\d{4}  [\d,]+ tokens/s", err)


def test_the_bar_moves_with_every_step(monkeypatch) -> None:
    """A report comes every ``log_every`` steps only; of what was held out, the last figures stay."""
    drawn: list[dict[str, Any]] = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(Progress, "update", lambda bar, task, **shown: drawn.append(shown))
    stands = StepReport(2, {"loss": 1.5}, 1e-4, 1.0, 100.0, 4.0, 2.0)
    with progress(Recipe(max_steps=4)) as shown:
        shown.advance(1, None)  # where it goes on
        shown.advance(2, stands)
        shown.report(replace(stands, measured={"last": 0.5}))
        shown.advance(3, replace(stands, losses={"loss": 1.25}, seconds_left=1.0))
    assert [update["completed"] for update in drawn if "completed" in update] == [1, 2, 3]
    assert [update["description"] for update in drawn if "description" in update] == [
        "",  # instead of what is loaded
        "loss 1.5000  100 tokens/s  2 s left",
        "loss 1.5000  100 tokens/s  held out: last 0.5000  2 s left",
        "loss 1.2500  100 tokens/s  held out: last 0.5000  1 s left",
    ]


def test_a_log_says_how_far_slow_steps_are(monkeypatch, capsys) -> None:
    monkeypatch.setattr("ccm.cli.console.LINE_SECONDS", 0.01)
    monkeypatch.setattr("ccm.cli.commands.progress.LINE_SECONDS", 0.01)
    with progress(Recipe(max_steps=4)) as shown:
        time.sleep(0.1)
        shown.advance(0, None)
        time.sleep(0.1)
        shown.advance(1, StepReport(1, {"loss": 1.5}, 1e-4, 1.0, 100.0, 4.0, 12.0))
        time.sleep(0.1)
    told = dict.fromkeys(capsys.readouterr().err.splitlines())
    assert [*told] == [
        "training: loading the data and the model  0 s so far",
        "training: step 0/4  0 s so far",
        "training: step 1/4  loss 1.5000  100 tokens/s  12 s left  0 s so far",
    ]


def test_a_checkpoint_of_another_folder_is_gone_on_from(tiny: Tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    changes = settings(tiny, output_dir=tmp_path / "out", save_every=2)
    assert call(monkeypatch, "train", "custom", *changes) == 0
    start = str(tmp_path / "out" / "checkpoints" / "step-000002.safetensors")
    changes = settings(tiny, output_dir=tmp_path / "there")
    assert call(monkeypatch, "train", "custom", "--from", start, "--dry-run", *changes) == 0
    (tmp_path / "chats.jsonl").write_text("".join(reversed(tiny.chats.read_text().splitlines(keepends=True))))
    others = settings(tiny, output_dir=tmp_path / "there", **{"data.path": tmp_path / "chats.jsonl"})
    for look in (["--dry-run"], []):
        assert call(monkeypatch, "train", "custom", "--from", start, *look, *others) == 2
        assert f"The checkpoint {start} was made with another data" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "there").exists()
    assert call(monkeypatch, "train", "custom", "--from", start, *changes) == 0
    assert re.findall(r"step (\d)/3", capsys.readouterr().err) == ["3"]
    name = "ccm_adapter.safetensors"
    assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_ctrl_c_says_from_where_to_go_on(tiny: Tiny, tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("ccm.cli.commands.train.progress", lambda recipe: nullcontext(TrainingDisplay(interrupt)))
    assert call(monkeypatch, "train", "custom", *settings(tiny, output_dir=tmp_path / "out")) == 130
    assert "Step 2 is saved. Resume from it with --resume." in capsys.readouterr().err
    assert caplog.messages[-1] == "Finishing and saving the current step first; interrupt again to stop at once."
    caplog.clear()
    assert call(monkeypatch, "train", "custom", "--resume", *settings(tiny, output_dir=tmp_path / "out")) == 0
    assert not [text for text in caplog.messages if "step" in text]
    assert call(monkeypatch, "train", "custom", "--resume", *settings(tiny, output_dir=tmp_path / "out")) == 0
    assert caplog.messages[-1] == "All 3 steps were already made; writing the result again."


@pytest.mark.parametrize(
    ("save_every", "told"),
    [
        (1, "The last checkpoint is that of step 2. Resume from it with --resume."),
        (0, "No checkpoint is saved. Start again with --resume."),
    ],
)
def test_a_second_ctrl_c_says_what_is_saved(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys, save_every: int, told: str
) -> None:
    def interrupt(report: StepReport) -> None:
        if report.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    changes = settings(tiny, output_dir=tmp_path / "out", save_every=save_every)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    with monkeypatch.context() as interrupted:
        interrupted.setattr("ccm.cli.commands.train.progress", lambda recipe: nullcontext(TrainingDisplay(interrupt)))
        assert call(monkeypatch, "train", "custom", *changes) == 130
    signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert call(monkeypatch, "train", "custom", "--resume", *changes) == 0


def test_ctrl_c_before_the_training_begins_says_that_nothing_was_begun(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ccm.training.loop.open_data", interrupted)
    assert call(monkeypatch, "train", "custom", *settings(tiny, output_dir=tmp_path / "out")) == 130
    assert capsys.readouterr().err.strip() == "Nothing was begun."
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_real_process_trains_through_a_pipe_and_chat_opens_the_result(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "out"
    changes = settings(tiny, output_dir=out, eval_every=3, tensorboard="true", **{"data.eval_samples": 2})
    done = subprocess.run(
        [sys.executable, "-m", "ccm.cli", "train", "custom", *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout == ""
    *lines, last = done.stderr.strip().splitlines()
    assert len(lines) == 3
    for step, line in enumerate(lines, start=1):
        held = r"  held out: every \d+\.\d{4}" if step == 3 else ""
        pattern = rf"training: step {step}/3  loss \d+\.\d{{4}}  [\d,]+ tokens/s{held}  [\d,]+ s left"
        assert re.fullmatch(pattern, line), line
    assert last == f"Done. Talk to it: ccm chat --adapter {out}"
    assert call(monkeypatch, "chat", "--adapter", str(out), "--max-new-tokens", "5", stdin="Hello.\n") == 0
    assert len(capsys.readouterr().out.splitlines()) >= 1


def test_an_encoder_decoder_is_estimated_and_what_follows_its_training_is_no_chat(
    tiny: Tiny, tmp_path: Path, monkeypatch, capsys
) -> None:
    short = {"model": write_t5(tmp_path / "t5"), "adapter.recurrent": "false", "objective.last": 1, "max_steps": 1}
    changes = settings(tiny, **short, output_dir=tmp_path / "out")
    assert call(monkeypatch, "train", "custom", "--dry-run", *changes) == 0
    assert "Estimated memory of a process" in capsys.readouterr().out
    assert call(monkeypatch, "train", "custom", *changes) == 0
    said = f"Measure it: ccm evaluate custom --data FILE --adapter {tmp_path / 'out'}"
    assert capsys.readouterr().err.endswith(f"Done. {said}\n")
    assert call(monkeypatch, "adapters", "push", str(tmp_path / "out"), "me/it", "--base", "org/t5", "--dry-run") == 0
    card = capsys.readouterr().out
    use = card.split("```python")[1].split("```")[0]
    assert "compress" in use
    exec(use.replace("org/t5", str(tmp_path / "t5")).replace("me/it", str(tmp_path / "out")), {})
