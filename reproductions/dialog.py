"""DailyDialog at a small scale: the paper's Table 25 with a model of 4.3 M parameters, by both protocols.

    python -m reproductions.dialog --data DIR --output DIR

On the small LLaMA (``reproductions.small``): a plain LoRA for DailyDialog, an adapter for every method and seed, then
the evaluations and a page of them. What is done already is not done again; what was broken off goes on.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from ccm.checkpoint import CONFIG
from ccm.commands.evaluate import run_report, run_tasks
from ccm.commands.progress import progress
from ccm.console import quiet
from ccm.data.tasks import TaskSettings
from ccm.evaluation.run import Evaluation
from ccm.recipe import Stage, load_recipe
from ccm.training.loop import train
from reproductions.small import SMALL

DAILY = "noncommercial/dailydialog"
LORA = ("adapter.lora.r=32", "adapter.lora.alpha=64")
BASE = (*LORA, "objective={every: 1}", "max_steps=300", "batch_size=32", "lr=1e-3")
ADAPTER = (*LORA, "max_steps=600", "batch_size=32", "lr=2e-3", "lr_end=0.05")
METHODS = {  # what differs; merge and gate hold as much as concat does after four steps
    "gist": ("adapter.rule=gist", "adapter.n_tok=2", "objective={last: 1}"),
    "concat": ("adapter.rule=concat", "adapter.n_tok=2", "objective={every: 1}"),
    "merge": ("adapter.rule=merge", "adapter.n_tok=8", "objective={every: 1}"),
    "gate": ("adapter.rule=gate", "adapter.n_tok=8", "objective={every: 1}"),
}
COMMON = ("tensorboard=false", "log_every=20", "save_every=100", "pass_tokens=4096")


def train_part(name: str, stage: Stage, folder: Path, places: tuple[str, ...], changes: tuple[str, ...]) -> Path:
    """One training of the recipe "dialog", unless its result is there."""
    result = "adapter_config.json" if stage == "base" else CONFIG
    if not (folder / result).is_file():
        recipe = load_recipe("dialog", (*places, f"output_dir={folder}", *COMMON, *changes), stage)
        with progress(recipe, name) as report:
            train(recipe, resume=folder.is_dir(), report=report)
    return folder


def train_adapter(
    what: tuple[str, int], places: tuple[str, ...], changes: tuple[str, ...], output: Path, threads: int
) -> Path:
    """The adapter of a method and a seed."""
    quiet()
    torch.set_num_threads(threads)
    method, seed = what
    changes = (*ADAPTER, *METHODS[method], f"seed={seed}", *changes)
    return train_part(f"{method} {seed}", "compress", output / f"{method}-{seed}", places, changes)


def main() -> None:
    """Build what is asked for, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/dialog"), help="folder for everything")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE over the recipes of all trainings")
    parser.add_argument("--most", type=int, default=0, help="questions a step at most; 0 is all")
    args = parser.parse_args()
    changes = tuple(args.set)
    quiet()
    daily = args.data / DAILY
    places = (f"model={SMALL}", f"data.path={daily}")
    base = train_part("base", "base", args.output / "base", places, (*BASE, *changes))
    workers = min(2, os.cpu_count() or 1)
    threads = max(1, (os.cpu_count() or 1) // workers)
    work = partial(
        train_adapter, places=(*places, f"base_adapter={base}"), changes=changes, output=args.output, threads=threads
    )
    wanted = [(method, seed) for seed, method in product(args.seeds, args.methods)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        adapters = dict(zip(wanted, pool.map(work, wanted), strict=True))
    runs = []
    for protocol, seed in product(("paper", "fixed-target"), args.seeds):
        task = TaskSettings("dialog", str(daily), {"protocol": protocol})
        folders = {method: str(adapters[method, seed]) for method in args.methods}
        rules = ["full", "none", *(["gist-online"] if "gist" in folders else [])]
        evaluation = Evaluation(
            task, adapters=[*folders.values()], rules=rules, baselines=["window", "bm25"], most=args.most
        )
        runs.append(args.output / f"{protocol}-{seed}")
        run_tasks([evaluation], runs[-1], as_json=False)
    run_report(runs, args.output / "report")


if __name__ == "__main__":
    main()
