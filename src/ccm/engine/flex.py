"""Attention in blocks, by torch's flex_attention: on CUDA, forward and backward skip the blocks that nobody sees.

    mask      x . . . . m       Blocks have 128 queries and 128 columns; what is hidden within one is asked there, from
              x x . . . m       the numbers of steps and positions, so that no mask of T x S stays in memory. The memory
              . x x . . m       stands in columns of its own (m): scattered over the text, it would be in every block.

Shapes: B batch, T queries, S keys, H heads, K kv heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from ccm.core.processes import get_logger
from ccm.engine.call import Attended, Call, Seen

LEAST = 1024  # tokens of a row from which on it may win: below, a row is a few blocks, and kernels are quick either way
MOST = 0.5  # of all blocks: where more are seen, a plain mask costs about the same, and nothing has to be compiled
OTHERS = ("dropout", "softcap", "s_aux")  # options of attention functions that it does not have

_log = get_logger(__name__)


class Flex(NamedTuple):
    """A mask in blocks.

    Attributes:
        blocks: those that are seen, in part or whole, made once for all layers.
    """

    blocks: BlockMask
    apart: bool = True

    @staticmethod
    def of(seen: Seen, query: Tensor, columns: int, options: dict[str, Any], wanted: bool | None) -> Flex | None:
        """What is seen of ``columns`` by the queries (B, H, T, D), in blocks; None where another way is to be taken.

        Args:
            seen: numbers of rows, queries and columns to whether the one may attend to the other; elementwise.
            query: (B, H, T, D).
            columns: S.
            options: of the layer's attention.
            wanted: True takes it wherever it runs, and says once where it does not; False never; None where it wins:
                in rows of :data:`LEAST` tokens that see at most :data:`MOST` of the blocks.
        """
        batch, _, length, _ = query.shape
        if wanted is False or (wanted is None and length < LEAST):
            return None
        if reason := lacks(query, options):
            if wanted:
                _note(reason)
            return None
        blocks = create_block_mask(lambda b, h, q, k: seen(b, q, k), batch, None, length, columns, query.device)
        return Flex(blocks) if wanted or 1 - blocks.sparsity() / 100 <= MOST else None

    def attend(self, call: Call) -> Attended:
        """What any attention gives for this mask; the stock one is not asked."""
        scale, grouped = call.options.get("scaling"), call.query.shape[1] != call.key.shape[1]
        attention = _compiled()
        output = attention(call.query, call.key, call.value, block_mask=self.blocks, scale=scale, enable_gqa=grouped)
        return output.transpose(1, 2), None


def lacks(query: Tensor, options: dict[str, Any]) -> str:
    """Why flex_attention cannot be taken for these queries; empty where it can."""
    if query.device.type != "cuda":
        return f"it trains on CUDA alone, and this is a {query.device.type} device"
    if query.shape[-1] < 16:
        return f"heads have {query.shape[-1]} dimensions, fewer than the 16 that it needs"
    return next((f"the attention has {name}, which it does not" for name in OTHERS if options.get(name)), "")


@cache
def _compiled() -> Callable[..., Any]:
    """flex_attention, compiled: not at import, which would then bring in torch's whole compiler."""
    return torch.compile(flex_attention)


@cache
def _note(reason: str) -> None:
    """Once for each reason."""
    _log.warning("flex_attention was asked for, but is not taken: %s. Attention goes on without it.", reason)
