"""Standard input, output and error of every command: UTF-8 whatever the platform says, and an end when they fail."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from io import TextIOWrapper


def open_streams() -> None:
    """Read and write UTF-8; the mark that some programs put before it is taken off.

    No byte and no character ends a command: a byte that is not UTF-8 is read as half of a surrogate pair, which is
    refused where it is text, and names the file that it should where it is a path. Results show such halves as escapes.

    A stream that was closed is opened: there is nothing to read, messages go nowhere, and results fail when they are
    written. Otherwise the next file that a library opens would be in its place.
    """
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_RDONLY), encoding="utf-8")
    sys.stdout = sys.stdout or os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    sys.stderr = sys.stderr or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    for stream, encoding, errors in (
        (sys.stdin, "utf-8-sig", "surrogateescape"),
        (sys.stdout, "utf-8", "backslashreplace"),
        (sys.stderr, "utf-8", "backslashreplace"),
    ):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=errors)


def abandon_streams() -> None:
    """Let what a failed stream still holds go nowhere: else the interpreter tries once more, and complains."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):  # a stream without a descriptor
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
