"""Run the benchmarks and print their tables as Markdown. No timing is asserted: it is no test."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here needs the network

import torch

from benchmarks import (
    choices,
    compressing,
    estimate,
    mixed_precision,
    objectives,
    peak_memory,
    reading,
    starting,
    streaming,
    throughput,
    training,
    training_loop,
    turns,
    unrolled,
)
from benchmarks.common import CLOCKS, Options, Report, describe_machine
from benchmarks.models import MODEL, SIZES
from ccm.cli.console import ending, quiet, tell

BENCHMARKS: dict[str, Callable[[Options], Report]] = {
    "starting": starting.run,
    "training": training.run,
    "compressing": compressing.run,
    "reading": reading.run,
    "turns": turns.run,
    "peak-memory": peak_memory.run,
    "unrolled": unrolled.run,
    "training-loop": training_loop.run,
    "objectives": objectives.run,
    "mixed-precision": mixed_precision.run,
    "estimate": estimate.run,
    "choices": choices.run,
    "streaming": streaming.run,
    "soak": streaming.soak,
    "throughput": throughput.run,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run what it asks for, print, and write the JSON file if one is named."""
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    quiet()
    rounds, warmup = (2, 1) if asked.quick else (asked.rounds, Options.warmup)
    options = Options(rounds, warmup, asked.clock, asked.size)
    machine = describe_machine()
    print(f"{', '.join(f'{key} {value}' for key, value in machine.items())}; clock: {options.clock}.")
    print(f"Model: {MODEL}.{' Quick run: the figures show only that everything runs.' * asked.quick}\n")
    results = {}
    names = asked.only or [*BENCHMARKS]
    for number, name in enumerate(names, start=1):
        tell(f"{name} ({number} of {len(names)}) ...")
        report = BENCHMARKS[name](options)
        print(report.markdown(), flush=True)
        results[name] = report.data
        if asked.json:  # after each: Ctrl-C loses none
            everything = {"machine": machine, "options": asdict(options), "results": results}
            asked.json.write_text(json.dumps(everything, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=Options.rounds, help="rounds of the longest (default %(default)s)"
    )
    parser.add_argument(
        "--only", action="append", choices=BENCHMARKS, metavar="NAME", help=f"of {', '.join(BENCHMARKS)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    parser.add_argument("--quick", action="store_true", help="two rounds each, to see that everything runs")
    parser.add_argument("--size", choices=SIZES, help="of the throughput's model (7b where CUDA is)")
    parser.add_argument("--clock", choices=CLOCKS, default=Options.clock, help="cpu: not the time others take")
    return parser


if __name__ == "__main__":
    with ending():
        main()
