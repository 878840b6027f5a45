"""What the reproductions have in common: parts that are trained once, in several processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import torch

from ccm.cli.commands.progress import progress
from ccm.cli.console import quiet
from ccm.core.adapter_folders import CONFIG
from ccm.training.loop import train
from ccm.training.recipe import StageName, load_recipe

COMMON = ("tensorboard=false", "log_every=20", "save_every=100", "pass_tokens=4096", "mixed_precision=auto")
WORKERS = min(2, os.cpu_count() or 1)


def train_part(
    recipe: str, name: str, stage: StageName, folder: Path, places: Sequence[str], changes: Sequence[str]
) -> Path:
    """One training of a recipe of ours, unless its result is there; what was broken off goes on."""
    result = "adapter_config.json" if stage == "base" else CONFIG
    if not (folder / result).is_file():
        loaded = load_recipe(recipe, (*places, f"output_dir={folder}", *COMMON, *changes), stage)
        with progress(loaded, name) as shown:
            train(loaded, resume=folder.is_dir(), report=shown.report, advance=shown.advance)
    return folder


def train_model(recipe: Path, folder: Path, data: Path, changes: Sequence[str]) -> None:
    """All weights of the small LLaMA (:mod:`reproductions.whole`), in several processes, unless it is done."""
    if not (folder / "model.safetensors").is_file():
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(WORKERS)]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "-m", "reproductions.whole", str(recipe)]
        subprocess.run([*launch, "--data", data, "--output", folder, "--set", *changes], check=True)


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each part, as many at a time as there are cores, two at most."""
    with ProcessPoolExecutor(
        WORKERS, mp_context=get_context("spawn"), initializer=_begin, max_tasks_per_child=1
    ) as pool:
        yield pool


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by the process that waits
    quiet()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // WORKERS))
