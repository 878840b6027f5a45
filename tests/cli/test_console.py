"""What the commands share when they print."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.table import Table

from ccm.cli import console
from ccm.cli.console import by_words, counting, doing, plain_console, print_table, progress, tell, with_flags, with_set

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
        ("give adapters=DIR, rules=NAME or baselines=NAME.", "give --adapter DIR, --rule NAME or --baseline NAME."),
        ("measure the others with depths=1,2.", "measure the others with --steps 1,2."),
        ("bring them with given=DIR", "bring them with --source DIR"),
        ("replace old text: evict=window.", "replace old text: --baseline window."),
        ("say base=BASE, or embedder='x'", "say --base BASE, or --embedder x"),
        ("name it as task.path.", "name it as --data."),
        ("choose with task.options.tasks", "choose with --task"),
        ("raise task.options.max_step_tokens", "raise --max-step-tokens"),
        ("a/task.path and my-task.options.json", "a/task.path and my-task.options.json"),
        ("ccm: turn_tokens is 0; it must be at least 1.", "ccm: --turn-tokens is 0; it must be at least 1."),
        ("ccm: nothing is 0; the rate is 1", "ccm: nothing is 0; the rate is 1"),
        ("set data.path=FILE; weight=0.3; 1 = 1", "set data.path=FILE; weight=0.3; 1 = 1"),
    ],
)
def test_settings_become_flags(message: str, shown: str) -> None:
    assert with_flags(message) == shown


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("name one with output_dir=DIR.", "name one with --set output_dir=DIR."),
        ("choose with data.options.tasks=[...].", "choose with --set data.options.tasks=[...]."),
        ("go on with resume=True.", "go on with --resume."),
        ("set dtype=float32; x/a=DIR", "set dtype=float32; x/a=DIR"),
    ],
)
def test_settings_of_a_training_that_are_to_be_filled_in_go_after_set(message: str, shown: str) -> None:
    assert with_set(message) == shown


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
    clock = iter((0.0, 0.0, 20.0))
    with progress("concat", 10, "dialogues") as done:
        done(5)
    assert capsys.readouterr().err == "concat: 5 of 10 dialogues, 20 s left\n"


def test_what_takes_long_is_told_again_and_again(monkeypatch, capsys) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.01)

    def lines(count: int) -> list[str]:
        told = ""
        for _ in range(6000):  # it comes from a thread, which a busy machine may hold up
            time.sleep(0.01)
            told += capsys.readouterr().err
            if told.count("\n") >= count:
                return told.splitlines()
        raise AssertionError(told)

    with doing("loading x"):
        assert lines(2)[0] == "loading x: 0 s so far"
    capsys.readouterr()
    with counting("bytes") as advance:
        advance("downloading x", 1024, 0)
        assert lines(1)[0] == "downloading x: 1.0 KB, 0 s so far"


def test_the_time_left_does_not_count_what_came_before(monkeypatch, capsys) -> None:
    clock = iter((0.0, 50.0, 60.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with counting("bytes") as advance:
        advance("downloading x", 2 << 30, 4 << 30)  # an earlier download
        advance("downloading x", 3 << 30, 4 << 30)
    assert capsys.readouterr().err.splitlines() == [
        "downloading x: 2.0 GB of 4.0 GB, 50 s so far",
        "downloading x: 3.0 GB of 4.0 GB, 10 s left",
    ]


def test_of_several_processes_the_first_one_shows_how_far_it_is(monkeypatch, capsys) -> None:
    monkeypatch.setenv("RANK", "1")
    with counting("bytes") as advance:
        advance("downloading x", 1, 1)
    assert capsys.readouterr().err == ""


def test_a_bar_shows_the_time_left_of_all_parts(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    clock = iter((0.0, 0.0, 20.0))
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock, 20.0))
    with counting("questions") as advance:
        advance("full, step 1", 0, 100)
        advance("full, step 2", 20, 100)
    assert "0:01:20 left" in capsys.readouterr().err
    monkeypatch.setenv("COLUMNS", "80")
    clock = iter((0.0, 0.0, 20.0))
    with counting("questions") as advance:
        advance("gist-online, step 1", 0, 100_000)
        advance("gist-online, step 12", 20_000, 100_000)
    assert "20000 of 100000 questions, 0:01:20 left" in capsys.readouterr().err


@settings(max_examples=50)
@given(
    st.lists(st.text("abc  \n\u4e2d", max_size=6), max_size=30),
    st.integers(6, 20),
    st.integers(0, 5),
)
def test_replies_break_between_words_and_lose_nothing(pieces: list[str], width: int, column: int) -> None:
    text, shown = "".join(pieces), "".join(by_words(pieces, width, column))
    assert [*"".join(shown.split())] == [*"".join(text.split())]
    assert {*shown.replace("\u4e2d", " ").split()} == {*text.replace("\u4e2d", " ").split()}  # no word is broken
    first, *rest = shown.split("\n")
    longest = max((cell_len(word) for word in text.replace("\u4e2d", " \u4e2d ").split()), default=0)
    if longest <= width:
        assert column + cell_len(first) <= width
        assert all(cell_len(line) <= width for line in rest)


def test_words_are_shown_as_they_come() -> None:
    came: list[str] = []

    def pieces() -> Iterator[str]:
        for piece in ("Your na", "me is ", "An", "na."):
            came.append(piece)
            yield piece

    shown = by_words(pieces(), 80, 5)
    assert next(shown) == "Your"
    assert came == ["Your na"]
    assert "".join(shown) == " name is Anna."


def test_a_table_that_goes_into_a_file_is_whole_though_no_terminal_is_so_wide(monkeypatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("perplexity", "recovered gain", box=None)
    table.add_row("12.5", "33 % of it")
    print_table(plain_console(), table)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1) for line in map(str.strip, shown)] == [
        ["perplexity", "recovered gain"],
        ["12.5", "33 % of it"],
    ]
