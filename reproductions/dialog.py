"""DailyDialog at a small scale: the paper's Table 25 with a model of 4.3 M parameters, by both protocols.

    python -m reproductions.dialog --data DIR --output DIR

The small LLaMA (``reproductions.small``), trained on with all weights (``reproductions.whole``); on it a plain
LoRA, an adapter for every method and seed, then the evaluations and a page of them. What is done already is not done
again; what was broken off goes on.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from itertools import product
from pathlib import Path

from ccm.cli.commands.evaluate import run_report
from ccm.cli.console import ending, quiet
from ccm.data.tasks import TaskSettings
from ccm.evaluation.run import evaluate
from ccm.evaluation.settings import EvaluationSettings, Selection
from reproductions.parts import processes, train_model, train_part

RECIPE = Path(__file__).with_suffix(".yaml")
DAILY = "noncommercial/dailydialog"
LORA = ("adapter.lora.r=32", "adapter.lora.alpha=64")
BASE = (*LORA, "max_steps=100", "batch_size=32", "lr=3e-4")
ADAPTER = (*LORA, "max_steps=600", "batch_size=32", "lr=2e-3", "lr_end=0.05")
EVERY = ("objective={every: 1}", "data.random_steps=false")  # whole dialogues, each turn by the memory of those before
METHODS = {  # what differs; merge and gate hold as much as concat does after four steps
    "gist": ("adapter.rule=gist", "adapter.n_tok=2", "objective={last: 1}"),  # of so many turns as are drawn
    "concat": ("adapter.rule=concat", "adapter.n_tok=2", *EVERY),
    "merge": ("adapter.rule=merge", "adapter.n_tok=8", *EVERY),
    "gate": ("adapter.rule=gate", "adapter.n_tok=8", *EVERY),
}
ON_TOP = {"gist": "gist-online", "merge": "ema"}  # rules that run with the adapter of another
BASELINES = ("window", "bm25", "pool")


def train_adapter(what: tuple[str, int], places: tuple[str, ...], changes: tuple[str, ...], output: Path) -> Path:
    """The adapter of a method and a seed."""
    method, seed = what
    changes = (*ADAPTER, *METHODS[method], f"seed={seed}", *changes)
    return train_part("dialog", f"{method} {seed}", "compress", output / f"{method}-{seed}", places, changes)


def selection(adapters: dict[str, str], output: Path, *, first: bool) -> Selection:
    """What is measured of a seed; what has no seed is measured with the first."""
    rules = [rule for method, rule in ON_TOP.items() if method in adapters]
    alone, baselines = (["full", "none"], BASELINES) if first else ([], ())
    return Selection(adapters=[*adapters.values()], rules=[*alone, *rules], baselines=baselines, output=output)


def measure(task: TaskSettings, chosen: Selection, most: int) -> None:
    """An evaluation into its folder."""

    def tell(what: str, done: int, total: int) -> None:
        if done == total:
            print(f"{task.options['protocol']}: {what}, {total:,} questions", file=sys.stderr)

    evaluate([task], chosen, EvaluationSettings(most=most), tell)


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
    train_model(RECIPE, model, daily, changes)
    places = (f"model={model}", f"data.path={daily}")
    base = train_part("dialog", "base", "base", args.output / "base", places, (*BASE, *changes))
    work = partial(train_adapter, places=(*places, f"base_adapter={base}"), changes=changes, output=args.output)
    wanted = [(method, seed) for seed, method in product(args.seeds, args.methods)]
    runs = [*product(("paper", "fixed-target"), args.seeds)]
    with processes() as pool:
        adapters = dict(zip(wanted, pool.map(work, wanted), strict=True))
        of_seed = {seed: {method: str(adapters[method, seed]) for method in args.methods} for seed in args.seeds}
        tasks = [TaskSettings("dialog", str(daily), {"protocol": protocol}) for protocol, _ in runs]
        folders = [args.output / f"{protocol}-{seed}" for protocol, seed in runs]
        chosen = [
            selection(of_seed[seed], folder, first=seed == args.seeds[0])
            for folder, (_, seed) in zip(folders, runs, strict=True)
        ]
        [*pool.map(measure, tasks, chosen, [args.most] * len(tasks))]
    run_report(folders, args.output / "report", draws=True)


if __name__ == "__main__":
    with ending():
        main()
