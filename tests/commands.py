"""The command line, called as a function."""

from __future__ import annotations

import io
import sys

import pytest

from ccm import cli


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str, stdin: str | bytes = "", terminal: bool = False) -> int:
    """Run the command line in this process; returns its exit status."""
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    monkeypatch.setattr(sys, "argv", ["ccm", *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "dumb")  # no colours
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)
