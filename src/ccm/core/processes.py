"""Several processes, as torchrun starts them: which of them is the first, and logs that it alone writes."""

from __future__ import annotations

import logging
import os


def is_main() -> bool:
    """Whether this is the only process, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def get_logger(name: str) -> logging.Logger:
    """The log of that name, into which the first process alone writes: what it says, all would say."""
    logger = logging.getLogger(name)
    logger.addFilter(_from_main)
    return logger


def _from_main(record: logging.LogRecord) -> bool:
    return is_main()
