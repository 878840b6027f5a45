"""What the commands share when they print."""

from __future__ import annotations

import gc
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import chain

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ccm.core.units import size

_SETTING = re.compile(
    r"(?<![\w./-])(?:task\.(?:options\.)?(?P<of_task>\w+)\b|(?P<name>\w+)=(?P<quote>'?)(?P<value>[\w./,-]*\w)(?P=quote))"
)
_SUBJECT = re.compile(r"(?<=^ccm: )\w+(?= is )")
_TO_FILL = re.compile(r"(?<![\w./-])[a-z_]+(?:\.[a-z_]+)*=(?:[A-Z]+\b|\[\.\.\.\])")
LINE_SECONDS = 10  # between two lines on what is under way


def plain_console(*, stderr: bool = False) -> Console:
    """A console that shows text as it is: in what users and models write, ``[b]`` is no markup and ``:x:`` no emoji.

    On a terminal, lines break between words. What is to be copied, such as an address, is printed with ``soft_wrap``.
    """
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.soft_wrap = not console.file.isatty()
    return console


def tell(text: str) -> None:
    """Say something on standard error."""
    plain_console(stderr=True).print(text)


def by_words(pieces: Iterable[str], width: int, column: int) -> Iterator[str]:
    """Text that comes in pieces, word by word, with line ends where the next word would not fit.

    Args:
        pieces: the text.
        width: cells of a line.
        column: where the first line begins.
    """
    for unit in _units(pieces):
        full = column > 0 and column + cell_len(unit) > width
        if full:
            yield "\n"
            unit = unit.strip()  # a space there would begin the next line
        column = cell_len(unit) + (0 if full or unit == "\n" else column)
        yield unit


def _units(pieces: Iterable[str]) -> Iterator[str]:
    """The words, and the spaces and wide characters (as of Chinese) between them, at which a line may end."""
    word = ""
    for mark in chain.from_iterable(pieces):
        if mark.isspace() or cell_len(mark) > 1:
            yield from (word, mark)
            word = ""
        else:
            word += mark
    yield word


def with_flags(message: str) -> str:
    """A message for the command line: settings that the library names, such as ``n_tok=4``, become flags."""

    def flag(found: re.Match[str]) -> str:
        flags, value = _flags().get(found["of_task"] or found["name"]), found["value"]
        if flags is None:
            return found[0]
        return flags[-1 if value == "False" else 0] + (f" {value}" if value not in (None, "True", "False") else "")

    message = _SUBJECT.sub(lambda found: _flags().get(found[0], [found[0]])[0], message)
    return _SETTING.sub(flag, message)


@cache
def _flags() -> dict[str, list[str]]:
    """The flags of each setting, on and off, as the options of all commands declare them."""
    from ccm.cli import app  # which imports this module

    flags, commands = {"evict": ["--baseline"]}, [typer.main.get_command(app)]
    for command in commands:
        commands += getattr(command, "commands", {}).values()
        for option in command.params:
            if option.name and option.opts[0].startswith("--"):
                flags[option.name] = [option.opts[0], *option.secondary_opts]
    return flags


def with_set(message: str) -> str:
    """A message for ``ccm train``: settings to fill in, such as ``output_dir=DIR``, go after ``--set``."""
    return _TO_FILL.sub(r"--set \g<0>", message).replace("resume=True", "--resume")


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while torch and transformers are imported: the search, over and over, takes a fifth of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done and the time left, on standard error: a bar, or lines where it is no terminal.

    Yields:
        what is to be called with the number done so far.
    """
    with counting(unit) as advance:
        yield lambda done: advance(what, done, total)


@contextmanager
def counting(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """As :func:`progress`, of work that has several parts, one after the other; the time left is that of all.

    Yields:
        what is to be called with the part under way, the number done so far of all parts, and how many there are.
    """
    begun = told = time.monotonic()
    if not sys.stderr.isatty():

        def line(what: str, done: int, total: int) -> None:
            nonlocal told
            now = time.monotonic()
            if done == total or now - told > LINE_SECONDS:
                told, left = now, (now - begun) / max(done, 1) * (total - done)
                print(f"{what}: {done} of {total} {unit}, {left:.0f} s left", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def advance(what: str, done: int, total: int) -> None:
            left = timedelta(seconds=round((time.monotonic() - begun) / max(done, 1) * (total - done)))
            bar.update(task, description=what, completed=done, total=total, left=f"{left} left")

        yield advance


@contextmanager
def transfer(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """As :func:`progress`, of bytes: about ``total`` of them, None where that is not known; shown from the first on.

    Yields:
        what is to be called with the bytes that have arrived so far.
    """
    if not sys.stderr.isatty():
        told = time.monotonic()

        def line(done: int) -> None:
            nonlocal told
            if time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                print(f"{what}: {size(done)}{f' of {size(total)}' if total else ''}", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, visible=False)
        yield lambda done: bar.update(task, completed=done, visible=True)


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """What is being done, one thing after the other, on standard error: with its seconds on a terminal, else a line."""
    if not sys.stderr.isatty():
        yield lambda what: tell(f"{what} ...")
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=plain_console(stderr=True)) as bar:

        def begin(what: str) -> None:
            for task in bar.task_ids:
                bar.update(task, total=1, completed=1)
            bar.add_task(what, total=None)

        yield begin
        begin("Done")


def quiet() -> None:
    """No progress bars, hints and warnings of the libraries between our own lines."""
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
