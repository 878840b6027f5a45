"""Peak memory of training steps, each variant in a process of its own.

The peak is the kernel's high-water mark of this program (``VmHWM``). ``getrusage``'s ``ru_maxrss`` will not do: it
survives ``exec``, so that a child begins with the peak of the process that started it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.common import Options, Report
from benchmarks.training import OURS, PLAIN
from ccm.cli.console import quiet

STATUS = Path("/proc/self/status")
STEPS = 3
SETTING = (
    f"Memory of a whole process that makes {STEPS} of the training steps above: at rest, with model and batch made; at "
    "its peak; and the difference, which is what the steps took, beside the plain step's."
)


class Bytes(NamedTuple):
    """Memory of one process: before the first step, and the most it ever had."""

    rest: int
    peak: int

    @property
    def steps(self) -> int:
        """What the steps took."""
        return self.peak - self.rest


def run(options: Options) -> Report:
    """Measure every variant in a fresh process; ``options`` change nothing, as nothing is timed."""
    if not STATUS.exists():
        return Report("Peak memory of the training step", "Not measured: this system has no /proc.", [""], [])
    measured = {name: measure_apart("training", name) for name in (PLAIN, *OURS)}
    rows = [
        [name, *(f"{n / 2**20:.0f}" for n in (m.rest, m.peak, m.steps)), f"**{m.steps / measured[PLAIN].steps:.3f}**"]
        for name, m in measured.items()
    ]
    columns = ["", "MiB at rest", "MiB at the peak", "MiB of the steps", "ratio"]
    data = [{"subject": name} | m._asdict() for name, m in measured.items()]
    return Report("Peak memory of the training step", SETTING, columns, rows, data)


def measure_apart(module: str, name: str) -> Bytes:
    """Measure the ``training_step`` of that name of a module of the benchmarks, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", module, name]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # else the C library keeps tensors that were freed
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return Bytes(*json.loads(done.stdout.splitlines()[-1]))


def _measure(module: str, name: str) -> Bytes:
    """Measure in this process."""
    torch.set_num_threads(1)
    quiet()
    step = import_module(f"benchmarks.{module}").training_step(name)
    rest = _status("VmRSS")
    for _ in range(STEPS):
        step()
    return Bytes(rest, _status("VmHWM"))


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure one variant in this process.")
    parser.add_argument("module", choices=("training", "unrolled", "estimate"))
    parser.add_argument("name", help="of a training step in that module")
    asked = parser.parse_args()
    print(json.dumps(_measure(asked.module, asked.name)))
