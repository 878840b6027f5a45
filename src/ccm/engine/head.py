"""The output head of a stock model computes logits only where they are wanted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_wanted = threading.local()  # .rows: (P,) numbers of those of the B * T hidden states whose logits this thread wants


@contextmanager
def head_reads(rows: Tensor) -> Iterator[None]:
    """A block in which models called by this thread compute logits (1, P, V) of these P rows only."""
    _wanted.rows = rows
    try:
        yield
    finally:
        _wanted.rows = None


def pick(head: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor] | None:
    """The forward pre-hook of an output head."""
    rows = getattr(_wanted, "rows", None)
    return None if rows is None else (hidden[0].flatten(0, 1)[rows][None],)
