"""Layouts: steps of token ids become the tensors of one parallel pass.

tokens     bos a a C C | b b b C C | q q y y          C = COMP, | begins the text of a step; a head would precede a a
blocks       0 0 0 0 0 1 1 1 1 1 1 2 2 2 2 2          block b has b finished steps before it
slots        . . . 0 1 . . . . 0 1 . . . . .
positions    0 1 2 3 4 3 4 5 6 7 8 7 8 9 .. ..        COMP tokens take no text positions ("skip")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ccm.core.config import CCMConfig
from ccm.core.errors import InputError
from ccm.core.rules import Rule

Column = tuple[int, ...]  # the numbers of one column of a layout
IGNORE = -100  # the target of a token without a loss; cross_entropy of torch ignores it by default


@dataclass(frozen=True)
class Step:
    """One piece of text as the model reads it, with its separators.

    Attributes:
        ids: token ids.
        targets: for each token, the id that should follow it, or :data:`IGNORE`; empty if no token has a target.
            A target need not be in the text: the closing EOS is a target, and never enters the memory.

    Raises:
        InputError: when there are targets, but not one for each token.
    """

    ids: Sequence[int]
    targets: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.targets and len(self.targets) != len(self.ids):
            raise InputError(f"A step has {len(self.ids)} tokens but {len(self.targets)} targets; give one per token.")


@dataclass(frozen=True)
class Sample:
    """One row of a batch.

    Attributes:
        steps: the steps of the context, in order.
        query: the text that reads their memory; it may be empty.
        head: token ids of raw text before all steps, which all later tokens see.
    """

    steps: Sequence[Step]
    query: Step
    head: Sequence[int] = ()


def length(sample: Sample) -> int:
    """The number of text tokens in a sample."""
    return len(sample.head) + sum(len(step.ids) for step in (*sample.steps, sample.query))


class BlockView(NamedTuple):
    """A block as people see it: its number, the ids of its text, its COMP and SUM tokens by name, and its targets."""

    block: int
    text: list[int]
    marks: list[str]
    learned: list[int]

    @staticmethod
    def of(columns: Iterable[tuple[int, int, str, int]]) -> list[BlockView]:
        """The blocks of columns; a column has a block, an id, the name of a COMP or SUM token or "", and a target."""
        views: dict[int, BlockView] = {}
        for block, token, mark, target in columns:
            view = views.setdefault(block, BlockView(block, [], [], []))
            view.marks.append(mark) if mark else view.text.append(token)
            view.learned.extend([target] if target != IGNORE else [])
        return [*views.values()]


@dataclass(frozen=True)
class BaseLayout:
    """The base of layouts: the tensors of one batch."""

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        tensors = {f.name: x for f in fields(self) if isinstance(x := getattr(self, f.name), Tensor)}
        return replace(self, **{name: x.to(device) for name, x in tensors.items()})


@dataclass(frozen=True)
class Layout(BaseLayout):
    """One batch for a parallel pass: B rows of T columns, padded on the left. See the picture above.

    Attributes:
        ids: (B, T) int64 token ids; the pad id at COMP tokens and padding.
        slots: (B, T) int64, k at the k-th COMP token of a step (from 0), -1 elsewhere.
        blocks: (B, T) int64, the number of finished steps before the token; -1 at padding.
        positions: (B, T) int64 positions for the rotary embedding.
        reads: (B, T) bool, whether the token sees the memory.
        targets: (B, T) int64, the id that should follow, or IGNORE.
        comp_columns: (B, S * N) int64 columns of the COMP tokens by step and slot, where S is the largest number of
            compressed steps in a row; 0 where a row has fewer.
        raw: (B,) int64, how many first tokens of a row stay visible to all text: those of the head, or the sink.
        n_tok: N.
    """

    ids: Tensor
    slots: Tensor
    blocks: Tensor
    positions: Tensor
    reads: Tensor
    targets: Tensor
    comp_columns: Tensor
    raw: Tensor
    n_tok: int

    @property
    def steps(self) -> int:
        """S, the largest number of compressed steps in a row."""
        return self.comp_columns.shape[1] // self.n_tok

    def shown(self) -> list[BlockView]:
        """The blocks of the first row."""
        columns = zip(*(x[0].tolist() for x in (self.blocks, self.ids, self.slots, self.targets)), strict=True)
        return BlockView.of((b, i, f"[COMP {slot + 1}]" * (slot >= 0), target) for b, i, slot, target in columns)

    def narrowed(self) -> tuple[Layout, Tensor]:
        """The layout of the columns that matter in the last layer.

        These are blocks with targets, COMP tokens, and the first tokens that stay visible. Other tokens are seen only
        within their own blocks, whose outputs nothing reads.

        Returns:
            The layout of T' columns, and their places (B, T') in this one.
        """
        blocks, text = self.blocks + 1, self.blocks >= 0
        targets = torch.zeros(len(blocks), self.steps + 2, dtype=torch.long, device=blocks.device)
        targets.scatter_add_(1, blocks, (self.targets != IGNORE).long())
        read = (targets.gather(1, blocks) > 0) | (self.slots >= 0) | (text.cumsum(1) <= self.raw[:, None])
        read &= text
        counts = read.sum(1, keepdim=True)
        width = int(counts.max())
        columns = read.byte().argsort(dim=1, stable=True)[:, -width:]  # rows with fewer begin with others, as padding
        padding = ~read.gather(1, columns)

        def at_columns(x: Tensor, blank: int) -> Tensor:
            return x.gather(1, columns).masked_fill(padding, blank)

        layout = replace(
            self,
            ids=self.ids.gather(1, columns),
            slots=at_columns(self.slots, -1),
            blocks=at_columns(self.blocks, -1),
            positions=at_columns(self.positions, 0),
            reads=at_columns(self.reads, False),
            targets=at_columns(self.targets, IGNORE),
            comp_columns=(read.cumsum(1) - 1 + width - counts).gather(1, self.comp_columns).clamp(min=0),
        )
        return layout, columns


def build_layout(samples: Sequence[Sample], config: CCMConfig, rule: Rule, pad_id: int) -> Layout:
    """Lay out a batch of samples: the rule says which steps are read, and where COMP tokens follow.

    ``pad_id`` fills the columns without text.

    Raises:
        InputError: when the batch, one of its rows, or a step is empty.
    """
    rows = [_build_row(sample, config, rule, pad_id) for sample in samples]
    table = stack_rows(samples, rows, (pad_id, -1, -1, 0, 0, IGNORE))
    ids, slots, blocks, positions, reads, targets = table.contiguous()  # compiled masks take no views
    columns = [(slot >= 0).nonzero().flatten().tolist() for slot in slots]
    most = max(map(len, columns))
    comp_columns = torch.tensor([c + [0] * (most - len(c)) for c in columns], dtype=torch.long).reshape(len(ids), most)
    raw = torch.tensor([rule.raw(len(sample.head), sink=config.sink) for sample in samples])
    return Layout(ids, slots, blocks, positions, reads.bool(), targets, comp_columns, raw, config.n_tok)


def stack_rows(samples: Sequence[Sample], rows: Sequence[Sequence[Column]], padding: Column) -> Tensor:
    """The rows of samples as one tensor (F, B, T) int64, F numbers for each column, padded on the left.

    Raises:
        InputError: when there is no row, or a row or a step of a sample is empty.
    """
    for i, sample in enumerate(samples):
        if not all(step.ids for step in sample.steps):
            raise InputError(f"A step of row {i} has no tokens; leave it out, or give it at least one.")
    if not rows or not all(rows):
        raise InputError("A batch needs at least one row, and every row at least one token.")
    width = max(map(len, rows))
    return torch.tensor([[padding] * (width - len(row)) + [*row] for row in rows]).movedim(-1, 0)


def _build_row(sample: Sample, config: CCMConfig, rule: Rule, pad_id: int) -> list[Column]:
    """The columns of a row: id, slot, block, position, whether the token sees the memory, target."""
    row: list[Column] = []
    block = begin = 0  # begin: position of the next text token

    def text(step: Step, reads: bool) -> None:
        nonlocal begin
        pairs = zip(step.ids, step.targets or [IGNORE] * len(step.ids), strict=True)
        row.extend((token, -1, block, begin + i, reads, target) for i, (token, target) in enumerate(pairs))
        begin += len(step.ids)

    text(Step(sample.head), reads=False)
    steps = [] if rule.forgets else sample.steps
    for number, step in enumerate(steps, start=1):
        text(step, config.recurrent)
        if rule.compresses_after(number, len(steps)):
            row += [(pad_id, k, block, begin + k, config.recurrent, IGNORE) for k in range(config.n_tok)]
            begin += config.n_tok if config.positions == "base" else 0
            block += not rule.keeps_text
    text(sample.query, reads=True)
    return row


def padded(rows: Sequence[Sequence[int]], *, after: bool = False) -> tuple[Tensor, Tensor]:
    """Ids (B, T) int64 and mask (B, T) bool of rows of token ids.

    The padding is on the left. With ``after``, for rows that continue other text, it is on the right: a gap within a
    text would count in a sliding window.
    """
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if after else slice(width - len(row), width)
        ids[i, place], mask[i, place] = torch.tensor([*row], dtype=torch.long), True
    return ids, mask
