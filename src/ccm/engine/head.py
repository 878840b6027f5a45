"""Logits where they are wanted: the output head of a stock model computes them for some rows alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_wanted = threading.local()  # .rows: of the (B * T) hidden states, those of which this thread wants logits


@contextmanager
def head_reads(rows: Tensor) -> Iterator[None]:
    """Meanwhile a model called in this thread computes logits (1, P, V) of these P rows alone."""
    _wanted.rows = rows
    try:
        yield
    finally:
        _wanted.rows = None


def pick(head: nn.Module, hidden: tuple[Tensor]) -> tuple[Tensor] | None:
    """The forward pre-hook of the output head."""
    rows = getattr(_wanted, "rows", None)
    return None if rows is None else (hidden[0].flatten(0, 1)[rows][None],)
