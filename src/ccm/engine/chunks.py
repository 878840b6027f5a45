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

from ccm.engine.call import Attended, Call

SIZE = 64  # queries of a chunk, about a step: smaller ones copy more keys, larger ones see more that is hidden


class Chunks(NamedTuple):
    """How a mask falls into chunks.

    Attributes:
        columns: (B, n, W) the columns that a chunk sees, in order; then others, hidden, up to the width of the widest.
        mask: (B * n, 1, C, W) bool.
    """

    columns: Tensor
    mask: Tensor
    apart: bool = False

    @staticmethod
    def of(mask: Tensor) -> Chunks | None:
        """Chunks of a mask (B, 1, T, S); None where they would see more than half of all columns."""
        mask = pad(mask[:, 0], (0, 0, 0, -mask.shape[2] % SIZE)).unflatten(1, (-1, SIZE))  # (B, n, C, S)
        seen = mask.any(2)
        width = int(seen.sum(-1).max())
        if 2 * width > mask.shape[-1]:
            return None
        columns = seen.byte().argsort(dim=-1, descending=True, stable=True)[..., :width]
        mask = mask.gather(3, columns[:, :, None].expand(-1, -1, SIZE, -1))
        mask[..., 0] |= ~mask.any(-1)  # queries that only fill the last chunk: a softmax over nothing is NaN
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
