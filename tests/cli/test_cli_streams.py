"""Standard input, output and error of the command line: encodings, and streams that fail, in real processes."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from hypothesis import example, given
from hypothesis import strategies as st

from ccm import cli
from ccm.cli.commands import chat
from ccm.cli.streams import open_streams
from ccm.core.errors import InputError
from ccm.core.plain_text import check_text

CCM = f"{shlex.quote(sys.executable)} -m ccm.cli"
ECHO = (
    "import sys; from ccm.cli.streams import open_streams; open_streams(); "
    "print(sys.stdin.read(), end=''); print('\\u2603 \\udce9', file=sys.stderr)"
)
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def shell(command: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the shell."""
    given = {**os.environ, **environment}
    return subprocess.run(["sh", "-c", command], input=stdin, capture_output=True, timeout=120, check=False, env=given)


@pytest.mark.parametrize("environment", [C, {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "cp1252:strict"}])
def test_streams_are_utf_8_whatever_the_platform_says(environment: dict[str, str]) -> None:
    text = "Zo\u00eb \u2603 \U0001f600\n".encode()
    done = shell(f'{shlex.quote(sys.executable)} -c "{ECHO}"', codecs.BOM_UTF8 + text, **environment)
    assert done.stdout == text
    assert done.stderr == "\u2603 \\udce9\n".encode()  # half a character is shown, and no error


@pytest.mark.parametrize(
    ("redirected", "status", "told"),
    [
        pytest.param("data list --json >/dev/full", 1, "No space left on device", marks=FULL),
        pytest.param("--version >/dev/full", 1, "No space left on device", marks=[FULL, pytest.mark.slow]),
        pytest.param("--help >/dev/full", 1, "No space left on device", marks=FULL),
        pytest.param("nonsense 2>/dev/full", 1, "", marks=FULL),
        ("data list --json >&-", 1, "Bad file descriptor"),
        ("--version >&- 2>&-", 1, ""),
        ("data list --json 2>&-", 0, ""),
        ("data list <&-", 0, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", pytest.param("1", marks=pytest.mark.slow)])
def test_a_stream_that_fails_ends_the_command_without_a_traceback(
    redirected: str, status: int, told: str, unbuffered: str
) -> None:
    done = shell(f"{CCM} {redirected}", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == status
    assert done.stderr.decode() == (f"ccm: The output cannot be written: {told}.\n" if told else "")


def test_a_reader_that_leaves_ends_the_command_silently() -> None:
    done = shell(f"({CCM} data list --verbose; echo status $? >&2) | true")  # it has left long before the first line
    assert (done.stdout, done.stderr) == (b"", b"status 1\n")


@pytest.mark.parametrize(
    "error",
    [
        OSError("Consistency check failed"),
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOSPC, "No space left on device", "a.memory"),
        TimeoutError(errno.ETIMEDOUT, "Connection timed out"),
    ],
    ids=str,
)
def test_an_error_that_is_no_streams_is_told_as_what_it_is(monkeypatch, capsys, error: OSError) -> None:
    def fail(**_: str) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == f"ccm: {error}.\n"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        pytest.param("echo Hello | {CCM} chat >/dev/full; echo $?", "1", marks=FULL),
        ("{CCM} chat <&- 2>&-; echo $?", "0"),
    ],
)
@pytest.mark.slow
def test_a_conversation_on_failing_streams_ends_as_it_should(command: str, status: str) -> None:
    done = shell(command.format(CCM=CCM))
    assert done.stdout.decode().split() == [status]
    assert b"Traceback" not in done.stderr


def test_the_mark_of_utf_8_is_no_text(monkeypatch, capsys) -> None:
    given = codecs.BOM_UTF8 + b"/memory\r\nMy name is Anna.\r\n"
    assert call(monkeypatch, "chat", "--json", stdin=given) == 0
    (turn,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert "Anna" in turn["reply"]


def test_utf_16_is_refused_and_said_to_be(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "chat", "--json", stdin="My name is Anna.\r\n".encode("utf-16")) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Line 1 of standard input is no UTF-8 text. It looks like UTF-16" in err


@example("\u4f60\u597d", ("utf-16-le", codecs.BOM_UTF16_LE))  # no NUL before the line's end
@given(st.text(min_size=1), st.sampled_from([("utf-16-le", codecs.BOM_UTF16_LE), ("utf-16-be", codecs.BOM_UTF16_BE)]))
def test_nothing_of_a_file_in_utf_16_is_taken_for_text(text: str, encoding: tuple[str, bytes]) -> None:
    name, mark = encoding
    with pytest.MonkeyPatch.context() as patch:
        raw = io.BytesIO(mark + f"{text}\r\n".encode(name))
        patch.setattr(sys, "stdin", io.TextIOWrapper(raw, encoding="utf-8"))
        open_streams()
        with pytest.raises(InputError, match="Line 1 of standard input"):
            next(chat._lines())


@pytest.mark.parametrize("line", ["My name is Zo\u00eb.", "\u00e9\u00e9", "\u00ff", "/compare \u00e9?"])
def test_a_line_that_is_not_utf_8_is_refused_and_the_chat_goes_on(monkeypatch, capsys, line: str) -> None:
    given = b"\n".join([b"My name is Anna.", line.encode("latin-1"), b"What is my name?\n"])
    for order in (given, b"\n".join(given.splitlines()[1:])):  # as any line, and as the first
        assert call(monkeypatch, "chat", "--json", stdin=order) == 1
        out, err = capsys.readouterr()
        told = [json.loads(line) for line in out.splitlines()]
        refused = [turn["error"] for turn in told if "error" in turn]
        assert len(refused) == (not line.startswith("/"))
        assert len(told) - len(refused) == len(order.splitlines()) - 1
        assert re.search(r"holds '.udc..' at character \d+: the byte 0x.., which is not UTF-8", err)
        assert all(error in err for error in refused)
        assert "reply" in told[-1]


@given(st.binary(max_size=8))
def test_bytes_are_the_text_that_they_are_or_refused(raw: bytes) -> None:
    try:
        expected = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        expected = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="latin-1", newline=""))
        open_streams()
        text = sys.stdin.read()
    if expected is None:
        with pytest.raises(InputError, match="not UTF-8"):
            check_text(text)
    else:
        assert check_text(text) == expected


@pytest.mark.slow
def test_a_script_of_a_few_lines_hears_nothing_of_other_packages() -> None:
    code = "import ccm; model, tokenizer = ccm.load('builtin'); print(ccm.Conversation(model, tokenizer).answer('Hi!'))"
    silent = {key: value for key, value in os.environ.items() if key != "TRANSFORMERS_VERBOSITY"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, env=silent)
    assert done.returncode == 0
    assert done.stdout
    lines = [line for line in done.stderr.decode().splitlines() if "Loading weights" not in line]  # a bar
    assert not lines
