"""What the commands share when they print."""

from __future__ import annotations

import gc
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from functools import cache, partial
from itertools import chain
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ccm.core.processes import is_main
from ccm.core.repeating import every
from ccm.core.units import size

_SETTING = re.compile(
    r"(?<![\w./-])(?:task\.(?:options\.)?(?P<of_task>\w+)\b|(?P<name>\w+)=(?P<quote>'?)(?P<value>[\w./,-]*\w)(?P=quote))"
)
_SUBJECT = re.compile(r"(?<=^ccm: )\w+(?= is )")
_TO_FILL = re.compile(r"(?<![\w./-])[a-z_]+(?:\.[a-z_]+)*=(?:[A-Z]+\b|\[\.\.\.\])")
LINE_SECONDS = 10  # between two lines on what is under way
WIDEST = 1000  # cells of a table


def plain_console(*, stderr: bool = False) -> Console:
    """A console that shows text as it is: in what users and models write, ``[b]`` is no markup and ``:x:`` no emoji.

    On a terminal, lines break between words. What is to be copied, such as an address, is printed with ``soft_wrap``.
    """
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    console.soft_wrap = not console.file.isatty()
    return console


def print_table(console: Console, table: Table) -> None:
    """A table; where it is not for a terminal, as wide as its rows are."""
    if not console.file.isatty():
        wide = console.options.update(max_width=WIDEST)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)


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
def ending(say: Callable[[str], None] = tell) -> Iterator[None]:
    """End a program that Ctrl-C interrupts in one line, by its first process, and with the exit status 130."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if is_main():
            if sys.stderr.isatty():
                print("\r", end="", file=sys.stderr)  # over the ^C that the terminal shows
            say(" ".join(map(str, stop.args)) or "Interrupted.")
        raise SystemExit(130) from None


@contextmanager
def interrupted(told: str) -> Iterator[None]:
    """Where Ctrl-C ends the block, the command ends with this line, unless what was interrupted has one of its own."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(*(stop.args or (told,))) from None


def repeating(say: Callable[[], None]) -> AbstractContextManager[None]:
    """Call ``say`` every :data:`LINE_SECONDS` while the block runs, from another thread."""
    return every(LINE_SECONDS, say)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """As :func:`counting`, of work in which nothing is counted: shows since when it is under way."""
    with counting() as advance:
        advance(what, 0, 0)
        yield


def loading(choice: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Show that a model is loaded, by the settings that ``ccm.load`` takes."""
    return doing(f"loading {choice['model'] or choice['adapter'] or 'the built-in model'}")


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """As :func:`counting`, of work in one part.

    Yields:
        what is to be called with the number done so far.
    """
    with counting(unit) as advance:
        advance(what, 0, total)
        yield lambda done: advance(what, done, total)


@contextmanager
def counting(unit: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """Show what is done, how far it is, and the time left, on standard error: a bar, or lines where it is no terminal.

    The work may have several parts, one after the other; the numbers and the time left are those of all. Of several
    processes, the first one alone shows them.

    Args:
        unit: of the numbers; "bytes" are shown as sizes.

    Yields:
        what is to be called with the part under way, the number done so far of all parts, and how many there are, 0
        where that is not known.
    """
    if not is_main():
        yield lambda what, done, total: None
        return
    stand = _Stand(unit)
    if not sys.stderr.isatty():
        told = stand.begun

        def line(now: float) -> None:
            nonlocal told
            told = now
            time_left = stand.left(now)
            lasts = f"{now - stand.begun:.0f} s so far" if time_left is None else f"{time_left:.0f} s left"
            print(f"{stand.what}: {', '.join(filter(None, (stand.far, lasts)))}", file=sys.stderr, flush=True)

        def tell_of(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            stand.at(what, done, total, now)
            if done == total > 0 or now - told >= LINE_SECONDS:
                line(now)

        def repeat() -> None:
            now = time.monotonic()
            if now - told >= LINE_SECONDS:
                line(now)

        with repeating(repeat):
            yield tell_of
        return
    columns = (TextColumn("{task.description}"), BarColumn(10), _Far())
    with Progress(*columns, console=plain_console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, far="")

        def advance(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            stand.at(what, done, total, now)
            time_left = stand.left(now)
            lasts = "" if time_left is None else f"{timedelta(seconds=round(time_left))} left"
            far = ", ".join(filter(None, (stand.far, lasts)))
            bar.update(task, description=what, completed=done, total=total or None, far=far)

        yield advance


class _Far(TimeElapsedColumn):
    """How far a task is or, where that is not known, since when it is under way."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["far"]) if task.fields["far"] else super().render(task)


class _Stand:
    """How far work is; the time left follows from what was done since a number was first told."""

    def __init__(self, unit: str) -> None:
        self.what, self._unit, self._done, self._total = "", unit, 0, 0
        self.begun = time.monotonic()
        self._first: tuple[float, int] | None = None  # when a number was first told, and which

    def at(self, what: str, done: int, total: int, now: float) -> None:
        self.what, self._done, self._total = what, done, total
        if total and self._first is None:
            self._first = now, done

    @property
    def far(self) -> str:
        """What is done, and of how much; empty where nothing is counted."""
        numbers = [self._done, self._total] if self._total else [self._done] if self._done else []
        told = " of ".join(size(number) if self._unit == "bytes" else str(number) for number in numbers)
        return told if self._unit == "bytes" or not told else f"{told} {self._unit}"

    def left(self, now: float) -> float | None:
        """Seconds left; None where it is not known."""
        if self._first is None or self._done <= self._first[1] or not self._total:
            return None
        since, done = self._first
        return (now - since) / (self._done - done) * max(self._total - self._done, 0)


def quiet() -> None:
    """No progress bars, hints and warnings of the libraries between our own lines."""
    from transformers import modeling_gguf_pytorch_utils as reader
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    reader.tqdm = partial(reader.tqdm, disable=True)  # which does not ask whether bars are wanted
