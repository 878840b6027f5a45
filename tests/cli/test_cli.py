"""The command line, through its entry function and once as a real process."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from authors import theirs
from commands import call
from rich.console import Console

from ccm import cli
from ccm.chat.conversation import Conversation
from ccm.chat.window import WindowConversation
from ccm.cli.commands import chat
from ccm.core.units import size
from ccm.models.builtin import WEIGHTS
from ccm.models.locate import base_name


def test_the_help_of_repeatable_options_shows_what_is_to_be_put_in(monkeypatch, capsys) -> None:
    def walk(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
        for name, below in getattr(command, "commands", {}).items():
            yield from walk(below, *path, name)
        if any(getattr(given, "multiple", False) for given in command.params):
            yield path

    paths = [*walk(typer.main.get_command(cli.app))]
    assert len(paths) > 5
    for path in paths:
        assert call(monkeypatch, *path, "--help") == 0
        assert "list[" not in capsys.readouterr().out.partition(" Options ")[2]


def test_help_names_every_verb(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "--help") == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("chat", "demo", "evaluate"))


def test_a_pipe_gives_one_reply_a_line_and_statistics_elsewhere(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", stdin="My name is Anna.\nWhat is my name?\n") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "Anna" in out.splitlines()[1]
    assert err.count("tokens; memory") == 2
    assert "-> 2 tokens; memory 4 entries, 24 KB (full context: " in err


def test_json_holds_the_promised_fields(monkeypatch, capsys) -> None:
    for rule, entries in (("gate", 4), ("none", 0)):
        assert call(monkeypatch, "chat", "--json", "--rule", rule, stdin="My name is Anna.\nThank you!\n") == 0
        turns = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(turns) == 2
        for turn in turns:
            assert set(turn) == {
                "reply",
                "step_tokens",
                "memory_entries",
                "memory_bytes",
                "full_context_tokens",
                "full_context_bytes",
                "recent_tokens",
                "prompt_tokens",
                "reply_tokens",
                "ended",
            }
            assert turn["memory_entries"] == entries
        assert turns[1]["full_context_tokens"] == turns[0]["step_tokens"] + turns[1]["step_tokens"]


def test_options_of_a_rule_reach_it(monkeypatch, capsys) -> None:
    arguments = ("chat", "--rule", "gate", "--rule-option", "bias=0.5")
    assert call(monkeypatch, *arguments, stdin="/memory\n") == 0
    assert "gate (bias = 0.5), N = 4" in capsys.readouterr().err


def test_full_context_holds_every_token(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", "--json", "--rule", "full", stdin="My name is Anna.\n") == 0
    turn = json.loads(capsys.readouterr().out)
    assert turn["memory_entries"] == turn["step_tokens"] == turn["full_context_tokens"]
    assert turn["memory_bytes"] == turn["full_context_bytes"]


def test_lines_that_begin_with_a_slash_are_commands_without_a_reply(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    lines = ["My name is Anna.", f"/save {file}", "/reset", "/memory", f"/load {file}", "What is my name?", "/undo"]
    assert call(monkeypatch, "chat", "--rule", "full", stdin="\n".join(lines)) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert out.splitlines()[1] == "Your name is Anna."
    assert "0 steps, 0 tokens in 0 entries" in err
    assert err.rstrip().splitlines()[-1].startswith("full: 1 step, ")


def test_a_window_holds_recent_text_and_its_own_files(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "anna.stream"
    lines = ["My name is Anna.", "I live in Oslo.", "Thank you!", f"/save {file}", "/undo", "/reset", f"/load {file}"]
    assert call(monkeypatch, "chat", "--window", "36", stdin="\n".join([*lines, "/memory", "What is my name?"])) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "Your name is Anna."
    assert "13 tokens; memory 13 entries (13 of them recent text), 78 KB (full context: 13 tokens, 78 KB)" in err
    shown = "1 compression, 39 tokens in 28 entries (26 of them recent text), 1.4 tokens an entry"
    assert f"concat, N = 2, window of 36: {shown}" in err
    assert call(monkeypatch, "chat", "--load", str(file)) == 2
    assert "a stream, as of a chat with a window; wanted is a memory, as of" in capsys.readouterr().err


def test_on_a_terminal_the_window_is_told_and_lines_break_between_words(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.stream"
    lines = ["My name is Anna.", f"/save {file}", "/undo 40"]
    assert call(monkeypatch, "chat", "--window", "36", stdin="\n".join(lines), terminal=True) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert "builtin, concat, N = 2, window of 36" in shown[1]
    assert "     13 tokens; memory 13 entries (13 of them recent text), 78 KB (full context:" in shown
    assert "     13 tokens, 78 KB)" in shown
    assert "last 8 are kept, and none from before one was loaded. Load an earlier one, or" in shown
    arguments = ("chat", "--window", "100", "--load", str(file))
    assert call(monkeypatch, *arguments, stdin="/reset\n/memory\n", terminal=True) == 0
    out = capsys.readouterr().out
    assert "window of 36" in out.splitlines()[1]  # the file's
    assert "window of 100: 0 compressions" in out


def test_undo_takes_a_count(monkeypatch, capsys) -> None:
    for rule in ("concat", "gate"):
        lines = ["My name is Anna.", "I live in Oslo.", "Thank you!", "/undo 2"]
        assert call(monkeypatch, "chat", "--rule", rule, stdin="\n".join(lines)) == 0
        assert f"{rule}, N = {2 if rule == 'concat' else 4}: 1 step, " in capsys.readouterr().err


def test_json_gives_one_object_for_every_turn(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", "--json", stdin="/memory\n \nMy name is Anna.\n /undo\t5\n") == 1
    out, err = capsys.readouterr()
    empty, turn = map(json.loads, out.splitlines())
    assert "0 steps" in err
    assert "is empty" in empty["error"]
    assert turn["memory_entries"] == 2
    assert "Cannot take 5" in err


def test_compare_shows_three_replies(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", stdin="I live in Oslo.\n/compare Where do I live?\n") == 0
    err = capsys.readouterr().err
    assert all(name in err for name in ("memory", "full", "none"))
    assert err.count("You live in Oslo.") == 2  # from the memory, and from full context


def test_why_there_is_no_reply_from_full_context_is_told(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    lines = ["I live in Oslo.", f"/save {file}", f"/load {file}", "/compare Where do I live?"]
    assert call(monkeypatch, "chat", stdin="\n".join(lines)) == 0
    assert "(none: a saved memory has no text, and what was said before" in capsys.readouterr().err
    monkeypatch.setattr(WindowConversation, "compare", lambda self, text: {"full": None})
    arguments = ("chat", "--window", "36", "--max-new-tokens", "3070")
    assert call(monkeypatch, *arguments, stdin="/compare Where do I live?\n") == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "tokens of text and a reply of 3070 do not fit into the model's 3072 positions)" in told


def test_another_conversation_is_replaced_only_when_it_is_said_twice(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    save, other = f"/save {file}", f"/save {tmp_path / 'b.memory'}"
    assert call(monkeypatch, "chat", stdin=f"My name is Anna.\n{save}\nThank you!\n{save}\n") == 0  # its own file
    before = file.read_bytes()
    capsys.readouterr()
    assert call(monkeypatch, "chat", stdin=f"I live in Oslo.\n{other}\n{save}\n") == 1
    assert "a.memory holds another conversation, and was left as it is; say it again" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert call(monkeypatch, "chat", "--load", str(file), stdin=f"/undo\n{save}\n") == 0  # it was loaded from there
    assert call(monkeypatch, "chat", stdin=f"/load {file}\n{save}\n/reset\n{save}\n") == 1  # a new one
    assert call(monkeypatch, "chat", stdin=f"I live in Oslo.\n{save}\nThank you!\n{save}\n/load {file}\n") == 1
    assert "concat, N = 2: 2 steps" in capsys.readouterr().err.splitlines()[-1]


def test_a_conversation_of_another_kind_is_never_replaced(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    for own, other in (((), ("--window", "36")), (("--window", "36"), ())):
        assert call(monkeypatch, "chat", *own, stdin=f"My name is Anna.\n/save {file}\n") == 0
        before = file.read_bytes()
        capsys.readouterr()
        assert call(monkeypatch, "chat", *other, stdin=f"I live in Oslo.\n/save {file}\n/save {file}\n") == 1
        err = capsys.readouterr().err
        assert (err.count("holds a "), err.count("and what is saved is a"), err.count("say it again")) == (2, 2, 0)
        assert file.read_bytes() == before
        file.unlink()


def test_flags_are_named_where_the_library_names_settings(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    assert call(monkeypatch, "chat", stdin=f"My name is Anna.\n/save {file}\n") == 0
    capsys.readouterr()
    assert call(monkeypatch, "chat", "--rule", "gate", "--load", str(file)) == 2
    assert call(monkeypatch, "chat", "--rule", "gate", stdin=f"/load {file}\n") == 1
    assert call(monkeypatch, "chat", "--rule", "gate", stdin=f"/load {file}\n", terminal=True) == 0
    out, err = capsys.readouterr()
    shown = " ".join(f"{err}{out}".split())
    assert shown.count("load the model with --rule concat.") == 3


def test_a_terminal_shows_the_model_the_replies_and_the_numbers(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", stdin="My name is Anna.\nWhat is my name?\n", terminal=True) == 0
    out = capsys.readouterr().out
    assert "builtin, concat, N = 2" in out
    assert out.count("Anna") >= 1
    assert out.count("tokens; memory") == 2


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        ((), "A chat with a small memory: 2 entries a turn."),
        (("--rule", "gate"), "A chat with a small memory: 4 entries, however many turns there are."),
        (("--rule", "full"), "A chat in full context: all turns stay as text"),
        (("--rule", "none"), "A chat without memory: each turn stands alone."),
        (("--rule", "pos_control"), "for each reply, all turns are compressed into 2 entries."),
        (("--window", "36"), "A chat without end, in 36 entries: recent turns stay as text"),
    ],
)
def test_the_first_screen_says_what_the_chat_is(monkeypatch, capsys, arguments: tuple[str, ...], about: str) -> None:
    assert call(monkeypatch, "chat", *arguments, terminal=True) == 0
    shown = capsys.readouterr().out
    assert about in " ".join(shown.split())
    assert shown.startswith("Loading ...\rccm ")
    for told in ("The built-in model is tiny", "I live in Oslo.", "/compare Where do I live?", "/help lists"):
        assert told in shown


def test_the_first_screen_says_nothing_of_what_another_model_knows(monkeypatch, capsys, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(WEIGHTS / "base", folder)
    assert call(monkeypatch, "chat", "--model", str(folder), "--rule", "full", terminal=True) == 0
    assert "built-in" not in capsys.readouterr().out


def test_the_first_screen_says_what_was_loaded(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "a.memory"
    assert call(monkeypatch, "chat", stdin=f"My name is Anna.\n/save {file}\n") == 0
    assert call(monkeypatch, "chat", "--load", str(file), terminal=True) == 0
    assert "1 step, 13 tokens in 2 entries" in capsys.readouterr().out


def test_the_line_of_statistics_is_explained_once(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", stdin="My name is Anna.\nThank you!\n", terminal=True) == 0
    shown = " ".join(capsys.readouterr().out.split())
    explained = "(This turn's 13 tokens became 2 entries. The memory takes 12 KB; the whole text would take 78 KB.)"
    assert shown.count(explained) == shown.count("This turn's") == 1
    assert call(monkeypatch, "chat", "--window", "36", stdin="My name is Anna.\n", terminal=True) == 0
    assert "(This turn's 13 tokens stay as text for now. The" in capsys.readouterr().out


def test_words_leave_and_help_on_a_terminal_and_are_turns_in_a_pipe(monkeypatch, capsys) -> None:
    for word in ("exit", "QUIT", "/exit", "/quit"):
        assert call(monkeypatch, "chat", stdin=f"help\n{word}\n/nonsense\n", terminal=True) == 0
        out = capsys.readouterr().out
        assert "take back the last exchange" in out
        assert "nonsense" not in out
    assert call(monkeypatch, "chat", stdin="help\n") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_turn_far_beyond_those_of_the_builtin_model_is_warned_of(monkeypatch, capsys) -> None:
    arguments = ("chat", "--max-new-tokens", "4")
    line = "My name is Anna. " * 12
    assert call(monkeypatch, *arguments, stdin=f"{line}\nThank you!\n", terminal=True) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told.count("trained on turns of up to 22, and will not make sense of it") == 1
    assert call(monkeypatch, *arguments, stdin=line) == 0
    assert "trained on turns" not in "".join(capsys.readouterr())


@pytest.mark.parametrize("term", ["dumb", "unknown", "", None])
def test_a_terminal_without_control_sequences_gives_plain_lines(monkeypatch, capsys, term: str | None) -> None:
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    console = Console(force_terminal=True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("My name is Anna.\n"))
    ask = chat._line_reader(console, {})
    assert ask() == "My name is Anna."
    with pytest.raises(EOFError):
        ask()
    assert capsys.readouterr().out == "you  you  \n"


@pytest.mark.parametrize("line", ["/x[/]", "/load [/i] :x:"])
def test_a_terminal_shows_errors_as_they_are(monkeypatch, capsys, line: str) -> None:
    assert call(monkeypatch, "chat", stdin=f"{line}\n/memory\n", terminal=True) == 0
    out = capsys.readouterr().out
    assert line.split(" ", 1)[-1] in out
    assert "0 steps" in out


def test_replies_are_shown_as_they_are(monkeypatch, capsys) -> None:
    monkeypatch.setattr(Conversation, "compare", lambda self, text: {"memory": "a [/i] :x:", "full": None})
    assert call(monkeypatch, "chat", stdin="/compare x\n") == 0
    assert "a [/i] :x:" in capsys.readouterr().err


def test_an_interrupted_command_does_not_end_the_chat(monkeypatch, capsys) -> None:
    def interrupted(self: Conversation, text: str) -> dict[str, str | None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "compare", interrupted)
    assert call(monkeypatch, "chat", stdin="/compare x\n/memory\n", terminal=True) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "0 steps" in out


def test_an_interrupted_reply_does_not_end_the_chat(monkeypatch, capsys) -> None:
    def interrupted(self: Conversation, text: str) -> Generator[str, None, None]:
        yield "Your name"
        raise KeyboardInterrupt

    monkeypatch.setattr(Conversation, "say", interrupted)
    assert call(monkeypatch, "chat", stdin="Hello.\n/memory\n/quit\n/nonsense\n", terminal=True) == 0
    out = capsys.readouterr().out
    assert "interrupted" in out
    assert "0 steps" in out
    assert "nonsense" not in out


def test_bytes_that_are_no_text_do_not_end_the_conversation(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", stdin=b"My name is \xff.\nThank you!\n") == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "The turn holds '\\udcff' at character 11: the byte 0xff, which is not UTF-8" in err


def test_a_base_model_is_called_by_its_own_name(monkeypatch, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "llama-3-8b"
    shutil.copytree(WEIGHTS / "base", folder)
    assert base_name(str(folder)) == "llama-3-8b"
    monkeypatch.chdir(folder)
    assert base_name(".") == "llama-3-8b"
    assert base_name(str(WEIGHTS / "concat" / ".." / "base")) == "builtin"
    assert base_name("") == ""
    assert base_name("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


BAD_LINES = [
    ("   ", "is empty"),
    ("/nonsense", "There is no command /nonsense. The commands are /memory, "),
    ("/c What is my name?", "There is no command /c. Did you mean /compare?"),
    ("/laod a.memory", "There is no command /laod. Did you mean /load?"),
    ("/forget", "There is no command /forget. The commands are /memory, "),
    ("/save", "needs a file name"),
    ("/load no-such-file", "There is no file no-such-file"),
    ("/load .", "is a directory"),
    ("/save .", "is a directory"),
    ("/undo", "no exchange"),
    ("/undo 2", "there is no exchange"),
    ("/undo two", "takes a count"),
    ("/undo " + "9" * 5000, "takes a count"),
    ("/load ~/no-such-file", "There is no file /"),
    ("/reset now", "takes nothing after it, but 'now'"),
    ("/save no/such/folder", "no/such/folder cannot be written: there is no folder"),
    ("/save pyproject.toml", "is not a saved memory"),
    (
        "/load pyproject.toml",
        "is no whole file of a memory, as of a chat without a window: it is not of the format",
    ),
    ("/compare", "needs a question"),
]


def test_a_bad_line_is_reported_and_the_conversation_goes_on(monkeypatch, capsys) -> None:
    said = [line for line, _ in BAD_LINES] + ["My name is Anna."]
    assert call(monkeypatch, "chat", stdin="\n".join(said) + "\n") == 1
    out, err = capsys.readouterr()
    reports = iter(err.splitlines())
    missing = [message for _, message in BAD_LINES if not any(message in report for report in reports)]
    assert not missing
    assert len(out.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rule", "nonsense"], "There is no rule 'nonsense'"),
        (["--rule", "gist"], "it runs as concat, ema, full, gate, merge, none, pos_control"),
        (["--rule", "ema", "--rule-option", "weight=2"], "weight of the rule 'ema' is 2"),
        (["--rule", "ema", "--rule-option", "weight=x"], "write NAME=VALUE"),
        (["--rule", "ema", "--rule-option", "weight=null"], "weight of the rule 'ema' is None"),
        (["--rule", "ema", "--rule-option", 'weight="0.3"'], "weight of the rule 'ema' is '0.3'"),
        (["--rule", "ema", "--rule-option", "weight=NaN"], "weight of the rule 'ema' is nan"),
        (["--rule", "gate", "--rule-option", "weight=0.3"], "has no options ['weight']"),
        (["--n-tok", "3"], "n_tok 2"),
        (["--device", "nonsense"], "There is no device 'nonsense'"),
        (["--device", "cuda:77"], "There is no device 'cuda:77'"),
        (["--dtype", "int8"], "allowed: auto, float64, float32"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--max-new-tokens", "0"], "ccm: --max-new-tokens is 0; it must be at least 1."),
        (["--top-k", "-1"], "ccm: --top-k is -1; it must be at least 0."),
        (["--repetition-penalty", "0"], "--repetition-penalty is 0"),
        (["--seed", "99999999999999999999"], "seed is 99999999999999999999"),
        (["--load", "."], "is a directory"),
        (["--window", "7"], "must be from 8 to 3071"),
        (["--window", "60", "--rule", "full"], "such as concat, or talk without a window"),
        (["--load", "no-such-file"], "There is no file"),
        (["--adapter", "tests"], "holds no adapter"),
        (["--adapter", "./no-such-folder"], "There is no folder"),
        (["--adapter", "builtin"], "builtin is a model. To take an adapter that ships for it, name it as the model"),
        (["--model", "./no-such-folder", "--rule", "full"], "no-such-folder"),
        (["--model", "./no-such-folder"], "it is neither a folder nor a valid Hub id"),
        (["--model", "tests"], "there is no config.json in the folder"),
        (["--model", "pyproject.toml"], "the file is neither a folder nor a GGUF file"),
        (["--model", "src/ccm/models/builtin/weights/base"], "name one, or take --rule full or --rule none."),
        (["--load", "pyproject.toml"], "pyproject.toml is no whole file of a memory, as of a chat without a window"),
    ],
)
def test_bad_options_give_one_clear_line(monkeypatch, capsys, arguments: list[str], message: str) -> None:
    assert call(monkeypatch, "chat", *arguments, stdin="My name is Anna.\n") == 2
    out, err = capsys.readouterr()
    assert not out
    assert message in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.covers(cases=2)
@pytest.mark.parametrize("rule", ["concat", "gate", "full", "none"])
def test_the_demo_finds_both_paths_equal(monkeypatch, capsys, rule: str) -> None:
    assert call(monkeypatch, "demo", "--rule", rule) == 0
    out = capsys.readouterr().out
    rows = [line.split("│") for line in out.splitlines() if "parallel pass" in line or "step by step" in line]
    (_, _, reply, loss, *_), (_, _, again, other, *_) = rows
    assert reply == again
    assert float(loss) == pytest.approx(float(other), abs=2e-4)  # of four digits the last may be rounded otherwise


def test_the_demo_takes_another_example(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("I play the piano. | Lovely.\nWhich instrument do I play?\nYou play the piano.\n", encoding="utf-8")
    assert call(monkeypatch, "demo", "--file", str(file)) == 0
    assert "You play the piano." in capsys.readouterr().out
    assert call(monkeypatch, "demo", "--file", str(file), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["question"] == "Which instrument do I play?"
    assert [path["path"] for path in told["paths"]] == ["parallel pass", "memory, step by step", "no context"]
    file.write_text("too short\n", encoding="utf-8")
    assert call(monkeypatch, "demo", "--file", str(file)) == 2
    assert "needs a turn, a question and an answer" in capsys.readouterr().err


def test_the_demo_shows_an_example_as_it_is(monkeypatch, capsys, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("[/] hello | hi\nWhat [/] is my name?\nI [/] :x: know.\n", encoding="utf-8")
    assert call(monkeypatch, "demo", "--file", str(file)) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("[/] hello | hi", "What [/] is my name?", "I [/] :x: know."))


def test_the_demo_allows_for_the_rounding_of_half_precision(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "demo", "--dtype", "bfloat16") == 0


@pytest.mark.parametrize("verb", [["chat"], ["demo"], ["evaluate", "builtin"]])
def test_every_verb_checks_n_tok(monkeypatch, capsys, verb: list[str]) -> None:
    assert call(monkeypatch, *verb, "--n-tok", "3") == 2
    assert "n_tok 2" in capsys.readouterr().err


def test_evaluate_reports_recall(monkeypatch, capsys) -> None:
    arguments = ["evaluate", "builtin", "--rule", "full", "--dialogues", "4", "--json"]
    assert call(monkeypatch, *arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["dialogues"] == 4
    assert report["recall"] > 0.8
    assert report["memory_bytes"] == report["full_context_bytes"]
    for name, value, allowed in (
        ("steps", 3, "need at least 8."),
        ("facts", 3, "tells 4 to 10."),
        ("facts", 11, "tells 4 to 10."),
        ("dialogues", 0, "at least 1."),
        ("batch", 0, "at least 1."),
    ):
        assert call(monkeypatch, "evaluate", "builtin", f"--{name}", str(value)) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"ccm: --{name} is {value}; ")
        assert err.endswith(f"{allowed}\n")


def test_evaluate_shows_a_table_that_fits_a_terminal_and_its_progress(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "evaluate", "builtin", "--dialogues", "2", "--batch", "1") == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 8  # no row is wrapped
    assert all(name in out for name in ("concat, N = 2", "recall", "held-out", "invented", "x smaller"))
    assert err.splitlines() == ["concat, 12 steps: 2 of 2 dialogues, 0 s left"]  # and one every ten seconds


def test_sizes_read_well() -> None:
    assert [size(n) for n in (0, 1000, 12 * 1024, 3 * 1024**2 // 2, 24 * 1024**3, 3 * 1024**4 // 2)] == [
        "0 bytes",
        "1000 bytes",
        "12 KB",
        "1.5 MB",
        "24.0 GB",
        "1.5 TB",
    ]


def test_the_installed_command_works_as_a_process() -> None:
    command = Path(sys.executable).parent / "ccm"
    done = subprocess.run(
        [command, "chat"], input="My name is Anna.\n", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "-> 2 tokens" in done.stderr


def test_the_data_sets_are_listed(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert call(monkeypatch, "data", "list") == 0
    shown = capsys.readouterr().out
    assert "non-commercial" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert call(monkeypatch, "data", "list", "--verbose") == 0
    out = capsys.readouterr().out
    assert "address not verified" in out
    assert "no checksum known" in out
    assert call(monkeypatch, "data", "list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"dailydialog", "soda", "pg19"} < {row["name"] for row in rows}
    assert next(row for row in rows if row["name"] == "dailydialog")["commercial"] is False


def test_a_data_set_is_prepared_and_counted(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("given").mkdir()
    Path("given/dialogues_test.txt").write_text("Hi . __eou__ Hello . __eou__ Bye . __eou__\n" * 1000)
    assert call(monkeypatch, "data", "prepare", "dailydialog", "--source", "given") == 0
    out = capsys.readouterr().out
    assert out.startswith("DailyDialog is in data/dailydialog. Licence: non-commercial, CC BY-NC-SA 4.0.\n")
    assert "dialogues, test        1,000  as published" in out
    assert "dialogues, train           0  published: 11,118" in out
    assert "\nNot there: dialogues_train.txt, dialogues_validation.txt. Put them into a folder DIR, and say:" in out
    assert out.endswith("ccm evaluate dialog --data data/dailydialog\n")
    assert call(monkeypatch, "data", "prepare", "dailydialog") == 0
    assert "is already in data/dailydialog" in capsys.readouterr().out
    assert call(monkeypatch, "data", "prepare", "dailydialog", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["folder"], told["fresh"], told["counts"]["dialogues, test"]) == ("data/dailydialog", False, 1000)
    assert call(monkeypatch, "data", "prepare", "lmsys") == 2
    assert "prepare lmsys with --source DIR" in capsys.readouterr().err


def test_stream_shows_a_line_a_method_and_goes_on_with_the_text(monkeypatch, capsys, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("My name is Anna. I live in Oslo. " * 40, encoding="utf-8")
    small = ["--cache-size", "40", "--span", "16", "--tokens", "120"]
    assert call(monkeypatch, "stream", str(path), *small, "--generate", "4", "--output", str(tmp_path / "out")) == 0
    out, err = capsys.readouterr()
    assert err.startswith("Note: the built-in model knows only the small talk that it was trained on.")
    assert err.count("Note:") == 1
    assert "concat" in out
    assert "window" in out
    assert out.count("goes on, by") == 2
    assert "120 of 120" in err
    assert "tokens/s" in err
    assert (tmp_path / "out/perplexity.png").is_file()


def test_stream_writes_json_lines(monkeypatch, capsys, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("My name is Anna. I live in Oslo. " * 40, encoding="utf-8")
    small = ["--cache-size", "40", "--span", "16", "--tokens", "120", "--baseline", "blocks", "--rule", "gate"]
    assert call(monkeypatch, "stream", str(path), *small, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    points, ends, every = (
        [line for line in lines if key in line and other not in line]
        for key, other in (("read", "x"), ("cache_bytes", "x"), ("mean", "x"))
    )
    assert [line["method"] for line in ends] == [line["method"] for line in every] == ["gate", "blocks"]
    assert {line["method"] for line in points} == {"gate", "blocks"}
    assert all(line["largest_cache"] == 40 and line["tokens"] == 120 and line["seconds"] > 0 for line in ends)
    assert points[-1]["perplexity"] == ends[-1]["perplexity"]


def test_stream_refuses_what_is_no_text_or_has_no_meaning(monkeypatch, capsys, tmp_path: Path) -> None:
    path, long = tmp_path / "text.txt", tmp_path / "long.txt"
    path.write_text("", encoding="utf-8")
    long.write_text("My name is Anna. I live in Oslo. ", encoding="utf-8")
    rows = tmp_path / "chats.jsonl"
    rows.write_text("{}", encoding="utf-8")
    for arguments, message in (
        ([str(path)], "is empty"),
        ([str(tmp_path / "none.txt")], "There is no file"),
        ([str(rows)], "chats.jsonl holds conversations or tasks, not running text; give a text, such as FILE.txt."),
        ([str(path), "--cache-size", "64"], "--cache-size is 64"),
        ([str(path), "--temperature", "-1"], "temperature is -1"),
        ([str(long), "--rule", "full"], "or drop old text with --baseline window or --baseline blocks."),
    ):
        assert call(monkeypatch, "stream", *arguments) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Note:" not in err


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder, with an empty one in it, where nothing more can be made: as on a disk that is mounted read-only."""
    disk = tmp_path / "disk"
    (disk / "there").mkdir(parents=True)
    real_open, real_mkdir = os.open, os.mkdir

    def refuse(path: Any) -> None:
        if Path(os.fsdecode(path)).is_relative_to(disk) and not Path(os.fsdecode(path)).exists():
            raise OSError(errno.EROFS, "Read-only file system", path)

    def open_(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & os.O_CREAT:
            refuse(path)
        return real_open(path, flags, *rest, **named)

    def mkdir(path: Any, *rest: Any, **named: Any) -> None:
        refuse(path)
        real_mkdir(path, *rest, **named)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "mkdir", mkdir)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return disk


@pytest.mark.covers("arguments", "name")
@pytest.mark.parametrize("name", ["new", "there"])
@pytest.mark.parametrize(
    "arguments",
    [
        "stream short.txt --tokens 40 --output {}",
        "evaluate custom --data chats.jsonl --output {}",
        "data prepare dailydialog --source given --output {}",
        "adapters import lora --output {}",
        "writes --output {}.png",
        "train custom --set data.path=chats.jsonl --set max_steps=1 --set tensorboard=false --set output_dir={}",
    ],
)
def test_where_nothing_can_be_written_the_place_is_named_and_what_to_do(
    monkeypatch, capsys, read_only: Path, tmp_path: Path, arguments: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("My name is Anna. I live in Oslo. " * 10, encoding="utf-8")
    turns = [{"role": role, "content": "Hello."} for role in ("user", "assistant") * 2]
    Path("chats.jsonl").write_text(f"{json.dumps({'messages': turns})}\n" * 2, encoding="utf-8")
    Path("given").mkdir()
    Path("given/dialogues_test.txt").write_text("Hi . __eou__ Hello . __eou__\n" * 2, encoding="utf-8")
    theirs(Path("lora"), 0)
    output = read_only / name
    assert call(monkeypatch, *arguments.format(output).split()) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert str(output) in told
    assert "Read-only file system" in told
    assert not any(word in told for word in ("Errno", "Traceback", ".part"))
    assert [path.name for path in read_only.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("writes --output none/w.png", "The picture none/w.png cannot be written: there is no folder"),
        ("report none", "There is no file or folder none; name the output of an evaluation that ended."),
        ("writes --output w.txt", "The picture is a PNG; name a file that ends in .png, not w.txt."),
        ("demo --file none", "The example none cannot be read: No such file or directory."),
        ("chat --load none", "There is no file none."),
    ],
)
def test_why_a_file_cannot_be_had_is_said_in_words_and_names_it_once(
    monkeypatch, capsys, tmp_path: Path, arguments: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments.split()) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert told in err
    assert "Errno" not in err
