"""Runs in several processes, as torchrun starts them: only the first process logs."""

from __future__ import annotations

import logging
import os


def is_main() -> bool:
    """Whether this is the only process, or the first one that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def get_logger(name: str) -> logging.Logger:
    """The logger of that name. Only the first process writes to it, because all processes would say the same."""
    logger = logging.getLogger(name)
    logger.addFilter(_from_main)  # a logger takes the same function only once
    return logger


def _from_main(record: logging.LogRecord) -> bool:
    return is_main()
