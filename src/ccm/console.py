"""What the commands share when they print."""

from __future__ import annotations

import warnings

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that shows text as it is: in what users and models write, ``[b]`` is no markup and ``:x:`` no emoji."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


def quiet() -> None:
    """No progress bars, hints and warnings of the libraries between our own lines."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def size(count: int | float) -> str:
    """Bytes for people; 1 KB is 1,024 bytes."""
    for unit in ("bytes", "KB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"
