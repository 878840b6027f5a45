"""Seam 1: what a token may attend to, on stock models, through registered attention and mask functions.

A *pass* object rides on ``model(..., ccm=pass)`` and reaches every attention call. It answers two questions: which
hidden rows are COMP tokens (``rows``, for seam 2), and what this layer attends to (``attend``). Without a pass the
registered functions are the stock ones. Shapes: B batch, H heads, K kv heads, T queries, S keys, M memory entries,
D head dim. True = may attend.
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
from ccm.engine.call import Attended, Attention, Call, Seen
from ccm.engine.chunks import Chunks
from ccm.engine.flex import Flex
from ccm.engine.layout import Layout
from ccm.engine.reach import Reach

SDPA, EAGER = "ccm_sdpa", "ccm_eager"  # "sdpa" in the name: models that cannot use it refuse, as they should


class Pass(Protocol):
    """One forward pass with memory in it."""

    rows: Tensor | None
    hidden: Tensor | None

    def attend(self, call: Call) -> Attended:
        """What attention gives for the keys, values and mask of the pass."""
        ...


class ParallelPass:
    """A whole unrolled recursion in one pass: the mask of :class:`Layout`, and mixed memory columns if the rule mixes.

    keys   | head a C | b C | q y |  m1  m2 |      mi = memory after step i, appended by rules that mix
    q sees   head         .   own     .   x

    Attributes:
        last: the pass of the last layer, where that computes less (:mod:`ccm.engine.last`).
    """

    def __init__(
        self, layout: Layout, rule: Rule, *, flex: bool | None = False, last: ParallelPass | None = None
    ) -> None:
        self.layout, self.rule, self.flex, self.last = layout, rule, flex, last
        self.rows: Tensor | None = (layout.slots.flatten() >= 0).nonzero().flatten()
        self.hidden: Tensor | None = None
        self.mixes = layout.steps > 0 and rule.mixes
        self._ways: dict[Reach | None, Way] = {}

    def attend(self, call: Call) -> Attended:
        call, reach = call.retuned(self.layout.positions), call.reach
        if reach not in self._ways:  # once for all layers
            self._ways[reach] = self._way(call)
        way = self._ways[reach]
        if self.mixes or way.apart:
            mix = self._mixing(call.layer) if self.mixes else None
            call = call.entries(*(torch.cat([x, self._memory(mix, x)], dim=2) for x in (call.key, call.value)))
        return way.attend(call)

    def _way(self, call: Call) -> Way:
        columns = self.layout.ids.shape[1] + self.layout.comp_columns.shape[1]
        flex = Flex.of(self.seen(call.reach, apart=True), call.query, columns, call.options, self.flex)
        return flex or self._chunks(call.reach) or Whole(additive(self.mask(call.reach), call.query.dtype))

    def _chunks(self, reach: Reach | None) -> Chunks | None:
        return Chunks.of(self.layout, self.seen(reach, apart=self.mixes), self._columns)

    @property
    def _columns(self) -> int:
        """S, or S + M where the memory stands behind the text."""
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
        """The memory columns of keys or values (B, K, T, D): their COMP columns, mixed if the rule mixes."""
        columns = self.layout.comp_columns[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[-1])
        held = x.gather(2, columns)
        if mix is None:
            return held
        exact = torch.promote_types(x.dtype, torch.float32)
        return (mix.to(exact) @ held.to(exact)).to(x.dtype)

    def mask(self, reach: Reach | None = None) -> Tensor:
        """(B, 1, T, S or S + M) bool; memory and head stay visible beyond a layer's ``reach``."""
        sizes = (*self.layout.ids.shape, self._columns)
        b, q, k = (torch.arange(size, device=self.layout.ids.device) for size in sizes)
        return self.seen(reach, apart=self.mixes)(b[:, None, None], q[:, None], k)[:, None]

    def seen(self, reach: Reach | None, *, apart: bool) -> Seen:
        """The mask as a function of the numbers of row, query and column, which are broadcast: nothing else says it.

        ``apart`` is whether the memory is read in columns of its own behind the text, as mixed ones are, or where the
        COMP tokens stand.
        """
        lay, rule, length, n_tok = self.layout, self.rule, self.layout.ids.shape[1], self.layout.n_tok
        blocks, positions, reads, comp = lay.blocks, lay.positions, lay.reads, lay.slots >= 0
        first = (blocks >= 0).long().argmax(1)
        last = first + lay.raw

        def own(b: Tensor, q: Tensor, k: Tensor) -> Tensor:
            """The block so far; padding is a block of its own (-1), so that no query sees nothing."""
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


class Way(Protocol):
    """How a parallel pass attends: the stock function with a whole mask or in chunks, or flex_attention.

    Attributes:
        apart: whether the columns of the memory stand behind the text under any rule, not those of mixing rules alone.
    """

    @property
    def apart(self) -> bool: ...

    def attend(self, call: Call) -> Attended:
        """What :meth:`Pass.attend` gives, for the way's own mask."""
        ...


class Whole(NamedTuple):
    """The whole mask.

    Attributes:
        mask: (B, 1, T, S), to be added: of a boolean one, each layer would make its own.
    """

    mask: Tensor
    apart: bool = False

    def attend(self, call: Call) -> Attended:
        """Of every query and column."""
        return call.run(self.mask)


class CachedPass:
    """Text, and COMP tokens if any, after a memory that stands in the first columns of the cache.

    The stock causal mask is right but for one thing: where a layer does not see all text, compressed entries and the
    head must stay visible, and raw text is measured in positions.

    Args:
        mask: (B, S) False at padding, of all columns: those of the cache, then the T of this pass.
        columns: (B, S) their text positions, negative where they are compressed, or COMP tokens.
        positions: (B, T) of the queries.
        raw: (B,) how many of the first tokens stay visible.
    """

    def __init__(self, mask: Tensor, columns: Tensor, positions: Tensor, raw: Tensor) -> None:
        self.rows: Tensor | None = None
        self.hidden: Tensor | None = None
        self._mask, self._columns, self._positions, self._raw = mask, columns, positions, raw
        self._added: dict[Reach, Tensor] = {}

    def attend(self, call: Call) -> Attended:
        mask, reach = call.mask, call.reach
        if reach is not None and (reach.chunked or mask is not None):  # None: no two columns are a window apart
            if reach not in self._added:
                self._added[reach] = additive(self.mask(reach), call.query.dtype)
            mask = self._added[reach]
        return call.retuned(self._positions).run(mask)

    def mask(self, reach: Reach) -> Tensor:
        """(B, 1, T, S) bool: what each query sees in a layer of that reach."""
        keys, (length, width) = self._columns[:, None], (self._positions.shape[1], self._mask.shape[1])
        seen = (keys < 0) | reach.covers(self._positions[:, :, None], keys)
        seen |= (self._mask.cumsum(1) <= self._raw[:, None])[:, None]
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
    """A boolean mask as numbers to add: 0 where it allows, the dtype's minimum elsewhere, but float32's for float64.

    Eager attention adds whatever it gets: a boolean mask would be added as 0 and 1 and hide nothing. Its softmax is in
    float32, where the minimum of float64 is minus infinity, and a row of padding that sees nothing is NaN.
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
    """Attention as the model calls it; in mixed precision it stays in float32, and so does what the rule mixes.

    torch's attention in bfloat16 takes five times as long backward on a CPU, and a memory's weights need the digits.
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
    elif mask is not None and mask.dtype == torch.float64:  # the stock model's own
        mask = mask.clamp(min=_lowest(mask.dtype))
    family = sys.modules[type(module).__module__]  # each family has its own eager function
    return family.eager_attention_forward(module, query, key, value, mask, **kwargs)


AttentionInterface.register(SDPA, partial(_attention, sdpa_attention_forward))
AttentionInterface.register(EAGER, partial(_attention, _stock_eager))
AttentionMaskInterface.register(SDPA, sdpa_mask)
AttentionMaskInterface.register(EAGER, eager_mask)
