"""Ctrl-C ends each command in one line, which says what is kept, with the exit status 130."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import call

COMMANDS = "ccm.cli.commands"


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("within", "arguments", "told"),
    [
        ("models.run_list", ["models", "list"], "Interrupted."),
        ("demo.load_model", ["demo"], "Interrupted."),
        ("evaluate.load_model", ["evaluate", "builtin"], "Nothing is kept; the same command begins again."),
        ("evaluate.evaluate", ["evaluate", "recall"], "Nothing is kept without --output."),
        (
            "evaluate.evaluate",
            ["evaluate", "recall", "--output", "out"],
            "Methods and steps that were done are in out; the same command goes on from there.",
        ),
        ("stream.run_streams", ["stream", "{file}"], "Nothing is kept without --output."),
        (
            "stream.run_streams",
            ["stream", "{file}", "--output", "out"],
            "What was read is in out, but for the last seconds; the same command goes on from there.",
        ),
        ("adapters.read_theirs", ["adapters", "import", "a", "--output", "b"], "Nothing was written."),
        (
            "adapters.fuse_adapter",
            ["adapters", "merge", "a", "--output", "b"],
            "Nothing was written; the same command begins again.",
        ),
    ],
)
def test_ctrl_c_says_what_is_kept(
    monkeypatch, tmp_path: Path, capsys, within: str, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(f"{COMMANDS}.{within}", stop)
    (tmp_path / "file.txt").write_text("A text.")
    assert call(monkeypatch, *(one.format(file=tmp_path / "file.txt") for one in arguments)) == 130
    assert capsys.readouterr() == ("", f"{told}\n")


@pytest.mark.parametrize(
    ("within", "arguments", "told"),
    [
        (
            "ccm.models.fetch.fetch",
            ["models", "get", "smollm2-135m"],
            "Nothing was kept; the same command begins again.",
        ),
        (
            "ccm.data.sources.prepare.prepare",
            ["data", "prepare", "dailydialog"],
            "What has arrived is kept; the same command goes on from there.",
        ),
        (
            "ccm.adapters.drive.download_adapters",
            ["adapters", "download", "unified"],
            "What has arrived is kept; the same command goes on from there.",
        ),
    ],
)
def test_ctrl_c_in_a_download_says_whether_it_goes_on(
    monkeypatch, capsys, within: str, arguments: list[str], told: str
) -> None:
    monkeypatch.setattr(within, stop)
    assert call(monkeypatch, *arguments) == 130
    assert capsys.readouterr() == ("", f"{told}\n")


def test_of_several_processes_one_says_it(monkeypatch, capsys) -> None:
    monkeypatch.setattr(f"{COMMANDS}.evaluate.load_model", stop)
    monkeypatch.setenv("RANK", "1")
    assert call(monkeypatch, "evaluate", "builtin") == 130
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_in_a_conversation_through_a_pipe_says_what_is_gone(monkeypatch, capsys) -> None:
    monkeypatch.setattr("ccm.chat.conversation.Conversation.answer", stop)
    assert call(monkeypatch, "chat", stdin="Hello.\n") == 130
    assert capsys.readouterr() == ("", "Interrupted; what /save has not saved is forgotten.\n")
