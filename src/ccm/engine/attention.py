"""Seam 1: what a token of a stock model may attend to, by registered attention and mask functions.

A *pass* is an argument of the model, ``model(..., ccm=pass)``, that reaches every attention call. It says which hidden
rows are COMP tokens (``rows``, for seam 2) and what a layer attends to (``attend``). Without a pass, the registered
functions do what the stock ones do.

Shapes: B batch, H heads, K kv heads, T queries, S keys, M memory entries, D head dim. True = may attend.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from ccm.core.rules import Rule
from ccm.engine.call import Attended, Attention, Call, MaskFunction
from ccm.engine.chunks import Chunks
from ccm.engine.flex import Flex
from ccm.engine.layout import Layout
from ccm.engine.reach import Reach

SDPA, EAGER = "ccm_sdpa", "ccm_eager"  # with "sdpa" in the name, models that do not support it refuse it


class Pass(Protocol):
    """One forward pass with a memory.

    Attributes:
        rows: (P,) numbers of the COMP tokens among the B * T tokens; None if there are none.
        hidden: (B, T, hidden) the input of the attention module that runs at the moment.
    """

    rows: Tensor | None
    hidden: Tensor | None

    def attend(self, call: Call) -> Attended:
        """Run an attention call with the keys, values and mask of this pass."""
        ...


class ParallelPass:
    """The whole recursion in one pass: the mask of a :class:`Layout`, and columns of the memory if the rule mixes.

    keys   | head a C | b C | q y |  m1  m2 |      mi = memory after step i, appended by rules that mix
    q sees   head         .   own     .   x

    Args:
        layout: the tokens.
        rule: the rule of memory.
        flex: whether to attend by flex_attention; None decides by speed (:class:`ccm.engine.flex.Flex`).
        last: the pass of the last layer, if it computes fewer columns (:mod:`ccm.engine.last`).
    """

    def __init__(
        self, layout: Layout, rule: Rule, *, flex: bool | None = False, last: ParallelPass | None = None
    ) -> None:
        self.layout, self.rule, self.flex, self.last = layout, rule, flex, last
        self.rows: Tensor | None = (layout.slots.flatten() >= 0).nonzero().flatten()
        self.hidden: Tensor | None = None
        self.mixes = layout.steps > 0 and rule.mixes
        self._plans: dict[Reach | None, AttentionPlan] = {}

    def attend(self, call: Call) -> Attended:
        call, reach = call.retuned(self.layout.positions), call.reach
        if reach not in self._plans:  # one plan serves all layers of the same reach
            self._plans[reach] = self._plan(call)
        plan = self._plans[reach]
        if self.mixes or plan.apart:
            mix = self._mixing(call.layer) if self.mixes else None
            call = call.entries(*(torch.cat([x, self._memory(mix, x)], dim=2) for x in (call.key, call.value)))
        return plan.attend(call)

    def _plan(self, call: Call) -> AttentionPlan:
        columns = self.layout.ids.shape[1] + self.layout.comp_columns.shape[1]
        flex = Flex.of(self.mask_function(call.reach, apart=True), call.query, columns, call.options, self.flex)
        return flex or self._chunks(call.reach) or WholeMask(additive(self.mask(call.reach), call.query.dtype))

    def _chunks(self, reach: Reach | None) -> Chunks | None:
        return Chunks.of(self.layout, self.mask_function(reach, apart=self.mixes), self._columns)

    @property
    def _columns(self) -> int:
        """The number of columns: T, or T + M if the rule mixes and the memory follows the text."""
        return self.layout.ids.shape[1] + (self.layout.comp_columns.shape[1] if self.mixes else 0)

    def _mixing(self, layer: int) -> Tensor:
        content = None
        if self.rule.needs_content:
            assert self.hidden is not None
            columns = self.layout.comp_columns[:, :, None].expand(-1, -1, self.hidden.shape[-1])
            content = self.hidden.gather(1, columns)
        mix = self.rule.mixing(layer, self.layout.steps, self.layout.n_tok, content)
        assert mix is not None
        return mix.to(self.layout.ids.device)

    def _memory(self, mix: Tensor | None, x: Tensor) -> Tensor:
        """The memory (B, K, M, D) of keys or values (B, K, T, D): their COMP columns, mixed by ``mix`` unless None."""
        columns = self.layout.comp_columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
        comp = x.gather(2, columns)
        if mix is None:
            return comp
        exact = torch.promote_types(x.dtype, torch.float32)
        return (mix.to(exact) @ comp.to(exact)).to(x.dtype)

    def mask(self, reach: Reach | None = None) -> Tensor:
        """(B, 1, T, T or T + M) bool; memory and head stay visible beyond a layer's ``reach``."""
        sizes = (*self.layout.ids.shape, self._columns)
        b, q, k = (torch.arange(size, device=self.layout.ids.device) for size in sizes)
        return self.mask_function(reach, apart=self.mixes)(b[:, None, None], q[:, None], k)[:, None]

    def mask_function(self, reach: Reach | None, *, apart: bool) -> MaskFunction:
        """The mask as a function of the numbers of row, query and column. Every other form of the mask comes from it.

        Args:
            reach: how far back the layer sees; None if it sees everything.
            apart: whether the memory has columns of its own after the text, or is read at the COMP tokens.
        """
        lay, rule, length, n_tok = self.layout, self.rule, self.layout.ids.shape[1], self.layout.n_tok
        blocks, positions, reads, comp = lay.blocks, lay.positions, lay.reads, lay.slots >= 0
        first = (blocks >= 0).long().argmax(1)
        last = first + lay.raw

        def own(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
            """The block so far, and the head or sink. Padding is block -1, so that every query sees something."""
            found = (blocks[b, q] == blocks[b, k]) & (k <= q)
            if reach is not None:
                found = found & (comp[b, k] | reach.covers(positions[b, q], positions[b, k]))
            return found | ((first[b] <= k) & (k < last[b]) & (last[b] <= q) & (blocks[b, q] >= 0))

        def with_comp(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return own(b, q, k) | (comp[b, k] & rule.holds(blocks[b, k] + 1, blocks[b, q]) & reads[b, q])

        def with_memory(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
            memory = rule.holds((k - length) // n_tok + 1, blocks[b, q]) & reads[b, q]
            return torch.where(k < length, own(b, q, k.clamp(max=length - 1)), memory)

        return with_memory if apart else with_comp


class AttentionPlan(Protocol):
    """How a parallel pass attends: the stock function with a whole mask or in chunks, or flex_attention.

    Attributes:
        apart: whether the memory has columns of its own after the text under every rule, not only if the rule mixes.
    """

    @property
    def apart(self) -> bool: ...

    def attend(self, call: Call) -> Attended:
        """See :meth:`Pass.attend`; the mask is the plan's own."""
        ...


class WholeMask(NamedTuple):
    """The mask of all queries and columns.

    Attributes:
        mask: (B, 1, T, S) floats to add; every layer would have to convert a boolean one.
        apart: see :class:`AttentionPlan`.
    """

    mask: Tensor
    apart: bool = False

    def attend(self, call: Call) -> Attended:
        return call.run(self.mask)


class CachedPass:
    """Text, and COMP tokens if any, after a memory in the first columns of the cache.

    The stock causal mask is right in layers that see all text. In others, compressed entries and the head must stay
    visible, and the distance to raw text counts in positions.

    Args:
        mask: (B, S) bool, False at padding: the columns of the cache, then the T of this pass.
        columns: (B, S) text positions of these columns, negative at compressed entries and COMP tokens.
        positions: (B, T) text positions of the queries.
        raw: (B,) the number of first tokens that stay visible.
    """

    def __init__(self, mask: Tensor, columns: Tensor, positions: Tensor, raw: Tensor) -> None:
        self.rows: Tensor | None = None
        self.hidden: Tensor | None = None
        self._mask, self._columns, self._positions, self._raw = mask, columns, positions, raw
        self._added: dict[Reach, Tensor] = {}

    def attend(self, call: Call) -> Attended:
        mask, reach = call.mask, call.reach
        if reach is not None and (reach.chunked or mask is not None):  # no mask: a window covers all columns
            if reach not in self._added:
                self._added[reach] = additive(self.mask(reach), call.query.dtype)
            mask = self._added[reach]
        return call.retuned(self._positions).run(mask)

    def mask(self, reach: Reach) -> Tensor:
        """(B, 1, T, S) bool, what each query sees in a layer of that reach."""
        keys, (length, width) = self._columns[:, None], (self._positions.shape[1], self._mask.shape[1])
        seen = (keys < 0) | reach.covers(self._positions[:, :, None], keys)
        seen |= (self._mask.cumsum(1) <= self._raw[:, None])[:, None]
        past = torch.ones(length, width, dtype=torch.bool, device=keys.device).tril(width - length)
        return (seen & past & self._mask[:, None])[:, None]


class AllWritten(Exception):  # noqa: N818  a signal like StopIteration, not an error
    """The keys and values of the last layer are in the cache; nothing reads the rest of the forward pass."""


class CompressingPass(CachedPass):
    """A cached pass whose last N tokens are the COMP tokens of a step. It keeps the rule's write weights by layer.

    It raises :class:`AllWritten` in the last layer, since only keys and values are wanted.

    Args:
        rule: the rule of memory.
        n_tok: N.
        step: (B,) number of the step, from 1.
        layers: the number of layers.

    Attributes:
        weights: by layer, what :meth:`Rule.write` returned.
    """

    def __init__(
        self,
        mask: Tensor,
        columns: Tensor,
        positions: Tensor,
        raw: Tensor,
        *,
        rule: Rule,
        n_tok: int,
        step: Tensor,
        layers: int,
    ) -> None:
        super().__init__(mask, columns, positions, raw)
        batch, length = positions.shape
        comp = torch.arange(length - n_tok, length, device=positions.device)
        self.rows = (torch.arange(batch, device=positions.device)[:, None] * length + comp).flatten()
        self.weights: dict[int, Tensor | None] = {}
        self._rule, self._n_tok, self._step, self._last = rule, n_tok, step, layers - 1

    def attend(self, call: Call) -> Attended:
        content = None
        if self._rule.needs_content and self.hidden is not None:
            content = self.hidden[:, self.hidden.shape[1] - self._n_tok :]
        self.weights[call.layer] = self._rule.write(call.layer, self._step, content)
        if call.layer == self._last:
            raise AllWritten
        return super().attend(call)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as floats to add: 0 where it is True, else the minimum of the dtype, or of float32 for float64.

    Eager attention adds any mask: a boolean one would add 0 and 1 and hide nothing. Its softmax is in float32, where
    the minimum of float64 is minus infinity, so that a row of padding that sees nothing would be NaN.
    """
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), _lowest(dtype))


def _lowest(dtype: torch.dtype) -> float:
    return max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)


def _attention(
    stock: Attention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    ccm: Pass | None = None,
    **kwargs: Any,
) -> Attended:
    """The registered attention function. In mixed precision, attention and mixing stay in float32.

    On a CPU, the backward pass of torch's attention takes five times as long in bfloat16; and the weights of a memory
    need the precision.
    """
    mixed = torch.is_autocast_enabled(query.device.type)
    if mixed:
        query, key, value = query.float(), key.float(), value.float()
    call = Call(stock, module, query, key, value, attention_mask, kwargs)
    with torch.autocast(query.device.type, enabled=False) if mixed else nullcontext():
        return call.run(attention_mask) if ccm is None else ccm.attend(call)


def _stock_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor]:
    if mask is not None and mask.dtype == torch.bool:
        mask = additive(mask, query.dtype)
    elif mask is not None and mask.dtype == torch.float64:  # a mask that the stock model made
        mask = mask.clamp(min=_lowest(mask.dtype))
    family = sys.modules[type(module).__module__]  # every family has its own
    return family.eager_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(SDPA, partial(_attention, sdpa_attention_forward))
AttentionInterface.register(EAGER, partial(_attention, _stock_eager))
AttentionMaskInterface.register(SDPA, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)
