"""One call of an attention function, as a layer of a stock model makes it: what a pass changes, and then runs.

Shapes: B batch, H heads, K kv heads, T queries, S keys, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ccm.engine.reach import Reach, reach_of, retuned

Attended = tuple[Tensor, Tensor | None]  # (B, T, H, D), and weights where there are any
Attention = Callable[..., Attended]  # (module, query, key, value, mask, **options)
Seen = Callable[[Tensor, Tensor, Tensor], Tensor]  # numbers of a row, a query and a column: whether it may attend


@dataclass(frozen=True)
class Call:
    """A call of attention.

    Attributes:
        stock: attention of the model as it is.
        module: the attention layer that calls.
        query: (B, H, T, D).
        key: (B, K, S, D), like ``value``.
        mask: (B, 1, T, S) bool, or to be added; None hides nothing that is not in the future.
        options: what else the layer hands to its attention function, ``sliding_window`` among them.
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
        """How far the layer sees; None where it sees all."""
        return reach_of(self.module, self.options.get("sliding_window"))

    def retuned(self, positions: Tensor) -> Call:
        """The call with queries scaled by their text positions (B, T), where the layer scales them at all."""
        query = retuned(self.module, self.query, self.key, positions)
        return self if query is self.query else replace(self, query=query)

    def entries(self, key: Tensor, value: Tensor) -> Call:
        """The call with other keys and values."""
        return replace(self, key=key, value=value)

    def run(self, mask: Tensor | None) -> Attended:
        """What the stock attention gives under a mask."""
        return self.stock(self.module, self.query, self.key, self.value, mask, **self.options)
