"""What the commands share when they print."""

from __future__ import annotations

import warnings


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
