"""How far back a layer sees, and how it scales its queries, in text positions rather than columns of the cache.

A cache here has other columns beside text: entries of a memory, COMP tokens and padding. Stock layers would count them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Reach(NamedTuple):
    """How far back a layer sees raw text: a sliding window, or the chunk that contains the query.

    Attributes:
        size: positions of the window or chunk.
        chunked: whether it is a chunk; chunks begin at the positions 0, ``size``, 2 ``size``, ...
    """

    size: int
    chunked: bool = False

    def covers(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position sees a key at the same or an earlier one; bool, broadcast."""
        if self.chunked:
            return query // self.size == key // self.size
        return query - key < self.size


def reach_of(module: Any, sliding_window: int | None) -> Reach | None:
    """The reach of an attention module that gives this window to its attention function; None if it sees everything."""
    if sliding_window is not None:
        return Reach(sliding_window)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    if types and types[module.layer_idx] == "chunked_attention":
        return Reach(module.config.attention_chunk_size, chunked=True)
    return None


def retuned(module: Any, query: Tensor, key: Tensor, positions: Tensor) -> Tensor:
    """The query scaled by its text positions in layers of Llama 4 without rope; unchanged in all other layers.

    Args:
        module: the attention module.
        query: (B, H, T, D), which the module has scaled by its columns in the cache.
        key: (B, K, S, D); the last T keys belong to the queries.
        positions: (B, T) text positions of the queries.
    """
    if not getattr(module, "attn_temperature_tuning", False) or module.use_rope:
        return query
    columns = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)

    def scale(at: Tensor) -> Tensor:
        return torch.log1p(torch.floor((at + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

    return query * (scale(positions) / scale(columns)).to(query.dtype)[:, None, :, None]
