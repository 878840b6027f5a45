"""What it costs to ask a memory under another head than it was written under.

    python -m reproductions.heads --data FILE --adapter DIR

The last reply of every conversation is read after its memory: written and asked under one system message; asked under
another, the keys turned (``model.put_under``); written anew under that other; and without a memory, under the other.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from statistics import fmean, stdev

import torch

import ccm
from ccm.chat.turns import Turns, make_turns
from ccm.cli.console import counting, ending, quiet
from ccm.data.custom import read_examples
from ccm.data.kinds import Chat
from ccm.data.settings import DataSettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample
from ccm.engine.memory import Memory

WRITTEN = "You are a friendly assistant."
ASKED = {
    "shorter": "Be brief.",
    "as long": "You are a careful assistant.",
    "longer": "You are a personal assistant. You remember what the user tells you, answer in one sentence, and never "
    "make anything up. Where you do not know something, you say so.",
}
WAYS = ("own head", "another, keys turned", "another, written anew", "no memory")


def measure(model: CCMModel, turns: Turns, chats: Sequence[Chat], asked: str) -> dict[str, list[float]]:
    """Nats of the last reply of each chat, a token, by every way."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    with counting("conversations") as advance:
        for number, chat in enumerate(chats, start=1):
            one, other = (replace(chat, system=system).sample(turns, chat.length) for system in (WRITTEN, asked))
            own, anew = (_memory(model, sample) for sample in (one, other))
            head = [model.head(other.head)]
            memories = (own, model.put_under(own, head), anew, model.empty_memory(1, head))
            alone = chat.latest(0).sample(turns.under(asked), 0)
            for way, memory in zip(WAYS, memories, strict=True):
                sample = {WAYS[0]: one, WAYS[3]: alone}.get(way, other)
                found[way].append(_nats(model, memory, sample))
            advance(asked[:20], number, len(chats))
    return found


@torch.no_grad()
def _memory(model: CCMModel, sample: Sample) -> Memory:
    memory = model.empty_memory(1, [model.head(sample.head)])
    for step in sample.steps:
        memory = model.compress(memory, torch.tensor([step.ids]))
    return memory


@torch.no_grad()
def _nats(model: CCMModel, memory: Memory, sample: Sample) -> float:
    logits = model.read(memory, torch.tensor([sample.query.ids]))[0].float().log_softmax(-1)
    targets = [(place, token) for place, token in enumerate(sample.query.targets) if token != IGNORE]
    return -fmean(float(logits[place, token]) for place, token in targets)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="file of conversations")
    parser.add_argument("--adapter", required=True, help="adapter of a model with a chat template")
    parser.add_argument("--most", type=int, default=100, help="conversations")
    args = parser.parse_args()
    quiet()
    model, tokenizer = ccm.load(adapter=args.adapter)
    turns = make_turns(tokenizer, model.config.turns)
    examples = (part for parts in read_examples(args.data, DataSettings(), turns) for part in parts)
    chats = [example for example in examples if isinstance(example, Chat) and example.length > 1][: args.most]
    print(f"| asked under | {' | '.join(WAYS)} | kept of the gain |\n| --- |{' ---: |' * (len(WAYS) + 1)}")
    for name, system in ASKED.items():
        found = measure(model, turns, chats, system)
        nats = [f"{fmean(values):.3f}" for values in found.values()]
        turned, anew, none = (found[way] for way in WAYS[1:])
        lost = [t - a for t, a in zip(turned, anew, strict=True)]
        kept = 1 - fmean(lost) / (fmean(none) - fmean(anew))
        error = stdev(lost) / sqrt(len(lost)) / (fmean(none) - fmean(anew))
        print(f"| {name} ({len(system)} characters) | {' | '.join(nats)} | {kept:.0%} ± {error:.0%} |")


if __name__ == "__main__":
    with ending():
        main()
