"""From steps of token ids to the tensors of one parallel pass.

tokens     bos a a C C | b b b C C | q q y y          C = COMP, | begins the next step's text; a head stands before a a
blocks       0 0 0 0 0 1 1 1 1 1 1 2 2 2 2 2          block b has b finished steps before it
slots        . . . 0 1 . . . . 0 1 . . . . .
positions    0 1 2 3 4 3 4 5 6 7 8 7 8 9 .. ..        COMP tokens take no text positions ("skip")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ccm.core.config import CCMConfig
from ccm.core.errors import InputError
from ccm.core.rules import Rule

IGNORE = -100  # the target of a token that is not trained on; what torch's cross_entropy ignores by default


@dataclass(frozen=True)
class Step:
    """One piece of text as the model reads it, separators included.

    Attributes:
        ids: token ids.
        targets: for each token, the id that should follow it, or :data:`IGNORE`. Empty means nothing is trained on.
            A target need not stand in the text: the closing EOS is a target, and never enters the memory.
    """

    ids: Sequence[int]
    targets: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.targets and len(self.targets) != len(self.ids):
            raise InputError(f"A step has {len(self.ids)} tokens but {len(self.targets)} targets; give one per token.")


@dataclass(frozen=True)
class Sample:
    """The context steps of one row, in order, and the text that reads the memory of them (may be empty).

    Attributes:
        steps: the context.
        query: the text after it.
        head: token ids that stand before all steps, raw, in view of all.
    """

    steps: Sequence[Step]
    query: Step
    head: Sequence[int] = ()


def length(sample: Sample) -> int:
    """Text tokens of a sample."""
    return len(sample.head) + sum(len(step.ids) for step in (*sample.steps, sample.query))


class Shown(NamedTuple):
    """A block, for people: ids of its text, names of the tokens after it that are no text, ids that are learned."""

    block: int
    text: list[int]
    marks: list[str]
    learned: list[int]

    @staticmethod
    def of(columns: Iterable[tuple[int, int, str, int]]) -> list[Shown]:
        """The blocks of columns, each a block's number, an id, a name where it is no text, and a target."""
        found: dict[int, Shown] = {}
        for block, token, mark, target in columns:
            shown = found.setdefault(block, Shown(block, [], [], []))
            shown.marks.append(mark) if mark else shown.text.append(token)
            shown.learned.extend([target] if target != IGNORE else [])
        return [*found.values()]


@dataclass(frozen=True)
class Layout:
    """One batch for a parallel pass; B rows of T columns, padded on the left. See the module's picture.

    Attributes:
        ids: (B, T) token ids; the pad id at COMP columns and padding.
        slots: (B, T) k at the k-th COMP token of a step (from 0), -1 elsewhere.
        blocks: (B, T) number of finished steps before the token; -1 at padding.
        positions: (B, T) positions for the rotary embedding.
        reads: (B, T) whether the token sees the memory.
        targets: (B, T) id that should follow, or IGNORE.
        comp_columns: (B, S * N) columns of the COMP tokens by step and slot, S the most steps of a row; 0 where absent.
        raw: (B,) how many of a row's first tokens stay in view of all text: those of the head, or the sink.
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
        """S, the most compressed steps of a row."""
        return self.comp_columns.shape[1] // self.n_tok

    def shown(self) -> list[Shown]:
        """The blocks of the first row."""
        columns = zip(*(x[0].tolist() for x in (self.blocks, self.ids, self.slots, self.targets)), strict=True)
        return Shown.of((b, token, f"[COMP {slot + 1}]" * (slot >= 0), target) for b, token, slot, target in columns)

    def narrowed(self) -> tuple[Layout, Tensor]:
        """The columns of which more than the own block reads keys, values or outputs in the last layer.

        These are the blocks with targets, COMP tokens, and the first tokens that stay in view.

        Returns:
            The layout of T' columns, and the columns (B, T') of this one where they stand.
        """
        blocks, text = self.blocks + 1, self.blocks >= 0
        targets = torch.zeros(len(blocks), self.steps + 2, dtype=torch.long, device=blocks.device)
        targets.scatter_add_(1, blocks, (self.targets != IGNORE).long())
        read = (targets.gather(1, blocks) > 0) | (self.slots >= 0) | (text.cumsum(1) <= self.raw[:, None])
        read &= text
        counts = read.sum(1, keepdim=True)
        width = int(counts.max())
        columns = read.byte().argsort(dim=1, stable=True)[:, -width:]  # rows that read fewer have others first
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

    def to(self, device: torch.device | str) -> Layout:
        """The same batch on a device."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "n_tok"}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})


class _Row:
    """One row under construction."""

    def __init__(self, config: CCMConfig, rule: Rule, pad_id: int) -> None:
        self.config, self.rule, self.pad_id = config, rule, pad_id
        self.columns: list[tuple[int, int, int, int, bool, int]] = []  # id, slot, block, position, reads, target
        self.block = 0
        self.next = 0  # position of the next text token

    def text(self, step: Step, reads: bool) -> None:
        targets = step.targets or [IGNORE] * len(step.ids)
        for token, target in zip(step.ids, targets, strict=True):
            self.columns.append((token, -1, self.block, self.next, reads, target))
            self.next += 1

    def comp(self, reads: bool) -> None:
        n = self.config.n_tok
        for k in range(n):
            self.columns.append((self.pad_id, k, self.block, self.next + k, reads, IGNORE))
        if self.config.positions == "base":
            self.next += n
        if not self.rule.keeps_text:
            self.block += 1


def build_layout(samples: Sequence[Sample], config: CCMConfig, rule: Rule, pad_id: int) -> Layout:
    """Lay out a batch of samples as the rule wants them: which steps are there, and where COMP tokens follow.

    Raises:
        InputError: when the batch, a row of it, or a step is empty.
    """
    for i, sample in enumerate(samples):
        if not all(step.ids for step in sample.steps):
            raise InputError(f"A step of row {i} has no tokens; leave it out, or give it at least one.")
    rows = [_build_row(sample, config, rule, pad_id) for sample in samples]
    if not rows or not all(row.columns for row in rows):
        raise InputError("A batch needs at least one row, and every row at least one token.")
    width = max(len(row.columns) for row in rows)
    padding = (pad_id, -1, -1, 0, False, IGNORE)
    table = torch.tensor([[padding] * (width - len(row.columns)) + row.columns for row in rows])
    ids, slots, blocks, positions, reads, targets = table.movedim(-1, 0).contiguous()  # compiled masks take no views
    columns = [(slot >= 0).nonzero().flatten().tolist() for slot in slots]
    most = max(map(len, columns))
    comp_columns = torch.tensor([c + [0] * (most - len(c)) for c in columns], dtype=torch.long).reshape(len(rows), most)
    raw = torch.tensor([rule.raw(len(sample.head), sink=config.sink) for sample in samples])
    return Layout(ids, slots, blocks, positions, reads.bool(), targets, comp_columns, raw, config.n_tok)


def _build_row(sample: Sample, config: CCMConfig, rule: Rule, pad_id: int) -> _Row:
    row = _Row(config, rule, pad_id)
    row.text(Step(sample.head), reads=False)
    steps = [] if rule.forgets else sample.steps
    for number, step in enumerate(steps, start=1):
        row.text(step, config.recurrent)
        if rule.compresses_after(number, len(steps)):
            row.comp(config.recurrent)
    row.text(sample.query, reads=True)
    return row


def padded(rows: Sequence[Sequence[int]], *, after: bool = False) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of rows. They are padded on the left, or on the right where they go on from other
    text (``after``): a gap within a text would count in a sliding window."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if after else slice(width - len(row), width)
        ids[i, place], mask[i, place] = torch.tensor([*row], dtype=torch.long), True
    return ids, mask
