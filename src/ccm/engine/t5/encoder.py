"""The encoder of an encoder-decoder: the tokens of one pass, and what they attend to.

tokens   a a C C | b b b C C | S S | q q       C = COMP; S = SUM, the memory of rules that mix
slots    . . 0 1   . . . 0 1   2 3   . .
blocks   0 0 0 0   1 1 1 1 1   2 2   3 3       the query is the last block; the SUM tokens are a block of their own

An encoder is not causal: within a block, all tokens see one another. The query also sees the COMP tokens of all steps.
Under a rule that mixes, it sees the SUM tokens instead: these see the COMP tokens, and their keys and values are the
rule's mixture of the COMP tokens' keys and values. The decoder reads the query and what the query saw of the context.
Positions count every token. T5 uses only distances, so that the entries of a memory may precede any text.

Shapes: B rows, H heads, T tokens, M entries held, N COMP tokens a step, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ccm.core.config import CCMConfig
from ccm.core.errors import InputError
from ccm.core.rules import Rule
from ccm.engine.attention import additive
from ccm.engine.call import Attended, Call
from ccm.engine.layout import IGNORE, BaseLayout, BlockView, Column, Sample, stack_rows


@dataclass(frozen=True)
class EncoderLayout(BaseLayout):
    """One batch for the encoder, padded on the left, and the answers for the decoder.

    Attributes:
        ids: (B, T) int64 token ids; the pad id at COMP and SUM tokens and padding.
        slots: (B, T) int64, the row of a COMP or SUM token in the embeddings, -1 elsewhere.
        blocks: (B, T) int64, the number of the block; -1 at padding.
        positions: (B, T) int64, which also count COMP and SUM tokens; 0 at padding.
        sums: (B, T) bool, the SUM tokens.
        query: (B, T) bool, the text that reads the memory; all text if the rule hides nothing.
        targets: (B, A) int64 ids that the decoder should give, or IGNORE.
        n_tok: N.
    """

    ids: Tensor
    slots: Tensor
    blocks: Tensor
    positions: Tensor
    sums: Tensor
    query: Tensor
    targets: Tensor
    n_tok: int

    @property
    def comps(self) -> Tensor:
        """(B, T) bool, the COMP tokens."""
        return (self.slots >= 0) & ~self.sums

    def shown(self) -> list[BlockView]:
        """The blocks of the first row; the last one, the query, has the targets of the decoder."""
        first = int(self.slots[self.sums].min()) if self.sums.any() else 0

        def mark(slot: int, is_sum: bool) -> str:
            return "" if slot < 0 else f"[SUM {slot - first + 1}]" if is_sum else f"[COMP {slot + 1}]"

        columns = zip(*(x[0].tolist() for x in (self.blocks, self.ids, self.slots, self.sums)), strict=True)
        views = BlockView.of((block, token, mark(slot, is_sum), IGNORE) for block, token, slot, is_sum in columns)
        views[-1].learned.extend(target for target in self.targets[0].tolist() if target != IGNORE)
        return views


def build_encoder_layout(
    samples: Sequence[Sample],
    config: CCMConfig,
    rule: Rule,
    pad_id: int,
    held: Sequence[tuple[int, int]] | None = None,
) -> EncoderLayout:
    """Lay out a batch: the rule says which steps are read, and where COMP and SUM tokens follow.

    Args:
        samples: steps of the context, and a query: the encoder reads it up to its first target; the decoder gives the
            targets.
        config: the settings.
        rule: the rule of memory.
        pad_id: fills the columns without text.
        held: for each row, the number of entries in its memory and of the positions that these took; None if there is
            no memory.

    Raises:
        InputError: when the batch, one of its rows, or a step is empty, a step has targets, or a row has a head.
    """
    for i, sample in enumerate(samples):
        if sample.head:
            raise InputError(f"Row {i} has a head; an encoder has none: write it into the first step.")
        if any(target != IGNORE for step in sample.steps for target in step.targets):
            raise InputError(
                f"A step of row {i} has targets; a decoder gives one text, after the query: use the objective 'last'."
            )
    queries = [_split_query(sample) for sample in samples]
    rows = [
        _build_row(sample, prompt, config, rule, pad_id, begin)
        for sample, (prompt, _), begin in zip(samples, queries, held or [(0, 0)] * len(samples), strict=True)
    ]
    ids, slots, blocks, positions, sums, query = stack_rows(samples, rows, (pad_id, -1, -1, 0, 0, 0))
    longest = max(len(answer) for _, answer in queries)
    targets = torch.tensor([[*answer, *[IGNORE] * (longest - len(answer))] for _, answer in queries], dtype=torch.long)
    return EncoderLayout(ids, slots, blocks, positions, sums.bool(), query.bool(), targets, config.n_tok)


def _split_query(sample: Sample) -> tuple[Sequence[int], Sequence[int]]:
    """The part of the query that the encoder reads, and the answer that the decoder should give."""
    targets = sample.query.targets
    first = next((i for i, target in enumerate(targets) if target != IGNORE), None)
    if first is None:
        return sample.query.ids, []
    answer = [*targets[first:]]
    while answer[-1] == IGNORE:
        answer.pop()
    return sample.query.ids[: first + 1], answer


def _build_row(
    sample: Sample, prompt: Sequence[int], config: CCMConfig, rule: Rule, pad_id: int, begin: tuple[int, int]
) -> list[Column]:
    """The columns of a row: id, slot, block, position, whether it is a SUM token, whether it belongs to the query."""
    steps, (entries, start) = [] if rule.forgets else sample.steps, begin
    row: list[Column] = []
    block = 0

    def put(ids: Sequence[int], first_slot: int | None = None, *, sums: bool = False, query: bool = False) -> None:
        for k, token in enumerate(ids):
            slot = -1 if first_slot is None else first_slot + k
            row.append((token, slot, block, start + len(row), sums, query))

    group = [pad_id] * config.n_tok
    whole = rule.keeps_text or rule.compresses == "never"  # nothing is hidden: all text is in the block of the query
    for number, step in enumerate(steps, start=1):
        put(step.ids, query=whole)
        if rule.compresses_after(number, len(steps)):
            put(group, 0, query=whole)
            block += not whole
    if rule.mixes and prompt and (entries or steps):
        put(group, config.n_tok_range[1], sums=True)
        block += 1
    put(prompt, query=True)
    return row


class EncoderPass:
    """One pass of an encoder over a layout, after the entries of a memory.

    Args:
        layout: the tokens.
        rule: the rule of memory.
        table: the attention module that has the relative position bias of all layers.
        mask: (B, M) bool, False at padding of the memory.
        positions: (B, M) positions of the entries.
        held: per layer, keys and values (B, H, M, D) of the entries.
        keep: the number of last tokens whose keys and values the pass keeps.

    Attributes:
        cross: (B, M + T) bool, which entries and tokens the decoder reads.
        kept: by layer, keys and values (B, H, keep, D) of the last tokens, before any mixing.
    """

    def __init__(
        self,
        layout: EncoderLayout,
        rule: Rule,
        table: Any,
        mask: Tensor,
        positions: Tensor,
        held: Sequence[tuple[Tensor, Tensor]],
        keep: int = 0,
    ) -> None:
        self.layout, self.rule = layout, rule
        self.rows: Tensor | None = (layout.slots.flatten() >= 0).nonzero().flatten()
        self.hidden: Tensor | None = None
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._held, self._keep = held, keep
        self._width, self._comps = mask.shape[1], torch.cat([mask, layout.comps], dim=1)
        memory = pad(layout.sums, (self._width, 0)) if rule.mixes else self._comps
        self.cross = memory | pad(layout.query, (self._width, 0))
        self._mix = self._mixing() if rule.mixes and layout.sums.any() else None
        self._bias: Tensor | None = None
        self._table, self._positions = table, torch.cat([positions, layout.positions], dim=1)

    def mask(self) -> Tensor:
        """(B, 1, T, M + T) bool, what each token attends to."""
        lay = self.layout
        own = lay.blocks[:, :, None] == lay.blocks[:, None, :]  # padding sees padding: every token sees something
        own = pad(own, (self._width, 0))
        read = (lay.sums if self.rule.mixes else lay.query)[:, :, None] & self._comps[:, None]
        return (own | read | (lay.query[:, :, None] & pad(lay.sums, (self._width, 0))[:, None]))[:, None]

    def attend(self, call: Call) -> Attended:
        own = call.key, call.value
        start = call.key.shape[2] - self._keep
        # copies, since views would keep the keys and values of all tokens in memory
        self.kept[call.layer] = call.key[:, :, start:].clone(), call.value[:, :, start:].clone()
        key, value = (torch.cat(both, dim=2) for both in zip(self._held[call.layer], own, strict=True))
        if self._mix is not None:
            key, value = self._mixed(key), self._mixed(value)
        if self._bias is None:  # all layers share it
            self._bias = self.bias(call.query.dtype)
        call.options.pop("position_bias", None)
        return call.entries(key, value).run(self._bias)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """(B, H, T, M + T) the bias of every distance, and the dtype's minimum where a token is hidden."""
        distance = self._positions[:, None, :] - self.layout.positions[:, :, None]
        table = self._table
        bucket = table._relative_position_bucket(
            distance,
            bidirectional=True,
            num_buckets=table.relative_attention_num_buckets,
            max_distance=table.relative_attention_max_distance,
        )
        bias = table.relative_attention_bias(bucket).permute(0, 3, 1, 2).to(dtype)
        return torch.where(self.mask(), bias, additive(torch.zeros((), dtype=torch.bool, device=bias.device), dtype))

    def _mixing(self) -> tuple[Tensor, Tensor] | None:
        """Columns (B, S * N) of the COMP tokens by step and slot, and the weights (B, N, S * N) that mix them."""
        n, counts = self.layout.n_tok, self._comps.sum(1)
        most = int(counts.max())
        order = (~self._comps).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        mix = self.rule.mixing(0, most // n, n, None)
        assert mix is not None
        mix = mix[0, 0].to(order.device)  # (S * N memory columns, S * N)
        last = (counts - n).clamp(min=0)[:, None] + torch.arange(n, device=order.device)  # the columns of Mem(t)
        return order, mix[last]

    def _mixed(self, x: Tensor) -> Tensor:
        """Keys or values (B, H, M + T, D), with those that the rule mixes at the SUM tokens."""
        assert self._mix is not None
        order, mix = self._mix
        exact = torch.promote_types(x.dtype, torch.float32)
        comps = x.gather(2, order[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])).to(exact)
        memory = (mix.to(exact)[:, None] @ comps).to(x.dtype)  # (B, H, N, D)
        sums = pad(self.layout.sums, (self._width, 0))
        slot = torch.where(sums, sums.long().cumsum(1) - 1, 0)[:, None, :, None].expand_as(x)
        return torch.where(sums[:, None, :, None], memory.gather(2, slot), x)
