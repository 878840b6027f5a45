"""The last layer of a parallel pass computes only the columns that something reads.

tokens   a a C | b b b C | q y y       C = COMP; the loss is taken in the block of y
read     . . C | . . . C | q y y       other text is seen only within its own block, whose outputs nothing reads

The layer gets a narrower batch of these columns. Its outputs go back to their places, with zeros between them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ccm.core.rules import Rule
from ccm.engine.attention import ParallelPass
from ccm.engine.layout import Layout

MOST = 0.8  # of all columns: above this share, moving columns out and back costs as much as it saves


class LastPass(ParallelPass):
    """The pass of the last layer, over T' columns of a wider batch.

    Args:
        layout: the layout of the T' columns.
        rule: the rule of memory.
        columns: (B, T') their places in the wider batch.
        length: T, the columns of the wider batch.
        flex: see :class:`ParallelPass`.
    """

    def __init__(self, layout: Layout, rule: Rule, columns: Tensor, length: int, *, flex: bool | None) -> None:
        super().__init__(layout, rule, flex=flex)
        self._length, starts = length, torch.arange(len(columns), device=columns.device) * length
        self._rows = (columns + starts[:, None]).flatten()

    def narrow(self, given: Any) -> Any:
        """An argument of a layer, with these columns only: tensors (B or 1, T, ...), also within tuples."""
        if isinstance(given, tuple):
            return tuple(map(self.narrow, given))
        if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[1] != self._length:
            return given
        batch = len(self.layout.ids)
        return given.expand(batch, *given.shape[1:]).flatten(0, 1).index_select(0, self._rows).unflatten(0, (batch, -1))

    def widen(self, output: Tensor) -> Tensor:
        """Outputs (B, T', hidden) in their places in (B, T, hidden)."""
        batch, _, hidden = output.shape
        zeros = output.new_zeros(batch * self._length, hidden)
        return zeros.index_copy(0, self._rows, output.flatten(0, 1)).unflatten(0, (batch, self._length))


def last_pass(layout: Layout, rule: Rule, *, flex: bool | None) -> LastPass | None:
    """The pass of the last layer; None if more than :data:`MOST` of the columns are read."""
    narrowed, columns = layout.narrowed()
    length = layout.ids.shape[1]
    return LastPass(narrowed, rule, columns, length, flex=flex) if columns.shape[1] <= MOST * length else None


def attach_last(layer: nn.Module) -> None:
    """Let the last decoder layer of a model narrow its batch when its pass says so."""
    layer.register_forward_pre_hook(_narrow, with_kwargs=True)
    layer.register_forward_hook(_widen, with_kwargs=True)


def _narrow(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    last = getattr(kwargs.get("ccm"), "last", None)
    if last is None:
        return None
    return last.narrow(args), {name: last.narrow(value) for name, value in kwargs.items()} | {"ccm": last}


def _widen(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
    last = kwargs.get("ccm")
    if not isinstance(last, LastPass):
        return None
    if isinstance(output, tuple):  # some families in older versions of transformers
        return last.widen(output[0]), *output[1:]
    return last.widen(output)
