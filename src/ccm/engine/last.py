"""The last layer of a parallel pass computes what is read of it alone: most text is read by no layer after it.

tokens   a a C | b b b C | q y y       C = COMP; the loss is taken in the block of y
read     . . C | . . . C | q y y       keys and values of the other text are seen from within their own blocks alone

The layer is given a narrower batch of these columns, and what it gives is put back where they stood, among zeros.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ccm.core.rules import Rule
from ccm.engine.attention import ParallelPass
from ccm.engine.layout import Layout

MOST = 0.8  # of all columns: beyond, picking them and putting them back takes what it gives


class LastPass(ParallelPass):
    """The pass of the last layer alone, over some columns of a wider batch.

    Args:
        layout: of T' columns.
        rule: of memory.
        columns: (B, T') where they stand in the wider batch.
        length: T of the wider batch.
        flex: as of :class:`ParallelPass`.
    """

    def __init__(self, layout: Layout, rule: Rule, columns: Tensor, length: int, *, flex: bool | None) -> None:
        super().__init__(layout, rule, flex=flex)
        self._length, starts = length, torch.arange(len(columns), device=columns.device) * length
        self._rows = (columns + starts[:, None]).flatten()

    def narrow(self, given: Any) -> Any:
        """What a layer is given, of these columns alone: tensors (B or 1, T, ...), also within tuples."""
        if isinstance(given, tuple):
            return tuple(map(self.narrow, given))
        if not isinstance(given, Tensor) or given.ndim < 2 or given.shape[1] != self._length:
            return given
        batch = len(self.layout.ids)
        return given.expand(batch, *given.shape[1:]).flatten(0, 1).index_select(0, self._rows).unflatten(0, (batch, -1))

    def widen(self, output: Tensor) -> Tensor:
        """(B, T', hidden) to (B, T, hidden)."""
        batch, _, hidden = output.shape
        zeros = output.new_zeros(batch * self._length, hidden)
        return zeros.index_copy(0, self._rows, output.flatten(0, 1)).unflatten(0, (batch, self._length))


def last_pass(layout: Layout, rule: Rule, *, flex: bool | None) -> LastPass | None:
    """The pass of the last layer; None where it reads too many of the columns to gain by leaving the others out."""
    narrowed, columns = layout.narrowed()
    length = layout.ids.shape[1]
    return LastPass(narrowed, rule, columns, length, flex=flex) if columns.shape[1] <= MOST * length else None


def attach_last(layer: nn.Module) -> None:
    """Let the last decoder layer of a model follow the pass that it is given."""
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
    if isinstance(output, tuple):  # of some families in older versions of transformers
        return last.widen(output[0]), *output[1:]
    return last.widen(output)
