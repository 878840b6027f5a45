"""Seam 1: what a token may attend to, on stock models, through registered attention and mask functions.

A *pass* object rides on ``model(..., ccm=pass)`` and reaches every attention call. It answers two questions: which
hidden rows are COMP tokens (``rows``, for seam 2), and what this layer attends to (``attend``). Without a pass the
registered functions are the stock ones. Shapes: B batch, H heads, K kv heads, T queries, S keys, M memory entries,
D head dim. True = may attend.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ccm.chunks import Chunks
from ccm.layout import Layout
from ccm.reach import Reach, reach_of, retuned
from ccm.rules import Rule

SDPA, EAGER = "ccm_sdpa", "ccm_eager"  # "sdpa" in the name: models that cannot use it refuse, as they should


Attention = Callable[..., tuple[Tensor, Tensor | None]]  # (module, query, key, value, mask, **kwargs)


class Pass(Protocol):
    """One forward pass with memory in it."""

    rows: Tensor | None
    hidden: Tensor | None

    def attend(
        self,
        stock: Attention,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """What the ``stock`` attention gives, (B, T, H, D) and its weights, for the keys, values and mask of the pass.

        Args:
            stock: attention of the model as it is.
            module: the attention layer that calls.
            query: (B, H, T, D).
            key: (B, K, S, D), like ``value``.
            mask: (B, 1, T, S), the stock model's; None hides nothing that is not in the future.
            kwargs: what else the layer hands to its attention function, ``sliding_window`` among them.
        """
        ...


class ParallelPass:
    """A whole unrolled recursion in one pass: the mask of :class:`Layout`, and mixed memory columns if the rule mixes.

    keys   | bos a C | b C | q y |  m1  m2 |      mi = memory after step i, appended by rules that mix
    q sees   sink        .   own     .   x
    """

    def __init__(self, layout: Layout, rule: Rule, *, sink: bool) -> None:
        self.layout, self.rule, self.sink = layout, rule, sink
        self.rows: Tensor | None = (layout.slots.flatten() >= 0).nonzero().flatten()
        self.hidden: Tensor | None = None
        self.mixes = layout.steps > 0 and rule.mixes
        self._masks: dict[Reach | None, Tensor] = {}
        self._added: dict[Reach | None, Tensor] = {}
        self._chunks: dict[Reach | None, Chunks | None] = {}

    def attend(
        self,
        stock: Attention,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        query = retuned(module, query, key, self.layout.positions)
        if self.mixes:
            mix = self._mixing(module.layer_idx)
            key, value = (torch.cat([x, self._mixed(mix, x)], dim=2) for x in (key, value))
        reach = reach_of(module, kwargs.get("sliding_window"))
        if (chunks := self.chunks(reach)) is not None:
            return chunks.attend(stock, module, query, key, value, **kwargs), None
        if reach not in self._added:  # once for all layers, each of which would make its own of a boolean one
            self._added[reach] = additive(self.mask(reach), query.dtype)
        return stock(module, query, key, value, self._added[reach], **kwargs)

    def _mixing(self, layer: int) -> Tensor:
        content = None
        if self.rule.needs_content:
            assert self.hidden is not None
            columns = self.layout.comp_columns[:, :, None].expand(-1, -1, self.hidden.shape[-1])
            content = self.hidden.gather(1, columns)
        mix = self.rule.mixing(layer, self.layout.steps, self.layout.n_tok, content)
        assert mix is not None
        return mix.to(self.layout.ids.device)

    def _mixed(self, mix: Tensor, x: Tensor) -> Tensor:
        columns = self.layout.comp_columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
        exact = torch.promote_types(x.dtype, torch.float32)
        return (mix.to(exact) @ x.gather(2, columns).to(exact)).to(x.dtype)

    def mask(self, reach: Reach | None = None) -> Tensor:
        """(B, 1, T, S or S + M) bool; memory and sink stay visible beyond a layer's ``reach``."""
        if reach not in self._masks:
            self._masks[reach] = self._build_mask(reach)
        return self._masks[reach]

    def chunks(self, reach: Reach | None = None) -> Chunks | None:
        """How the mask falls into chunks; None where the attention should see it whole."""
        if reach not in self._chunks:
            self._chunks[reach] = Chunks.of(self.mask(reach))
        return self._chunks[reach]

    def _build_mask(self, reach: Reach | None) -> Tensor:
        lay = self.layout
        q, k = lay.blocks[:, :, None], lay.blocks[:, None, :]
        comp = (lay.slots >= 0)[:, None, :]
        own = (q == k).tril()  # padding is a block of its own (-1): no row is ever empty
        if reach is not None:
            own &= comp | reach.covers(lay.positions[:, :, None], lay.positions[:, None, :])
        if self.sink:
            first = (lay.blocks >= 0).long().argmax(1)
            own |= (torch.arange(k.shape[-1], device=k.device) == first[:, None])[:, None, :] & (q >= 0)
        if self.mixes:
            written = torch.arange(1, lay.steps + 1, device=k.device).repeat_interleave(lay.n_tok)
            memory = self.rule.holds(written, q) & lay.reads[:, :, None]
            return torch.cat([own, memory], dim=-1)[:, None]
        return (own | (comp & self.rule.holds(k + 1, q) & lay.reads[:, :, None]))[:, None]


class CachedPass:
    """Text, and COMP tokens if any, after a memory that stands in the first columns of the cache.

    The stock causal mask is right but for one thing: where a layer does not see all text, compressed entries and the
    sink must stay visible, and raw text is measured in positions.

    Args:
        mask: (B, S) False at padding, of all columns: those of the cache, then the T of this pass.
        columns: (B, S) their text positions, negative where they are compressed, or COMP tokens.
        positions: (B, T) of the queries.
        sink: (B,) column of the first token; None without a sink.
    """

    def __init__(self, mask: Tensor, columns: Tensor, positions: Tensor, sink: Tensor | None) -> None:
        self.rows: Tensor | None = None
        self.hidden: Tensor | None = None
        self._mask, self._columns, self._positions, self._sink = mask, columns, positions, sink
        self._added: dict[Reach, Tensor] = {}

    def attend(
        self,
        stock: Attention,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        query = retuned(module, query, key, self._positions)
        reach = reach_of(module, kwargs.get("sliding_window"))
        if reach is not None and (reach.chunked or mask is not None):  # None: no two columns are a window apart
            if reach not in self._added:
                self._added[reach] = additive(self.mask(reach), query.dtype)
            mask = self._added[reach]
        return stock(module, query, key, value, mask, **kwargs)

    def mask(self, reach: Reach) -> Tensor:
        """(B, 1, T, S) bool: what each query sees in a layer of that reach."""
        keys, (length, width) = self._columns[:, None], (self._positions.shape[1], self._mask.shape[1])
        seen = (keys < 0) | reach.covers(self._positions[:, :, None], keys)
        if self._sink is not None:
            seen |= (torch.arange(width, device=keys.device) == self._sink[:, None])[:, None]
        past = torch.ones(length, width, dtype=torch.bool, device=keys.device).tril(width - length)
        return (seen & past & self._mask[:, None])[:, None]


class AllWritten(Exception):  # noqa: N818  a signal as StopIteration is, not an error
    """The last layer's keys and values are in the cache: nothing that the model would compute from here on is used."""


class CompressingPass(CachedPass):
    """A cached pass that ends in the N COMP tokens of one step; keeps the rule's write weights of every layer.

    It ends in :class:`AllWritten`, raised at the last of the ``layers``: their keys and values are all that is wanted.
    """

    def __init__(
        self,
        mask: Tensor,
        columns: Tensor,
        positions: Tensor,
        sink: Tensor | None,
        *,
        rule: Rule,
        n_tok: int,
        step: Tensor,
        layers: int,
    ) -> None:
        super().__init__(mask, columns, positions, sink)
        batch, length = positions.shape
        comp = torch.arange(length - n_tok, length, device=positions.device)
        self.rows = (torch.arange(batch, device=positions.device)[:, None] * length + comp).flatten()
        self.weights: dict[int, Tensor | None] = {}
        self._rule, self._n_tok, self._step, self._last = rule, n_tok, step, layers - 1

    def attend(
        self,
        stock: Attention,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        content = self.hidden[:, -self._n_tok :] if self._rule.needs_content and self.hidden is not None else None
        self.weights[module.layer_idx] = self._rule.write(module.layer_idx, self._step, content)
        if module.layer_idx == self._last:
            raise AllWritten
        return super().attend(stock, module, query, key, value, mask, **kwargs)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as numbers to add: 0 where it allows, the dtype's minimum elsewhere.

    Eager attention adds whatever it gets: a boolean mask would be added as 0 and 1 and hide nothing.
    """
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), torch.finfo(dtype).min)


def _attention(
    stock: Attention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    ccm: Pass | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the model calls it; in mixed precision it stays in float32, and so does what the rule mixes.

    torch's attention in bfloat16 takes five times as long backward on a CPU, and a memory's weights need the digits.
    """
    attend = stock if ccm is None else partial(ccm.attend, stock)
    if not torch.is_autocast_enabled(query.device.type):
        return attend(module, query, key, value, attention_mask, **kwargs)
    with torch.autocast(query.device.type, enabled=False):
        return attend(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


def _stock_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    if mask is not None and mask.dtype == torch.bool:
        mask = additive(mask, query.dtype)
    family = sys.modules[type(module).__module__]  # each family has its own eager function
    return family.eager_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(SDPA, partial(_attention, sdpa_attention_forward))
AttentionInterface.register(EAGER, partial(_attention, _stock_eager))
AttentionMaskInterface.register(SDPA, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)
