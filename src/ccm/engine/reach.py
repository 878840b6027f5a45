"""What a stock layer counts in columns of its cache, counted in text positions: how far it sees, how sharply it looks.

Beside text there are other columns here: entries of a memory, COMP tokens, padding. They would shift what is counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Reach(NamedTuple):
    """How far back a layer sees raw text: a sliding window, or the chunk that the query stands in.

    Attributes:
        size: positions of the window or chunk.
        chunked: whether it is a chunk; these begin at 0, ``size``, 2 ``size``, ...
    """

    size: int
    chunked: bool = False

    def covers(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query at one position reaches a key at another that is not after it; bool, broadcast."""
        if self.chunked:
            return query // self.size == key // self.size
        return query - key < self.size


def reach_of(module: Any, sliding_window: int | None) -> Reach | None:
    """The reach of an attention layer that hands this window to its attention function; None where it sees all."""
    if sliding_window is not None:
        return Reach(sliding_window)
    types = getattr(getattr(module, "config", None), "layer_types", None)
    if types and types[module.layer_idx] == "chunked_attention":
        return Reach(module.config.attention_chunk_size, chunked=True)
    return None


def retuned(module: Any, query: Tensor, key: Tensor, positions: Tensor) -> Tensor:
    """The query as Llama 4's layers without rope scale it, by its text position; all other layers' stays as it is.

    Args:
        module: the attention layer.
        query: (B, H, T, D), scaled by the columns of the cache.
        key: (B, K, S, D), of which the last T are the query's own.
        positions: (B, T).
    """
    if not getattr(module, "attn_temperature_tuning", False) or module.use_rope:
        return query
    columns = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)

    def scale(at: Tensor) -> Tensor:
        return torch.log1p(torch.floor((at + 1.0) / module.floor_scale)) * module.attn_scale + 1.0

    return query * (scale(positions) / scale(columns)).to(query.dtype)[:, None, :, None]
