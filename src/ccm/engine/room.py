"""Room: a conversation goes on beyond the positions that its model was made for, or without a step that is forgotten.

steps     1    2    3    4  ->            before: no position is left for the next turn
          .    .    3    4  -> next       after: the oldest steps are gone, and the others took their positions

Under rules that keep steps apart, the entries of the oldest steps go; under rules that mix, all entries stay. The other
keys rotate back by the positions of the lost steps (:mod:`ccm.engine.rope`). All distances stay, except those to a head
or sink, which does not move. The entries of later steps have seen the lost steps, so that the result is an
approximation. It is exact if every step is read in isolation and there is no head.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch

from ccm.core.rules import RULES
from ccm.engine.memory import Memory, StepRecord
from ccm.engine.rope import Rope


def drop_oldest(memory: Memory, least: int, rope: Rope) -> Memory:
    """One conversation without its oldest steps: as many as take ``least`` positions, or all if they take fewer."""
    (row,), rule = memory.steps, RULES[memory.origin.config.rule]
    ends = [*accumulate(step.positions for step in row)]
    gone = next((i for i, end in enumerate(ends, start=1) if end >= least), len(row))
    by = ends[gone - 1] if gone else 0
    stays = max(memory.sinks, int(rule.keeps_text and not len(memory.heads[0])))  # the first token, if nothing hides it
    if gone == len(row) and rule.reversible:
        stays = 0  # no entry follows it
    lost = sum(step.entries or 0 for step in row[:gone])
    kept = memory.without(stays, lost)
    rotation = rope.by(torch.full((kept.width - stays,), -by, device=memory.mask.device))
    keys = [torch.cat([x[:, :, :stays], rotation(i, x[:, :, stays:])], dim=2) for i, x in enumerate(kept.keys)]
    moved = torch.where(kept.positions < stays, kept.positions, kept.positions - by)
    records = [StepRecord(step.tokens, step.entries and 0, 0) for step in row[:gone]]
    if records and records[0].entries is not None:
        records[0] = records[0]._replace(entries=min(stays, lost))
    return replace(kept, keys=tuple(keys), positions=moved, offset=memory.offset - by, steps=((*records, *row[gone:]),))


def drop_step(memory: Memory, index: int, rope: Rope) -> Memory:
    """One conversation without the step ``index`` (from 0), as if it had never been: later keys take its positions.

    It is exact if every step was read in isolation, and nothing stands before all steps.
    """
    (row,) = memory.steps
    step, begin = row[index], sum(step.entries or 0 for step in row[:index])
    kept = memory.without(begin, begin + (step.entries or 0))
    rotation = rope.by(torch.full((kept.width - begin,), -step.positions, device=memory.mask.device))
    keys = [torch.cat([x[:, :, :begin], rotation(i, x[:, :, begin:])], dim=2) for i, x in enumerate(kept.keys)]
    steps = (*row[:index], *row[index + 1 :])
    return replace(kept, keys=tuple(keys), offset=memory.offset - step.positions, steps=(steps,))
