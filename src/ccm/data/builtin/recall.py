"""Recall of the built-in model: facts told in a conversation, asked for at its end, replied to freely."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ccm.chat.reply import Reply, end_ids, replies_to
from ccm.chat.turns import Turns, make_turns
from ccm.core.errors import InputError
from ccm.data.builtin import words
from ccm.data.builtin.generator import HELD_OUT, Turn, Verdict, judge, recall_dialogue, small_talk, untold_question
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import padded

QUESTIONS = 4  # the last turns of a dialogue, which are judged; long dialogues have earlier ones
NAMED = {*words.NAMES, *words.CITIES}
MAX_REPLY = 32  # tokens; the longest reply of the training dialogues has fewer


@dataclass(frozen=True)
class RecallReport:
    """Shares of the questions on told facts in the last four steps, and of one more on what was never told.

    Attributes:
        recall: right value, and no other of its kind.
        recall_held_out: recall of names and cities that no training saw; None where none was asked for.
        recall_seen: recall of the other names and cities.
        unknown: told facts answered with "I don't know".
        wrong: told facts answered in another way.
        invented: facts never told that were not answered with "I don't know".
        entries: mean memory entries at the end of a conversation.
        memory_bytes: mean bytes of these entries.
        full_context_bytes: mean bytes that full context holds for the same text.
    """

    rule: str
    n_tok: int
    steps: int
    facts: int
    dialogues: int
    seed: int
    before: int
    recall: float
    recall_held_out: float | None
    recall_seen: float | None
    unknown: float
    wrong: float
    invented: float
    entries: float
    memory_bytes: float
    full_context_bytes: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def evaluate_recall(
    model: CCMModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    steps: int = 12,
    facts: int = 8,
    dialogues: int = 500,
    seed: int = 0,
    batch: int = 50,
    before: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> RecallReport:
    """Hold fresh conversations in batches and judge the replies to the questions.

    Args:
        model: the model under its rule.
        tokenizer: of its base.
        steps: user lines a dialogue, of which the last four ask.
        facts: told in the others, 4 to 10: at least one is never told.
        dialogues: how many.
        seed: of the dialogues.
        batch: conversations held at a time.
        before: lines of small talk before a dialogue, beyond the model's positions where they are many.
        progress: called with the number of finished dialogues.

    Raises:
        InputError: when so many steps cannot tell so many facts, or there is nothing to hold.
    """
    if not 4 <= facts <= 10:
        raise InputError(f"facts is {facts}; a dialogue tells 4 to 10.")
    if steps < (least := QUESTIONS + -(-facts // 2)):
        raise InputError(
            f"steps is {steps}; at most two facts are told in each but the last {QUESTIONS}, so that {facts} facts "
            f"need at least {least}."
        )
    for name, value, fewest in (("dialogues", dialogues, 1), ("batch", batch, 1), ("before", before, 0)):
        if value < fewest:
            raise InputError(f"{name} is {value}; it must be at least {fewest}.")
    verdicts: Counter[tuple[str, Verdict]] = Counter()
    entries = kept = full = 0
    for begin in range(0, dialogues, batch):
        numbers = range(begin, min(begin + batch, dialogues))
        rngs = [random.Random(f"recall {seed} {i}") for i in numbers]
        group = [recall_dialogue(rng, steps, facts, QUESTIONS) for rng in rngs]
        untold = [untold_question(rng, dialogue) for rng, dialogue in zip(rngs, group, strict=True)]
        held = _Conversations(model, make_turns(tokenizer, model.config.turns), len(group))
        for lines in zip(*(small_talk(random.Random(f"before {seed} {i}"), before) for i in numbers), strict=True):
            held.read(lines)
        for number, lines in enumerate(zip(*(dialogue.turns for dialogue in group), strict=True), start=1):
            for reply, line in zip(held.reply(lines), lines, strict=True):
                if number > steps - QUESTIONS:
                    verdict = judge(reply, line.asked or "", line.value)
                    verdicts["told", verdict] += 1
                    if line.value in NAMED:
                        verdicts["held out" if line.value in HELD_OUT else "seen", verdict] += 1
        memory = held.memory
        for reply, line in zip(held.reply(untold), untold, strict=True):
            verdicts["untold", judge(reply, line.asked or "", None)] += 1
        entries += sum(memory.entries)
        kept += sum(memory.entries) * memory.entry_nbytes
        full += sum(memory.tokens) * memory.entry_nbytes
        progress(begin + len(group))
    return RecallReport(
        rule=model.config.rule,
        n_tok=model.config.n_tok,
        steps=steps,
        facts=facts,
        dialogues=dialogues,
        seed=seed,
        before=before,
        recall=_share(verdicts, "told", Verdict.RIGHT) or 0.0,
        recall_held_out=_share(verdicts, "held out", Verdict.RIGHT),
        recall_seen=_share(verdicts, "seen", Verdict.RIGHT),
        unknown=_share(verdicts, "told", Verdict.UNKNOWN) or 0.0,
        wrong=_share(verdicts, "told", Verdict.WRONG) or 0.0,
        invented=_share(verdicts, "untold", Verdict.WRONG) or 0.0,
        entries=entries / dialogues,
        memory_bytes=kept / dialogues,
        full_context_bytes=full / dialogues,
    )


class _Conversations:
    """Conversations that are held side by side, a row each.

    Attributes:
        memory: what they hold so far.
    """

    def __init__(self, model: CCMModel, turns: Turns, count: int) -> None:
        self._model, self._turns = model, turns
        self._ends = end_ids(model.base, turns.tokenizer)
        self.memory = model.empty_memory(count, [model.head(turns.head)] * count)

    @torch.no_grad()
    def read(self, lines: Sequence[Turn]) -> None:
        """Read a line of each with the reply that it has."""
        pairs = zip(lines, self.memory.begun, strict=True)
        rows = [[*self._turns.exchange(line.user, line.reply, first=not begun).ids] for line, begun in pairs]
        self.memory = self._model.compress(self._model.make_room(self.memory, max(map(len, rows))), *padded(rows))

    @torch.no_grad()
    def reply(self, lines: Sequence[Turn]) -> list[str]:
        """Read a line of each, and generate the replies, which go on in the memory."""
        pairs = zip(lines, self.memory.begun, strict=True)
        prompts = [self._turns.prompt(line.user, first=not begun) for line, begun in pairs]
        memory = self._model.make_room(self.memory, max(map(len, prompts)) + MAX_REPLY)
        replies = [Reply(self._turns, self._ends, MAX_REPLY) for _ in prompts]
        cache = self._model.close(memory).cache()
        logits = self._model.read(memory, *padded(prompts), cache, last=True)[:, -1]
        replies_to(logits, self._model.reader(memory, cache), replies)
        rows = [prompt + reply.ids for prompt, reply in zip(prompts, replies, strict=True)]
        self.memory = self._model.compress(memory, *padded(rows))
        return [reply.text for reply in replies]


def _share(verdicts: Counter[tuple[str, Verdict]], kind: str, verdict: Verdict) -> float | None:
    total = sum(count for (k, _), count in verdicts.items() if k == kind)
    return verdicts[kind, verdict] / total if total else None
