"""Measure on one GPU what is prepared, part by part; each writes its results as a file, and the folder a summary."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here needs the network

import torch

from benchmarks.gpu import adapters, bits, flex, memories, recursion, walkthrough
from benchmarks.gpu.order import Order, Part
from benchmarks.gpu.records import measure, write_summary
from ccm.cli.console import quiet
from ccm.models.shipped import first_stage

PARTS = {
    "throughput": Part(memories.run, "samples a second by memories of three sizes, LLaMA-7B's shape"),
    "flex": Part(flex.run, "flex_attention beside sdpa, sliding windows too"),
    "bits": Part(bits.run, "bases in 4 and 8 bits"),
    "unrolled": Part(recursion.run, "the recursion unrolled beside the parallel pass"),
    "adapters": Part(adapters.run, "the adapters of SmolLM2, as far as the time goes"),
    "walkthrough": Part(walkthrough.run, "a model of 8 billion parameters, trained and used"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; returns how many failed."""
    asked = _parser().parse_args(arguments)
    quiet()
    cuda = torch.cuda.is_available()
    rehearse = asked.rehearse or not cuda
    if rehearse and not asked.rehearse:
        print("There is no CUDA device: this is a rehearsal at small size.")
    asked.output.mkdir(parents=True, exist_ok=True)
    failed = []
    with TemporaryDirectory() as made:
        order = Order(
            device="cuda" if cuda else "cpu",
            rehearse=rehearse,
            runs=Path(made) if rehearse else asked.runs or asked.output / "runs",
            chats=asked.chats,
            model=asked.model,
            base_adapter=None if rehearse else asked.base_adapter,
            starts=dict(asked.resume),
        )
        for name in asked.parts or _possible(order):
            print(f"{name}: {PARTS[name].about} ...", flush=True)
            part = PARTS[name]._replace(seconds=min(asked.seconds, PARTS[name].seconds))
            if not measure(name, part, order, asked.output):
                failed.append(name)
    print(write_summary(asked.output).read_text(encoding="utf-8"))
    if failed:
        print(f"Failed: {', '.join(failed)}; their files say why.", file=sys.stderr)
    return len(failed)


def _possible(order: Order) -> list[str]:
    """The parts that have all that they need."""
    lacking = {"adapters"} if order.chats is None and not order.rehearse else set()
    for name in lacking:
        print(f"{name}: left out, as no dialogues are named (--chats DIR).")
    return [name for name in PARTS if name not in lacking]


def _part(name: str) -> str:
    if name not in PARTS:
        raise argparse.ArgumentTypeError(f"there is no {name!r}; the parts are {', '.join(PARTS)}")
    return name


def _start(text: str) -> tuple[str, Path]:
    stage, _, path = text.partition("=")
    if stage not in adapters.STAGES or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is not STAGE=FILE, with one of {', '.join(adapters.STAGES)}")
    return stage, Path(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", type=_part, metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of the results (%(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="small and once, as where there is no CUDA device")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which a part begins nothing more")
    of_adapters = parser.add_argument_group("of the adapters")
    of_adapters.add_argument("--chats", type=Path, metavar="DIR", help="the chats of python -m reproductions.smollm2")
    of_adapters.add_argument("--model", default=Order.model, help="folder, GGUF file, or folder of its pieces")
    of_adapters.add_argument(
        "--base-adapter",
        type=Path,
        metavar="DIR",
        default=first_stage(Order.model),
        help="first stage (what ships)",
    )
    of_adapters.add_argument("--runs", type=Path, metavar="DIR", help="of the trainings (runs in the results' folder)")
    of_adapters.add_argument(
        "--resume", type=_start, action="append", default=[], metavar="STAGE=FILE", help="a checkpoint"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
