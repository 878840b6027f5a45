"""DailyDialog at a small scale: the paper's Table 25 with a model of 4.3 M parameters, by both protocols.

    python -m reproductions.dialog --data DIR --output DIR

The small LLaMA (``reproductions.small``), trained on with all weights (``reproductions.whole``); on it a plain
LoRA, an adapter for every method and seed, then the evaluations and a page of them. What is done already is not done
again; what was broken off goes on.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch

from ccm.checkpoint import CONFIG
from ccm.commands.evaluate import run_report
from ccm.commands.progress import progress
from ccm.console import quiet
from ccm.data.tasks import TaskSettings
from ccm.evaluation.run import Evaluation, evaluate
from ccm.recipe import Stage, load_recipe
from ccm.training.loop import train

RECIPE = Path(__file__).with_suffix(".yaml")
DAILY = "noncommercial/dailydialog"
LORA = ("adapter.lora.r=32", "adapter.lora.alpha=64")
BASE = (*LORA, "max_steps=100", "batch_size=32", "lr=3e-4")
ADAPTER = (*LORA, "max_steps=600", "batch_size=32", "lr=2e-3", "lr_end=0.05")
METHODS = {  # what differs; merge and gate hold as much as concat does after four steps
    "gist": ("adapter.rule=gist", "adapter.n_tok=2", "objective={last: 1}"),
    "concat": ("adapter.rule=concat", "adapter.n_tok=2", "objective={every: 1}"),
    "merge": ("adapter.rule=merge", "adapter.n_tok=8", "objective={every: 1}"),
    "gate": ("adapter.rule=gate", "adapter.n_tok=8", "objective={every: 1}"),
}
ON_TOP = {"gist": "gist-online", "merge": "ema"}  # rules that run with the adapter of another
BASELINES = ("window", "bm25", "pool")
COMMON = ("tensorboard=false", "log_every=20", "save_every=100", "pass_tokens=4096", "mixed_precision=true")


def train_part(name: str, stage: Stage, folder: Path, places: tuple[str, ...], changes: tuple[str, ...]) -> Path:
    """One training of the recipe "dialog", unless its result is there."""
    result = "adapter_config.json" if stage == "base" else CONFIG
    if not (folder / result).is_file():
        recipe = load_recipe("dialog", (*places, f"output_dir={folder}", *COMMON, *changes), stage)
        with progress(recipe, name) as report:
            train(recipe, resume=folder.is_dir(), report=report)
    return folder


def train_model(folder: Path, daily: Path, changes: tuple[str, ...], processes: int) -> None:
    """All weights, in several processes, unless it is done."""
    if not (folder / "model.safetensors").is_file():
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "reproductions.whole", RECIPE]
        subprocess.run([*launch, "--data", daily, "--output", folder, "--set", *changes], check=True)


def train_adapter(
    what: tuple[str, int], places: tuple[str, ...], changes: tuple[str, ...], output: Path, threads: int
) -> Path:
    """The adapter of a method and a seed."""
    quiet()
    torch.set_num_threads(threads)
    method, seed = what
    changes = (*ADAPTER, *METHODS[method], f"seed={seed}", *changes)
    return train_part(f"{method} {seed}", "compress", output / f"{method}-{seed}", places, changes)


def evaluation(task: TaskSettings, adapters: dict[str, str], *, first: bool, most: int) -> Evaluation:
    """What is measured of a seed; what has no seed is measured with the first."""
    rules = [rule for method, rule in ON_TOP.items() if method in adapters]
    alone, baselines = (["full", "none"], BASELINES) if first else ([], ())
    return Evaluation(task, adapters=[*adapters.values()], rules=[*alone, *rules], baselines=baselines, most=most)


def measure(evaluation: Evaluation, folder: Path, *, threads: int) -> None:
    """An evaluation into a folder."""
    quiet()
    torch.set_num_threads(threads)

    def tell(what: str, done: int, total: int) -> None:
        if done == total:
            print(f"{folder.name}: {what}, {total:,} questions", file=sys.stderr)

    evaluate(evaluation, output=folder, progress=tell)


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
    daily, model = args.data / DAILY, args.output / "model"
    workers = min(2, os.cpu_count() or 1)
    train_model(model, daily, changes, workers)
    places = (f"model={model}", f"data.path={daily}")
    base = train_part("base", "base", args.output / "base", places, (*BASE, *changes))
    threads = max(1, (os.cpu_count() or 1) // workers)
    work = partial(
        train_adapter, places=(*places, f"base_adapter={base}"), changes=changes, output=args.output, threads=threads
    )
    wanted = [(method, seed) for seed, method in product(args.seeds, args.methods)]
    runs = [*product(("paper", "fixed-target"), args.seeds)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        adapters = dict(zip(wanted, pool.map(work, wanted), strict=True))
        of_seed = {seed: {method: str(adapters[method, seed]) for method in args.methods} for seed in args.seeds}
        tasks = [TaskSettings("dialog", str(daily), {"protocol": protocol}) for protocol, _ in runs]
        asked = [
            evaluation(task, of_seed[seed], first=seed == args.seeds[0], most=args.most)
            for task, (_, seed) in zip(tasks, runs, strict=True)
        ]
        folders = [args.output / f"{protocol}-{seed}" for protocol, seed in runs]
        [*pool.map(partial(measure, threads=threads), asked, folders)]
    run_report(folders, args.output / "report", draws=True)


if __name__ == "__main__":
    main()
