"""Attention in blocks, by torch's flex_attention: on CUDA, it skips the blocks that no query sees.

    mask      x . . . . m       Blocks have 128 queries and 128 columns. Within a block, the mask follows from step
              x x . . . m       numbers and positions, so that no T x S mask is in memory. The memory has columns of its
              . x x . . m       own (m): scattered over the text, it would touch every block.

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
from ccm.engine.call import Attended, Call, MaskFunction

LEAST = 1024  # tokens of a row: a shorter row has few blocks, and stock attention is as fast
MOST = 0.5  # of all blocks: where more are visible, a plain mask costs about the same and needs no compilation
OTHERS = ("dropout", "softcap", "s_aux")  # options of attention functions that flex_attention lacks

_log = get_logger(__name__)


class Flex(NamedTuple):
    """A mask in blocks.

    Attributes:
        blocks: the visible blocks, the same for all layers.
        apart: see :class:`ccm.engine.attention.AttentionPlan`.
    """

    blocks: BlockMask
    apart: bool = True

    @staticmethod
    def of(
        sees: MaskFunction, query: Tensor, columns: int, options: dict[str, Any], wanted: bool | None
    ) -> Flex | None:
        """The mask of these queries in blocks; None if another attention function is the better choice.

        Args:
            sees: the mask.
            query: (B, H, T, D).
            columns: S.
            options: options of the layer's attention function.
            wanted: True uses flex_attention wherever it runs, and warns once where it does not; False never uses it;
                None uses it where it is faster: from :data:`LEAST` tokens a row on, if at most :data:`MOST` of the
                blocks are visible.
        """
        batch, _, length, _ = query.shape
        if wanted is False or (wanted is None and length < LEAST):
            return None
        if reason := lacks(query, options):
            if wanted:
                _note(reason)
            return None
        blocks = create_block_mask(lambda b, h, q, k: sees(b, q, k), batch, None, length, columns, query.device)
        return Flex(blocks) if wanted or 1 - blocks.sparsity() / 100 <= MOST else None

    def attend(self, call: Call) -> Attended:
        """The output of flex_attention for this mask, without weights."""
        scale, grouped = call.options.get("scaling"), call.query.shape[1] != call.key.shape[1]
        attention = _compiled()
        output = attention(call.query, call.key, call.value, block_mask=self.blocks, scale=scale, enable_gqa=grouped)
        return output.transpose(1, 2), None


def lacks(query: Tensor, options: dict[str, Any]) -> str:
    """Why flex_attention cannot process these queries; empty if it can."""
    if query.device.type != "cuda":
        return f"it trains on CUDA only, and this is a {query.device.type} device"
    if query.shape[-1] < 16:
        return f"heads have {query.shape[-1]} dimensions, fewer than the 16 that it needs"
    return next((f"the attention has {name}, which it does not" for name in OTHERS if options.get(name)), "")


@cache
def _compiled() -> Callable[..., Any]:
    """flex_attention, compiled at first use: at import, it would load torch's whole compiler."""
    return torch.compile(flex_attention)


@cache
def _note(reason: str) -> None:
    """Warn once for each reason."""
    _log.warning("flex_attention was asked for, but is not used: %s. Attention goes on without it.", reason)
