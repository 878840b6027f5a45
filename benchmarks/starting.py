"""How long commands take to start: CPU time of a whole process, beside what no chat can do without."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.common import Options, Report, compare
from ccm.models.builtin import WEIGHTS

NEEDED = f"""
import peft
import torch
from transformers import LlamaForCausalLM

LlamaForCausalLM.from_pretrained({str(WEIGHTS / "base")!r})
"""
REFERENCE = "torch, peft and the base"
CHAT = "chat"
SECONDS = 0.5  # limit of what needs no model
NOWHERE = ("chat --model nowhere", "chat --adapter nowhere", "train nowhere", "stream nowhere.txt", "report nowhere")
LIGHT = ("--version", "--help", "adapters list", "data list", "models list", *NOWHERE)
SETTING = (
    f"CPU seconds of a process from its start to its end, the system's included, whatever the clock. `ccm {CHAT}` gets "
    "no input, and so ends at its first prompt; it stands beside a process that imports torch, peft and the class of "
    "the built-in model, and loads its weights. The other commands need no model."
)


def run(options: Options) -> Report:
    """Start all of them in each round."""
    programs = {REFERENCE: ["-c", NEEDED], **{name: ["-m", "ccm.cli", *name.split()] for name in (CHAT, *LIGHT)}}
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(options.rounds + 1):
        for name, arguments in programs.items():
            seconds = _cpu_seconds(arguments)
            if number > 0:  # the first round compiles modules and fills the caches of files
                taken[name].append(seconds)
    compared = [compare(taken, name, REFERENCE, 1.1 if name == CHAT else None) for name in programs]
    rows = []
    for c in compared:
        limit = f"{SECONDS} s" if c.subject in LIGHT else c.bound
        name = c.subject if c.subject == REFERENCE else f"`ccm {c.subject}`"
        rows.append([name, f"{c.seconds:.2f}", f"**{c.ratio:.2f}**", f"{c.paired:.2f}", limit, str(c.rounds)])
    columns = ["", "CPU s", "ratio of medians", "median of ratios", "limit", "rounds"]
    return Report("Start-up", SETTING, columns, rows, [asdict(c) for c in compared])


def _cpu_seconds(arguments: list[str]) -> float:
    before = getrusage(RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    after = getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
