"""Facts that have left the window: recall of the built-in model, older exchanges compressed beside dropped.

    python -m reproductions.recall

Conversations of ``ccm chat --window``, each on its own and replied to greedily, tell facts first and ask for four of
them last. With the same number of entries, older exchanges are compressed by the built-in adapter, or dropped as by a
window that is always full.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import ccm
from ccm.chat.window import WindowConversation
from ccm.cli.console import ending, progress, quiet
from ccm.data.builtin.generator import Turn, Verdict, judge, recall_dialogue
from ccm.data.builtin.recall import MAX_REPLY, QUESTIONS
from ccm.engine.sampling import Sampling
from reproductions.parts import processes

WAYS: dict[str, dict[str, Any]] = {  # what becomes of older exchanges, and the settings of the stream that do it
    "compressed": {},
    "dropped": {"evict": "window", "memory_size": 0},
}


@dataclass(frozen=True)
class Recall:
    """What was asked, the share that was answered rightly, and the most entries that were held."""

    questions: int
    right: float
    entries: int


def new_conversation(size: int, way: str, rule: str) -> WindowConversation:
    """A conversation of the built-in model in a window of ``size`` entries; it begins with ``reset``."""
    model, tokenizer = ccm.load("builtin", rule=rule, device="cpu")
    talk = WindowConversation(model, tokenizer, size, Sampling(max_new_tokens=MAX_REPLY))
    talk.settings = replace(talk.settings, **WAYS[way])
    return talk


def hold(talk: WindowConversation, turns: Sequence[Turn]) -> tuple[list[bool], int]:
    """One conversation: whether each of its last questions was answered rightly, and the most entries it held."""
    talk.reset()
    right, entries = [], 0
    for number, turn in enumerate(turns, start=1):
        reply = talk.answer(turn.user)
        entries = max(entries, talk.past.entries)
        if turn.asked and number > len(turns) - QUESTIONS:
            right.append(judge(reply, turn.asked, turn.value) is Verdict.RIGHT)
    return right, entries


def measure(what: tuple[int, str], rule: str, steps: int, facts: int, dialogues: int) -> Recall:
    """All conversations in a window of a size; the same ones whatever becomes of older exchanges."""
    talk, held = new_conversation(*what, rule), []
    with progress(f"{what[0]} entries, {what[1]}", dialogues, "conversations") as done:
        for i in range(dialogues):
            rng = random.Random(f"recall 0 {i}")
            held.append(hold(talk, recall_dialogue(rng, steps, facts, QUESTIONS).turns))
            done(i + 1)
    right = [answer for answers, _ in held for answer in answers]
    return Recall(len(right), sum(right) / len(right), max(entries for _, entries in held))


def main() -> None:
    """Hold the conversations in windows of every size, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128], help="entries of the windows")
    parser.add_argument("--rule", default="concat", choices=["concat", "merge", "gate"])
    parser.add_argument("--steps", type=int, default=24, help="exchanges of a conversation; the last four ask")
    parser.add_argument("--facts", type=int, default=8, help="told in the others")
    parser.add_argument("--dialogues", type=int, default=50, help="conversations in each window")
    args = parser.parse_args()
    quiet()
    every = [*product(args.sizes, WAYS)]
    work = partial(measure, rule=args.rule, steps=args.steps, facts=args.facts, dialogues=args.dialogues)
    with processes() as pool:
        found = dict(zip(every, pool.map(work, every), strict=True))
    print(f"| entries | {' | '.join(WAYS)} | questions |\n| ---: |{' ---: |' * (len(WAYS) + 1)}")
    for size in args.sizes:
        shares = " | ".join(f"{found[size, way].right:.1%} (held {found[size, way].entries})" for way in WAYS)
        print(f"| {size} | {shares} | {found[size, 'compressed'].questions} |")


if __name__ == "__main__":
    with ending():
        main()
