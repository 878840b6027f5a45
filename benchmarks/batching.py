"""Many conversations at a time: what a batch gains, and what full context costs beside memory.

    python -m benchmarks.batching --rows 16

Every figure is a ratio of two runs of the same turns in this process; durations are of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Generator, Sequence
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import ccm
from ccm.chat.conversation import Conversation
from ccm.cli.console import quiet
from ccm.data.builtin.generator import recall_dialogue
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.sampling import Sampling
from ccm.serving.engine import Engine, EngineLimits

OWNER = b"o" * 32
REPLY = 24  # tokens of a reply at most
Talk = tuple[list[str], list[str]]  # turns that were, and turns that are timed


def turns(held: Conversation, lines: Sequence[str], said: list[str]) -> Generator[str, None, None]:
    """Turns of a conversation, as a request of the engine."""
    for line in lines:
        said.append(held.answer(line))
        yield said[-1]


def timed(model: CCMModel, tokenizer: Any, talks: Sequence[Talk], rows: int) -> dict[str, Any]:
    """Seconds of the timed turns, ``rows`` conversations at a time, what was said, and bytes of the largest past."""
    engine = Engine(model, EngineLimits(rows=rows, waiting=len(talks), seconds=3600))
    sampling = Sampling(max_new_tokens=REPLY)
    held = [Conversation(engine.model, tokenizer, sampling=sampling, endless=False) for _ in talks]
    for one, (earlier, _) in zip(held, talks, strict=True):
        for line in earlier:
            one.hear(line, "I see.")
    said: list[list[str]] = [[] for _ in talks]
    ended, faults = threading.Semaphore(0), list[Exception]()

    def emit(event: Any) -> None:
        if isinstance(event, Exception):
            faults.append(event)
        if event is None or isinstance(event, Exception):
            ended.release()

    begun = time.perf_counter()
    for one, (_, lines), replies in zip(held, talks, said, strict=True):
        engine.submit(OWNER, turns(one, lines, replies), emit)
    for _ in talks:
        ended.acquire()
    taken = time.perf_counter() - begun
    engine.stop()
    if faults:
        raise faults[0]
    return {"seconds": taken, "said": said, "bytes": max(one.memory.nbytes for one in held)}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """The median of ratios, and the least and the greatest."""
    return {"median": median(ratios), "least": min(ratios), "greatest": max(ratios)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rule", default="concat")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5, help="of each ratio")
    parser.add_argument("--turn", type=int, default=50, help="the turn that is compared with full context")
    parser.add_argument("--sentences", type=int, default=1, help="of a turn before it")
    asked = parser.parse_args(arguments)
    quiet()
    count = asked.sentences
    drawn = [recall_dialogue(random.Random(f"batching {i}"), asked.turn * count, 8, 4).turns for i in range(asked.rows)]
    lines = [
        [" ".join(turn.user for turn in talk[i : i + count]) for i in range(0, len(talk), count)] for talk in drawn
    ]
    early = [(talk[:4], talk[4:8]) for talk in lines]
    late = [(talk[: asked.turn - 2], talk[asked.turn - 2 :]) for talk in lines]
    loaded, tokenizer = ccm.load("builtin", rule=asked.rule)
    model, full = as_decoder(loaded, "a benchmark"), as_decoder(ccm.load("builtin", rule="full")[0], "a benchmark")
    found: dict[str, Any] = {"rule": asked.rule, "rows": asked.rows, "threads": torch.get_num_threads()}
    timed(model, tokenizer, early, asked.rows)  # the first of a process is slower
    batch, full_context = list[float](), list[float]()
    for _ in range(asked.rounds):
        one, many = (timed(model, tokenizer, early, rows) for rows in (1, asked.rows))
        kept, whole = (timed(held, tokenizer, late, asked.rows) for held in (model, full))
        batch.append(one["seconds"] / many["seconds"])
        full_context.append(whole["seconds"] / kept["seconds"])
    pairs = [pair for a, b in zip(one["said"], many["said"], strict=True) for pair in zip(a, b, strict=True)]
    found["a batch over one at a time"] = spread(batch)
    found["replies that differ in float32"] = sum(a != b for a, b in pairs) / len(pairs)
    found[f"memory over full context at turn {asked.turn}"] = spread(full_context)
    found["bytes of full context over memory"] = whole["bytes"] / kept["bytes"]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
