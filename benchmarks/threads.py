"""Replies and training passes, by how long a thread without work spins before it sleeps (``GOMP_SPINCOUNT``).

    python -m benchmarks.threads --model smollm2-135m --busy 2

Each setting runs in a process of its own, first on the machine as it is, then beside ``--busy`` processes that multiply
matrices without end. Durations are medians, of the clock; a ratio is of the OpenMP library's own setting to ours.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from ccm.cli import SPIN

LINES = ("I live in Oslo.", "I work as a nurse.", "I have a dog called Rex.", "Where do I live?", "What is my job?")
SETTINGS = {"its own": {}, "ours": SPIN}
BURN = "import torch\ntorch.set_num_threads(1)\na = torch.randn(1024, 1024)\nwhile True: a @ a"


def measure(model_name: str) -> dict[str, float]:
    """Median seconds of a turn, and of a pass forward and backward over 512 tokens."""
    import torch

    from ccm import Conversation, load
    from ccm.cli.console import quiet

    quiet()
    model, tokenizer = load(model_name, rule="full")
    conversation, turns, passes = Conversation(model, tokenizer), list[float](), list[float]()
    for line in LINES:
        begun = time.perf_counter()
        conversation.answer(line)
        turns.append(time.perf_counter() - begun)
    model.base.requires_grad_(requires_grad=False)
    model.base.get_input_embeddings().weight.requires_grad_(requires_grad=True)
    ids = torch.arange(512).reshape(2, 256)
    for _ in range(5):
        begun = time.perf_counter()
        model.base(input_ids=ids, labels=ids).loss.backward()
        passes.append(time.perf_counter() - begun)
    return {"turn": median(turns), "pass": median(passes[1:])}


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute all the while."""
    burning = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for process in burning:
            process.kill()
            process.wait()


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="builtin", help="base model")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="processes beside; one for each core")
    parser.add_argument("--measure", action="store_true", help="measure in this process, under the setting it has")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.model)))
        return
    given = {name: value for name, value in os.environ.items() if name not in SPIN}
    command = [sys.executable, "-m", "benchmarks.threads", "--model", args.model, "--measure"]
    for beside in (0, args.busy):
        with busy(beside):
            found = {
                name: json.loads(subprocess.check_output(command, env={**given, **setting}).splitlines()[-1])
                for name, setting in SETTINGS.items()
            }
        ratios = {what: found["its own"][what] / found["ours"][what] for what in found["ours"]}
        print(json.dumps({"beside": beside, "seconds": found, "ratio": ratios}))


if __name__ == "__main__":
    main()
