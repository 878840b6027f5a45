"""Room: how a conversation goes on beyond the positions that its model was made for.

steps     1    2    3    4  ->            before: no position is left for the next turn
          .    .    3    4  -> next       after: the oldest steps are gone, the others stand where these stood

Under rules that keep steps apart the entries of the oldest steps go; under those that mix, none can. Keys are turned
back by the positions that those steps took (:mod:`ccm.engine.rope`), so that all distances stay but those to a head or
sink, which stays where it is. What later steps wrote has seen the earlier ones; where steps are read in isolation
without a head, it has not: then the memory is that of a conversation which began later.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate

import torch

from ccm.core.rules import RULES
from ccm.engine.memory import Memory, StepRecord
from ccm.engine.rope import Rope


def drop_oldest(memory: Memory, least: int, rope: Rope) -> Memory:
    """One conversation without its oldest steps, as many as take ``least`` positions, or all where they take fewer."""
    (row,), rule = memory.steps, RULES[memory.origin.config.rule]
    ends = [*accumulate(step.positions for step in row)]
    gone = next((i for i, end in enumerate(ends, start=1) if end >= least), len(row))
    by = ends[gone - 1] if gone else 0
    stays = max(memory.sinks, int(rule.keeps_text and not len(memory.heads[0])))  # a first token that nothing hides
    if gone == len(row) and rule.reversible:
        stays = 0  # nothing follows it
    lost = sum(step.entries or 0 for step in row[:gone])
    kept = memory.without(stays, lost)
    turn = rope.by(torch.full((kept.width - stays,), -by, device=memory.mask.device))
    keys = [torch.cat([x[:, :, :stays], turn(i, x[:, :, stays:])], dim=2) for i, x in enumerate(kept.keys)]
    moved = torch.where(kept.positions < stays, kept.positions, kept.positions - by)
    records = [StepRecord(step.tokens, step.entries and 0, 0) for step in row[:gone]]
    if records and records[0].entries is not None:
        records[0] = records[0]._replace(entries=min(stays, lost))
    return replace(kept, keys=tuple(keys), positions=moved, offset=memory.offset - by, steps=((*records, *row[gone:]),))
