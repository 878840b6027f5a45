"""Attention in chunks: a long pass whose queries see few columns costs no more than these columns.

    mask      . . . x x . . . . m        The queries are cut into chunks. Every chunk becomes a row of a larger batch,
              . . . x x x . . . m        with only the columns that any of its queries sees. The stock attention
    columns         3 4 5       9        function does the rest.

Shapes: B batch, n chunks of C queries, W columns of a chunk, T queries, S keys, H heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccm.engine.call import Attended, Call, MaskFunction
from ccm.engine.layout import Layout

SIZE = 64  # queries of a chunk, about a step: smaller chunks copy more keys, larger ones compute more hidden scores
MOST = 0.5  # of all columns: where a chunk sees a larger share, the whole mask costs less


class Chunks(NamedTuple):
    """The columns that each chunk sees.

    Attributes:
        columns: (B, n, W) the columns that a chunk sees, in order, then hidden ones up to W, the width of the widest.
        mask: (B * n, 1, C, W) bool.
        apart: see :class:`ccm.engine.attention.AttentionPlan`.
    """

    columns: Tensor
    mask: Tensor
    apart: bool = False

    @staticmethod
    def of(layout: Layout, sees: MaskFunction, size: int) -> Chunks | None:
        """The chunks of a pass; None if a chunk would see more than :data:`MOST` of all columns.

        Within a chunk, only the first and the last query of each run of one block with rising positions are tested. The
        queries between see nothing that neither of these two sees, except in the chunk itself.

        Args:
            layout: the layout of the T queries.
            sees: the mask.
            size: S; the first T columns belong to the queries.
        """
        (batch, length), device = layout.ids.shape, layout.ids.device
        query, column = torch.arange(length, device=device), torch.arange(size, device=device)
        chunk = query // SIZE
        n = -(-length // SIZE)
        begins = (layout.blocks.diff(dim=1) != 0) | (layout.positions.diff(dim=1) < 0) | (chunk.diff() != 0)
        asked = pad(begins, (1, 0), value=True) | pad(begins, (0, 1), value=True)
        rows, queries = asked.nonzero().unbind(1)
        found = sees(rows[:, None], queries[:, None], column)
        counts = torch.zeros(batch * n, size, dtype=torch.int8, device=device)
        counts.index_add_(0, rows * n + chunk[queries], found.to(torch.int8))
        visible = (counts > 0).unflatten(0, (batch, n)) | (column // SIZE == torch.arange(n, device=device)[:, None])
        width = int(visible.sum(-1).max())
        if width > MOST * size:
            return None
        columns = visible.byte().argsort(dim=-1, descending=True, stable=True)[..., :width]
        queries = torch.arange(n * SIZE, device=device).clamp(max=length - 1)  # the last one fills the last chunk
        row = torch.arange(batch, device=device)[:, None, None, None]
        mask = sees(row, queries.view(n, SIZE, 1), columns[:, :, None])
        return Chunks(columns, mask.flatten(0, 1)[:, None])

    def attend(self, call: Call) -> Attended:
        """The output of the stock attention for the whole mask; without weights, which would be those of chunks."""
        (batch, n, width), length = self.columns.shape, call.query.shape[2]
        query = pad(call.query, (0, 0, 0, n * SIZE - length)).unflatten(2, (n, SIZE)).transpose(1, 2).flatten(0, 1)
        starts = torch.arange(batch, device=query.device) * call.key.shape[2]
        rows = (self.columns + starts[:, None, None]).flatten()

        def pick(x: Tensor) -> Tensor:  # (B, K, S, D) to (B * n, K, W, D)
            return x.transpose(1, 2).flatten(0, 1).index_select(0, rows).unflatten(0, (-1, width)).transpose(1, 2)

        output = replace(call, query=query, key=pick(call.key), value=pick(call.value)).run(self.mask)[0]
        return output.unflatten(0, (batch, n)).flatten(1, 2)[:, :length], None
