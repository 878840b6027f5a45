"""What the commands share when they print."""

from __future__ import annotations

import sys

import pytest

from ccm import console
from ccm.console import counting, progress, tell, with_flags

LONG = "The built-in model has no adapter for the rule that was asked for; it runs as concat, full, gate and none."


def test_lines_break_between_words_on_a_terminal_and_nowhere_else(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    tell(LONG)
    assert capsys.readouterr().err == LONG + "\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tell(LONG)
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert len(lines) > 2
    assert max(map(len, lines)) <= 40
    assert " ".join(lines) == LONG


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("load the model with rule='concat'.", "load the model with --rule concat."),
        ("load the model with n_tok=2.", "load the model with --n-tok 2."),
        ("load it with recurrent=False, or recurrent=True.", "load it with --no-recurrent, or --recurrent."),
        ("take rule='full' or 'none'.", "take --rule full or 'none'."),
        ("try dtype='float32'.", "try --dtype float32."),
        ("give adapter=DIR, rule=NAME or baseline=NAME.", "give --adapter DIR, --rule NAME or --baseline NAME."),
        ("set data.path=FILE; weight=0.3; 1 = 1", "set data.path=FILE; weight=0.3; 1 = 1"),
    ],
)
def test_settings_become_flags(message: str, shown: str) -> None:
    assert with_flags(message) == shown


def test_the_time_left_is_that_of_all_parts(monkeypatch, capsys) -> None:
    clock = iter((0.0, 5.0, 20.0, 25.0, 100.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with counting("questions") as advance:
        advance("full, step 1", 5, 100)
        advance("full, step 2", 20, 100)  # a second each
        advance("none, step 1", 25, 100)
        advance("none, step 2", 100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "full, step 2: 20 of 100 questions, 80 s left",
        "none, step 2: 100 of 100 questions, 0 s left",
    ]
    clock = iter((0.0, 20.0))
    with progress("concat", 10, "dialogues") as done:
        done(5)
    assert capsys.readouterr().err == "concat: 5 of 10 dialogues, 20 s left\n"


def test_a_bar_shows_the_time_left_of_all_parts(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    clock = iter((0.0, 20.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock, 20.0))
    with counting("questions") as advance:
        advance("full, step 2", 20, 100)
    assert "0:01:20 left" in capsys.readouterr().err
