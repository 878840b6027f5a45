"""What the commands share when they print."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_TALKATIVE = ("torchao", "bitsandbytes", "torch.utils._pytree")  # say what they lack, wherever PEFT imports them
LINE_SECONDS = 10  # between two lines on what is under way


def plain_console(*, stderr: bool = False) -> Console:
    """A console that shows text as it is: in what users and models write, ``[b]`` is no markup and ``:x:`` no emoji."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Show how much of ``total`` is done and the time left, on standard error: a bar, or lines where it is no terminal.

    Yields:
        what is to be called with the number done so far.
    """
    if not sys.stderr.isatty():
        begun = told = time.monotonic()

        def line(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if done == total or now - told > LINE_SECONDS:
                told, left = now, (now - begun) / done * (total - done)
                print(f"{what}: {done} of {total} {unit}, {left:.0f} s left", file=sys.stderr, flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def counting(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """As :func:`progress`, of several things one after the other.

    Yields:
        what is to be called with what is done, the number done so far, and how many there are.
    """
    with ExitStack() as shown:
        current: dict[str, Callable[[int], None]] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in current:
                shown.close()
                current.clear()
                current[what] = shown.enter_context(progress(what, total, unit))
            current[what](done)

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


def quiet() -> None:
    """No progress bars, hints and warnings of the libraries between our own lines."""
    from transformers.utils import logging as transformers_logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)


def size(count: int | float) -> str:
    """Bytes for people; 1 KB is 1,024 bytes."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
