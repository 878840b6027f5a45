"""One call of an attention function by a layer of a stock model. A pass may change the call before it runs.

Shapes: B batch, H heads, K kv heads, T queries, S keys, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ccm.engine.reach import Reach, reach_of, retuned

Attended = tuple[Tensor, Tensor | None]  # output (B, T, H, D), and the attention weights if there are any
Attention = Callable[..., Attended]  # (module, query, key, value, mask, **options)
MaskFunction = Callable[[Tensor, Tensor, Tensor], Tensor]  # (row, query, column) numbers -> may attend; broadcast


@dataclass(frozen=True)
class Call:
    """A call of an attention function.

    Attributes:
        stock: the attention function of the stock model.
        module: the attention module that calls it.
        query: (B, H, T, D).
        key: (B, K, S, D).
        value: (B, K, S, D).
        mask: (B, 1, T, S) bool, or floats to add; None is a plain causal mask.
        options: further arguments of the attention function, such as ``sliding_window``.
    """

    stock: Attention
    module: Any
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]

    @property
    def layer(self) -> int:
        """The number of the layer, from 0."""
        return self.module.layer_idx

    @property
    def reach(self) -> Reach | None:
        """How far back the layer sees; None if it sees everything."""
        return reach_of(self.module, self.options.get("sliding_window"))

    def retuned(self, positions: Tensor) -> Call:
        """The call with queries scaled by their text positions (B, T), if the layer scales its queries."""
        query = retuned(self.module, self.query, self.key, positions)
        return self if query is self.query else replace(self, query=query)

    def entries(self, key: Tensor, value: Tensor) -> Call:
        """The call with other keys and values."""
        return replace(self, key=key, value=value)

    def run(self, mask: Tensor | None) -> Attended:
        """Run the stock attention function with another mask."""
        return self.stock(self.module, self.query, self.key, self.value, mask, **self.options)
