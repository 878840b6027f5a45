"""What all benchmarks share: timing in turns, the machine's name, and tables that can be pasted into the docs.

A timing on a shared machine means little by itself; the ratio of two things timed in turns, A B A B ..., in one
process, means more. Every result is therefore a ratio to a reference, given twice: of the medians over all rounds, and
as the median of the rounds' own ratios, which a slow spell of the machine disturbs least.
"""

from __future__ import annotations

import gc
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
FIGURES = ("ms", "ms beside", "ratio of medians", "median of ratios", "quartiles", "limit", "rounds")


@dataclass(frozen=True)
class Options:
    """How long and by which clock to measure.

    Attributes:
        rounds: rounds of the longest benchmark; quicker ones multiply it.
        warmup: rounds before, which are not counted.
        clock: "wall", or "cpu" for the time of this process alone, where others keep the machine busy.
        size: of the model whose throughput is measured; as suits the machine where None.
        seconds: after which no further round begins; one is counted in any case.
    """

    rounds: int = 15
    warmup: int = 3
    clock: str = "wall"
    size: str | None = None
    seconds: float = math.inf

    def times(self, factor: int) -> Options:
        """The same with ``factor`` times the rounds, for what is quick."""
        return replace(self, rounds=self.rounds * factor, warmup=self.warmup * factor)


@dataclass(frozen=True)
class Subject:
    """Something to time.

    Attributes:
        run: what is timed; it is called with what ``prepare`` returned.
        prepare: what must be made afresh before each run, and is not timed.
    """

    run: Callable[[Any], object]
    prepare: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class Comparison:
    """One subject beside its reference.

    Attributes:
        seconds, reference_seconds: medians over the rounds.
        ratio: of the two medians.
        paired: median of the rounds' own ratios.
        low, high: quartiles of the rounds' own ratios.
        limit: what the ratio should not exceed; None where it is only shown.
        least: what it should not fall below, likewise.
    """

    subject: str
    reference: str
    seconds: float
    reference_seconds: float
    ratio: float
    paired: float
    low: float
    high: float
    limit: float | None
    rounds: int
    least: float | None = None

    @property
    def bound(self) -> str:
        """The limit, as the tables show it."""
        if self.least is not None:
            return f"at least {self.least:.2f}"
        return "" if self.limit is None else f"{self.limit:.2f}"

    def figures(self) -> list[str]:
        """The cells of a table's row, as ``FIGURES`` names their columns."""
        return [
            f"{self.seconds * 1e3:.2f}",
            f"{self.reference_seconds * 1e3:.2f}",
            f"**{self.ratio:.3f}**",
            f"{self.paired:.3f}",
            f"{self.low:.3f} to {self.high:.3f}",
            self.bound,
            str(self.rounds),
        ]


@dataclass(frozen=True)
class Report:
    """The result of one benchmark: a table, and the same as plain values."""

    title: str
    setting: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Sequence[dict[str, Any]] = field(default=())

    def markdown(self) -> str:
        """Title, setting and table."""
        return f"### {self.title}\n\n{self.setting}\n\n{_table(self.columns, self.rows)}\n"


def time_in_turns(subjects: Mapping[str, Subject], options: Options) -> dict[str, list[float]]:
    """Seconds of every run of every subject, by round; garbage collection is off meanwhile.

    What a run asks of a CUDA device belongs to it.
    """
    clock, ends = CLOCKS[options.clock], time.monotonic() + options.seconds
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    gc.collect()
    gc.disable()
    try:
        for number in range(options.warmup + options.rounds):
            if number > options.warmup and time.monotonic() > ends:
                break
            for name, subject in subjects.items():
                ready = subject.prepare()
                wait()
                begin = clock()
                subject.run(ready)
                wait()
                end = clock()
                if number >= options.warmup:
                    taken[name].append(end - begin)
    finally:
        gc.enable()
    return taken


def wait() -> None:
    """Wait for the CUDA device, where this process uses one."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def free() -> None:
    """Give back what nothing uses any more, on the CUDA device too: models hold themselves by their hooks."""
    gc.collect()
    torch.cuda.empty_cache()


def peak_bytes(run: Callable[[], object]) -> int | None:
    """Run something; the most that this process held on the CUDA device meanwhile, None without one."""
    if not torch.cuda.is_available():
        run()
        return None
    torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return torch.cuda.max_memory_allocated()


def mebibytes(count: int | None) -> str:
    """Bytes as a cell of a table; empty where they were not measured."""
    return "" if count is None else f"{count / 2**20:,.0f}"


def compare(
    taken: Mapping[str, list[float]],
    subject: str,
    reference: str,
    limit: float | None = None,
    least: float | None = None,
) -> Comparison:
    """The ratio of a subject to its reference."""
    ours, theirs = taken[subject], taken[reference]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    mine, other = median(ours), median(theirs)
    paired, rounds = median(ratios), len(ratios)
    return Comparison(subject, reference, mine, other, mine / other, paired, low, high, limit, rounds, least)


def report_comparisons(title: str, setting: str, comparisons: Sequence[Comparison]) -> Report:
    """The usual table: a row for each comparison."""
    columns = ["", "beside", *FIGURES]
    rows = [[c.subject, c.reference, *c.figures()] for c in comparisons]
    return Report(title, setting, columns, rows, [asdict(c) for c in comparisons])


def describe_machine() -> dict[str, Any]:
    """Accelerator if any, processor, cores, threads, and the versions that decide how fast things are."""
    return {
        **({"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def _processor() -> str:
    """The processor as its maker names it, with family and model where virtual machines hide the rest."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in pairs}
    family, model = fields.get("cpu family"), fields.get("model")
    return fields.get("model name", platform.machine()) + (f" (family {family}, model {model})" if family else "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its columns aligned for reading as text too."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in (columns, *rows)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
