"""Attention in chunks: where each query sees few columns, long passes cost what is seen, not the square of the length.

    mask      . . . x x . . . . m        The queries are cut into chunks, and every chunk becomes a row of a larger
              . . . x x x . . . m        batch, beside the columns alone that any of its queries sees. The stock
    columns         3 4 5       9        attention function then does the rest.

Shapes: B batch, n chunks of C queries, W columns of a chunk, T queries, S keys, H heads, K kv heads, D head dim.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccm.engine.call import Attended, Call, Seen
from ccm.engine.layout import Layout

SIZE = 64  # queries of a chunk, about a step: smaller ones copy more keys, larger ones see more that is hidden
MOST = 0.5  # of all columns that a chunk may see: beyond, the whole mask costs less


class Chunks(NamedTuple):
    """What each chunk sees.

    Attributes:
        columns: (B, n, W) the columns that a chunk sees, in order; then others, hidden, up to the width of the widest.
        mask: (B * n, 1, C, W) bool.
    """

    columns: Tensor
    mask: Tensor
    apart: bool = False

    @staticmethod
    def of(layout: Layout, seen: Seen, size: int) -> Chunks | None:
        """The chunks of a pass; None where one would see more than :data:`MOST` of all columns.

        Few queries are asked what they see: the first and the last of each run within a chunk, in which the block is
        one and positions rise. What lies between sees no more than these two, but for the chunk itself.

        Args:
            layout: of the queries.
            seen: numbers of rows, queries and columns to whether the one may attend to the other; elementwise.
            size: S, of which the first T columns are the queries' own.
        """
        (batch, length), device = layout.ids.shape, layout.ids.device
        query, column = torch.arange(length, device=device), torch.arange(size, device=device)
        chunk = query // SIZE
        n = -(-length // SIZE)
        begins = (layout.blocks.diff(dim=1) != 0) | (layout.positions.diff(dim=1) < 0) | (chunk.diff() != 0)
        asked = pad(begins, (1, 0), value=True) | pad(begins, (0, 1), value=True)
        rows, queries = asked.nonzero().unbind(1)
        found = seen(rows[:, None], queries[:, None], column)
        counts = torch.zeros(batch * n, size, dtype=torch.int8, device=device)
        counts.index_add_(0, rows * n + chunk[queries], found.to(torch.int8))
        visible = (counts > 0).unflatten(0, (batch, n)) | (column // SIZE == torch.arange(n, device=device)[:, None])
        width = int(visible.sum(-1).max())
        if width > MOST * size:
            return None
        columns = visible.byte().argsort(dim=-1, descending=True, stable=True)[..., :width]
        queries = torch.arange(n * SIZE, device=device).clamp(max=length - 1)  # the last one fills the last chunk
        row = torch.arange(batch, device=device)[:, None, None, None]
        mask = seen(row, queries.view(n, SIZE, 1), columns[:, :, None])
        return Chunks(columns, mask.flatten(0, 1)[:, None])

    def attend(self, call: Call) -> Attended:
        """What the stock attention gives for the whole mask; without weights, which would be of chunks."""
        (batch, n, width), length = self.columns.shape, call.query.shape[2]
        query = pad(call.query, (0, 0, 0, n * SIZE - length)).unflatten(2, (n, SIZE)).transpose(1, 2).flatten(0, 1)
        starts = torch.arange(batch, device=query.device) * call.key.shape[2]
        rows = (self.columns + starts[:, None, None]).flatten()

        def pick(x: Tensor) -> Tensor:  # (B, K, S, D) to (B * n, K, W, D)
            return x.transpose(1, 2).flatten(0, 1).index_select(0, rows).unflatten(0, (-1, width)).transpose(1, 2)

        output = replace(call, query=query, key=pick(call.key), value=pick(call.value)).run(self.mask)[0]
        return output.unflatten(0, (batch, n)).flatten(1, 2)[:, :length], None
