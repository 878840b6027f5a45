"""``ccm adapters``, through the entry function of the command line."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from authors import theirs
from commands import call
from helpers import tiny_base, tiny_model

from ccm.adapters import drive, sharing
from ccm.cli.commands import adapters
from ccm.engine.decoder import CCMModel
from ccm.models.published import ADAPTERS, MODELS, turns_for

ROOT = Path(__file__).resolve().parents[2]


def test_the_published_sets_are_listed(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "adapters", "list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"]: row["address"] for row in rows} == {name: one.drive for name, one in ADAPTERS.items()}
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "adapters", "list") == 0
    out = capsys.readouterr().out
    assert "ccm adapters download NAME" in out
    assert all(one.drive in out for one in ADAPTERS.values())  # whole, also on a narrow terminal
    assert max(len(line) for line in out.splitlines() if "://" in line) <= 80


def test_the_adapters_in_a_folder_are_listed(monkeypatch, capsys, tmp_path: Path) -> None:
    model = tiny_model("merge", n_tok=3, base_model="org/base")
    model.save_pretrained(tmp_path / "mine")
    theirs(tmp_path / "llama-7b-online-concat-ntok2")
    theirs(tmp_path / "unknown")
    theirs(tmp_path / "mine" / "base_adapter", 0)  # a part of ours
    assert call(monkeypatch, "adapters", "list", str(tmp_path), "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found = {Path(row["folder"]).name: (row["kind"], row["rule"], row["N"], row["base"]) for row in rows}
    assert found == {
        "mine": ("ours", "merge", "3", "org/base"),
        "llama-7b-online-concat-ntok2": ("to import", "concat", "2", "llama-7b"),
        "unknown": ("to import", "unknown", "", ""),
    }
    (tmp_path / "empty").mkdir()
    assert call(monkeypatch, "adapters", "list", str(tmp_path / "empty"), "--json") == 0
    assert capsys.readouterr().out == ""
    assert call(monkeypatch, "adapters", "list", str(tmp_path / "nowhere")) == 2


@pytest.mark.parametrize(
    ("named", "shown"),
    [
        (None, ("stage 1", "full", "")),
        ("", ("stage 1", "full", "")),
        ("org/base", ("stage 1", "full", "org/base")),
        (7, ("to import", "unknown", "")),
        ("null\0character", ("to import", "unknown", "")),
    ],
)
def test_the_base_of_a_lora_is_what_the_lora_names(
    monkeypatch, capsys, tmp_path: Path, named: object, shown: tuple[str, ...]
) -> None:
    theirs(tmp_path / "lora", 0, base_model_name_or_path=named)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, "adapters", "list", ".", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["kind"], row["rule"], row["base"]) == shown
    if shown[0] == "to import":
        assert call(monkeypatch, "chat", "--adapter", "lora") == 2
        assert "adapter_config.json is damaged: it names the base model" in capsys.readouterr().err


def test_an_import_says_what_it_assumed_and_gives_an_adapter(monkeypatch, capsys, tmp_path: Path) -> None:
    theirs(tmp_path / "theirs", 4)
    given = [
        str(tmp_path / "theirs"),
        "--output",
        str(tmp_path / "ours"),
        "--rule",
        "merge",
        "--no-recurrent",
        "--sink",
    ]
    assert call(monkeypatch, "adapters", "import", *given) == 0
    out, err = capsys.readouterr()
    assert "merge, N = 2" in out
    assert f"--adapter {tmp_path / 'ours'} --model BASE" in out.replace("\n", " ")
    assert call(monkeypatch, "chat", "--adapter", str(tmp_path / "ours")) == 2
    assert "does not name its base model; say which it is, as --model BASE" in capsys.readouterr().err
    assert err.count("assumed: ") == 3  # the base, the turns, and that there is no stage-1 adapter
    config = CCMModel.from_pretrained(tmp_path / "ours", tiny_base()).config
    assert (config.rule, config.n_tok, config.recurrent, config.sink) == ("merge", 2, False, True)
    assert call(monkeypatch, "adapters", "import", *given) == 2
    assert "holds an adapter already; --yes replaces it" in capsys.readouterr().err
    assert call(monkeypatch, "adapters", "import", *given, "--yes") == 0


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("\n", 2), ("no\n", 2), ("", 1)])
def test_a_terminal_is_asked(monkeypatch, tmp_path: Path, answer: str, status: int) -> None:
    theirs(tmp_path / "theirs")
    given = [str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")]
    assert call(monkeypatch, "adapters", "import", *given, stdin=answer, terminal=True) == status
    assert (tmp_path / "ours" / "ccm_config.json").is_file() == (status == 0)


def test_show_tells_ours_and_theirs(monkeypatch, capsys, tmp_path: Path) -> None:
    tiny_model(n_tok=3, base_model="org/base").save_pretrained(tmp_path / "mine")
    assert call(monkeypatch, "adapters", "show", str(tmp_path / "mine")) == 0
    assert re.search(r"base model +org/base", capsys.readouterr().out)
    theirs(tmp_path / "unified/finetune/llama-7b-no-online-concat_recur-ntok2")
    assert call(monkeypatch, "adapters", "show", str(next(tmp_path.glob("unified/*/*"))), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["base_model"] == "huggyllama/llama-7b"
    assert told["COMP tokens a step (N)"] == "2"
    theirs(tmp_path / "unified/llama-7b-no", 0)
    assert call(monkeypatch, "adapters", "show", str(tmp_path / "unified/llama-7b-no")) == 0
    assert re.search(r"stage-1 adapter +inside, rank 2", capsys.readouterr().out)
    assert call(monkeypatch, "adapters", "show", str(tmp_path)) == 2


def test_a_plain_lora_is_called_so_and_can_be_talked_to(monkeypatch, capsys, tmp_path: Path) -> None:
    place = tmp_path / "my-base"
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant") * 2]
    chats.write_text(f"{json.dumps({'messages': turns})}\n" * 2)
    text = tmp_path / "text.txt"
    text.write_text("A text of some words. " * 20)
    steps = {"max_steps": 1, "batch_size": 2, "tensorboard": "false", "data.path": chats, "output_dir": place}
    given = [word for key, value in steps.items() for word in ("--set", f"{key}={value}")]
    assert call(monkeypatch, "train", "custom", "--stage", "base", *given) == 0
    assert f"or talk to it, in full context: ccm chat --adapter {place}\n" in capsys.readouterr().err
    assert call(monkeypatch, "adapters", "list", str(tmp_path), "--json") == 0
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (row["kind"], row["rule"], row["base"]) == ("stage 1", "full", "builtin")
    assert call(monkeypatch, "adapters", "show", str(place)) == 0
    out, err = capsys.readouterr()
    assert re.search(r"turns +'<\|user\|>', '<\|assistant\|>'", out)
    assert re.search(r"base model +builtin *\n", out)
    assert not any(word in out for word in ("COMP tokens", "recurrent", "LoRA", "trained"))  # it compresses nothing
    assert f"compresses nothing. Talk to it in full context with ccm chat --adapter {place}" in err
    assert call(monkeypatch, "chat", "--adapter", str(place), stdin="My name is Anna.\nWhat is my name?\n") == 0
    direct = capsys.readouterr().out
    assert "Anna" in direct
    assert call(monkeypatch, "adapters", "import", str(place), "--output", str(tmp_path / "ours")) == 0
    assert "assumed" not in capsys.readouterr().err
    arguments = ("chat", "--adapter", str(tmp_path / "ours"))
    assert call(monkeypatch, *arguments, stdin="My name is Anna.\nWhat is my name?\n") == 0
    assert capsys.readouterr().out == direct
    for refused, message in (
        (("chat", "--rule", "concat"), "the rule 'concat' needs a compression adapter: train one on it"),
        (("stream", str(text)), "The rule 'full' does not compress step by step"),
    ):
        assert call(monkeypatch, *refused, "--adapter", str(place)) == 2
        assert message in capsys.readouterr().err


def test_a_compression_adapter_of_the_authors_is_no_stage_1(monkeypatch, capsys, tmp_path: Path) -> None:
    theirs(tmp_path / "theirs")
    assert call(monkeypatch, "chat", "--adapter", str(tmp_path / "theirs")) == 2
    assert "with `ccm adapters import`" in capsys.readouterr().err


def test_download_says_how_each_adapter_is_imported(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drive, "download_adapters", lambda name, output, quiet: [output / "llama-7b-no"])
    assert call(monkeypatch, "adapters", "download", "dialog") == 0
    assert capsys.readouterr().out == (
        "ccm adapters import adapters/dialog/llama-7b-no --output adapters/dialog-llama-7b-no\n"
    )


def test_a_card_is_shown_before_it_is_sent(monkeypatch, capsys, tmp_path: Path) -> None:
    tiny_model(base_model="org/base").save_pretrained(tmp_path)
    monkeypatch.setattr(sharing, "HfApi", None)
    assert call(monkeypatch, "adapters", "push", str(tmp_path), "me/adapter", "--dry-run") == 0
    assert 'ccm.load("org/base", adapter="me/adapter")' in capsys.readouterr().out
    sent = []
    monkeypatch.setattr(adapters, "push", lambda *args, **options: sent.append((args, options)) or "there")
    assert call(monkeypatch, "adapters", "push", str(tmp_path), "me/adapter", "--private") == 0
    assert sent == [((tmp_path, "me/adapter"), {"base": None, "results": [], "private": True})]
    assert "The adapter is at there." in capsys.readouterr().out


def test_the_guide_has_every_short_name_and_command(monkeypatch) -> None:
    text = (ROOT / "docs/adapters.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w/.-]+)` \| `(.*?)`, `(.*?)`", text, re.M)
    assert {name: hub for name, hub, *_ in rows} == {name: model.hub for name, model in MODELS.items()}
    for name, _, *written in rows:
        turns = turns_for(None, chat=MODELS[name].chat)
        assert [mark.replace("\n", r"\n") for mark in (turns.separator, turns.reply_separator)] == written
    commands = re.findall(r"^ccm ([^\n]+)", text, re.M)
    assert {shlex.split(command)[1] for command in commands} >= {"list", "show", "import", "download", "push"}
    for command in commands:
        assert call(monkeypatch, *shlex.split(command.split("   ")[0]), "--help") == 0
