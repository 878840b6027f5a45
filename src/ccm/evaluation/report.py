"""Reports of evaluations: Markdown tables and two pictures."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from ccm.core.files import write_atomically
from ccm.core.units import size
from ccm.data.tasks import DRAWS
from ccm.evaluation.metrics import recovered, standard_error
from ccm.evaluation.results import NOT_FINITE, Measurement, Result
from ccm.evaluation.store import check_folder

TITLES = {
    "perplexity": "perplexity",
    "loss": "loss",
    "answer_f1": "answer F1",
    "em": "exact match",
    "holds": "holds the answer",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "rouge_lsum": "ROUGE-Lsum",
    "acc": "accuracy (sum)",
    "acc_norm": "accuracy (mean)",
    "acc_base": "accuracy (beyond own)",
    "f1": "macro F1",
    "mae": "MAE",
    "rmse": "RMSE",
}

WIDEST = 10  # the most tasks in a table with a column for each
NUMBERS = ("perplexity", "loss", "mae", "rmse")  # the other figures are shares
UNSTATED = "*"  # stands for a gain on a terminal
WHY_UNSTATED = (
    "The gain is stated only if full beats none by two standard errors, both were measured on the same base and "
    "questions, and full is no worse than guessing, whose perplexity is the size of the vocabulary."
)


class Row(NamedTuple):
    """A method at a depth, and its results: one for each draw."""

    depth: int
    method: str
    results: list[Result]

    def mean(self, name: str) -> float:
        """The mean of an attribute of the measurements over the draws."""
        return fmean(getattr(result.line, name) for result in self.results)

    def memory(self, entries: str, nbytes: str) -> list[str]:
        """Two cells: entries, and the size of their keys and values."""
        return [f"{self.mean(entries):.1f}", size(self.mean(nbytes))]

    def figure(self, name: str, task: str | None = None) -> str:
        """A figure, of all tasks or one, empty where it was not measured; of several draws mean and deviation."""
        lines = [result.line for result in self.results]
        found = [(line.figures if task is None else line.by_task.get(task, {})).get(name) for line in lines]
        values = [value for value in found if value is not None]
        spread = [fmean(values), stdev(values)] if len(values) > 1 else values
        return " ± ".join(f"{value:.3f}" if name in NUMBERS else f"{value:.1%}" for value in spread)

    def share(self, kind: Share, every: Sequence[Result], digits: int = 1) -> str:
        """A gain or content with its error, empty where it is not stated; of several draws mean and deviation."""
        found = [one for result in self.results if (one := kind(result, every)) is not None]
        if len(found) < len(self.results):
            return ""
        shares = [one.share for one in found]
        both = (fmean(shares), stdev(shares)) if len(found) > 1 else found[0]
        return " ± ".join(f"{value:.{digits}%}" for value in both)


class Gain(NamedTuple):
    """The share of the gain from none to full context that a method recovers, and its standard error over questions."""

    share: float
    error: float


Share = Callable[[Result, Sequence[Result]], Gain | None]  # of a result among others


def rows_of(results: Sequence[Result]) -> list[Row]:
    """Results by depth, and in their order by method."""
    groups: dict[tuple[int, str], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda r: r.line.depth):
        groups[result.line.depth, result.line.method].append(result)
    return [Row(*key, group) for key, group in groups.items()]


def gain(result: Result, results: Sequence[Result]) -> Gain | None:
    """The recovered gain of a result among others, at its depth.

    None unless full and none are both there, on the same base and targets, and differ by two standard errors; None too
    where the model with full context is worse than a guess among all its tokens.
    """
    by_rule = {r.line.rule: r for r in results if _same(r, result)}
    full, none = by_rule.get("full"), by_rule.get("none")
    if full is None or none is None or result.line.rule in ("full", "none"):
        return None
    whole = [f - n for f, n in zip(full.values, none.values, strict=True)]
    difference, error = mean_over_tasks(whole, result)
    worse_than_a_guess = full.line.figures.get("perplexity", 0) > (full.line.vocab_size or math.inf)
    if not difference > 2 * error or worse_than_a_guess:
        return None
    name = result.line.main
    share = recovered(*(r.line.figures[name] for r in (result, none, full)), logarithmic=name == "perplexity")
    rest = [s - n - share * w for s, n, w in zip(result.values, none.values, whole, strict=True)]
    return Gain(share, mean_over_tasks(rest, result)[1] / difference)


def content(result: Result, results: Sequence[Result]) -> Gain | None:
    """The share of a result's gain over no context that is lost with the memory of another conversation, in nats.

    None unless none is there, on the same base and targets, and is worse by two standard errors.
    """
    none = next((r for r in results if r.line.rule == "none" and _same(r, result)), None)
    if none is None or len(none.nats) != len(result.others):
        return None
    nats = zip(result.nats, result.others, none.nats, strict=True)
    rows = [(own - other, own - alone) for own, other, alone in nats if other is not None]
    lost, gained = sum(a for a, _ in rows), sum(b for _, b in rows)
    ones = [1.0] * len(rows)
    if not gained > 2 * len(rows) * standard_error([b for _, b in rows], ones):
        return None
    share = lost / gained
    return Gain(share, standard_error([a - share * b for a, b in rows], ones) * len(rows) / gained)


def _same(one: Result, other: Result) -> bool:
    """Whether two results have the same base, task, depth and targets."""
    a, b = ((r.line.base, r.line.task, r.line.depth, r.line.asked, r.weights, r.tasks) for r in (one, other))
    return a == b and not any(NOT_FINITE in r.line.skipped for r in (one, other))  # else other targets were left out


def mean_over_tasks(values: Sequence[float], result: Result) -> tuple[float, float]:
    """The mean over tasks of values, one for each question of a result with its weight, and its standard error."""
    by_task: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for value, weight, task in zip(values, result.weights, result.tasks, strict=True):
        by_task[task].append((value, weight))
    means, errors = [], []
    for rows in by_task.values():
        of_task, weights = map(list, zip(*rows, strict=True))
        means.append(sum(v * w for v, w in rows) / sum(weights))
        errors.append(standard_error(of_task, weights))
    return fmean(means), sum(error**2 for error in errors) ** 0.5 / len(errors)


def overview(results: Sequence[Result]) -> str:
    """A Markdown table in the shape of the paper's: a method a row, a time step a column; the gain in parentheses."""
    main, rows = results[0].line.main, rows_of(results)
    depths = sorted({row.depth for row in rows})
    cells: dict[str, list[str]] = defaultdict(lambda: [""] * len(depths))
    for row in rows:
        share = row.share(gain, results, digits=0)
        cells[row.method][depths.index(row.depth)] = row.figure(main) + (f" ({share})" if share else "")
    table = [["method", *map(str, depths)], *([name, *found] for name, found in cells.items())]
    return f"{TITLES[main]} by time step, with the recovered gain in parentheses:\n\n{_markdown(table)}\n"


def tables(results: Sequence[Result]) -> str:
    """Two Markdown tables, depth by depth: all figures, and the memory and time that they took."""
    names = [name for name in TITLES if any(name in r.line.figures for r in results)]
    titles = [TITLES[name] for name in names]
    found = [["step", "method", "N", *titles, "recovered gain", "content", "questions (skipped)"]]
    took = [["step", "method", "memory entries", "K/V", "peak entries", "peak K/V", "write s", "read s"]]
    for row in rows_of(results):
        begin, line = [str(row.depth), row.method], row.results[0].line
        shares = [row.share(kind, results) for kind in (gain, content)]
        asked = f"{line.questions} ({sum(line.skipped.values())})"
        found.append([*begin, str(line.n_tok or ""), *map(row.figure, names), *shares, asked])
        memory = row.memory("entries", "kv_bytes") + row.memory("peak_entries", "peak_bytes")
        took.append([*begin, *memory, *(f"{row.mean(name):.1f}" for name in ("write_seconds", "read_seconds"))])
    return f"{_markdown(found)}\n{_markdown(took)}"


def by_task(results: Sequence[Result]) -> str:
    """A Markdown table of the figure that counts by task, where there are several but not too many; else nothing."""
    names = sorted({name for result in results for name in result.line.by_task})
    if not 1 < len(names) <= WIDEST:
        return ""
    main = results[0].line.main
    rows = [[str(row.depth), row.method, *(row.figure(main, name) for name in names)] for row in rows_of(results)]
    return f"{TITLES[main]} by task:\n\n{_markdown([['step', 'method', *names], *rows])}\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head."""
    head, *rest = rows
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *rest))


def brief(results: Sequence[Result]) -> list[list[str]]:
    """For a terminal: a head and rows of what matters most; :data:`UNSTATED` for a gain, see :data:`WHY_UNSTATED`."""
    name = results[0].line.main
    rows = [["step", "method", TITLES[name], "recovered", "content", "questions", "entries", "K/V"]]
    for row in rows_of(results):
        line = row.results[0].line
        bound = line.rule in ("full", "none")
        gained = "" if bound else row.share(gain, results, digits=0) or UNSTATED
        told, left_out = row.share(content, results, digits=0), sum(line.skipped.values())
        asked = f"{line.questions:,}" + (f" (-{left_out:,})" if left_out else "")
        memory = row.memory("entries", "kv_bytes")
        rows.append([str(row.depth), row.method, row.figure(name), gained, told, asked, *memory])
    return rows


def title(results: Sequence[Result]) -> str:
    """The task and its options in words, with every value of an option that differs."""
    tasks = [result.line.task for result in results]
    values = {key: [*dict.fromkeys(str(task.get(key)) for task in tasks)] for task in tasks for key in task}
    (name,) = values.pop("name")
    options = ", ".join(f"{key} {', '.join(shown)}" for key, shown in values.items())
    return f"{name}: {options}" if options else name


def merged(runs: Mapping[str, Sequence[Result]], *, draws: bool = False) -> list[list[Result]]:
    """The results of several runs, by the run's name, grouped by task.

    Where runs have different results of a method, they are draws of it (``draws``), or the run's name stands beside
    the method's. Tasks that differ only in what was drawn of the data are one task.
    """
    groups: list[list[tuple[str, Result]]] = []
    for run, result in ((run, result) for run, results in runs.items() for result in results):
        group = next((rows for rows in groups if _together(rows, result)), None)
        if group is None:
            groups.append(group := [])
        group.append((run, result))
    return [[*_distinct(rows if draws else _apart(rows))] for rows in groups]


def _together(rows: Sequence[tuple[str, Result]], result: Result) -> bool:
    """Whether a result is of the task of some others, with the same targets wherever it has a depth in common."""

    def task(line: Measurement) -> dict[str, Any]:
        return {"main": line.main} | {key: value for key, value in line.task.items() if key not in DRAWS}

    lines = [other.line for _, other in rows]
    asked = {line.asked for line in lines if line.depth == result.line.depth}
    return task(lines[0]) == task(result.line) and asked <= {result.line.asked}


def _apart(rows: Sequence[tuple[str, Result]]) -> list[tuple[str, Result]]:
    """The results, with the run's name beside each method that runs differ in."""
    differing = {r.line.method for (_, r), (_, s) in combinations(rows, 2) if _differ(r, s)}
    return [
        (run, replace(r, line=replace(r.line, method=f"{r.line.method} [{run}]")) if r.line.method in differing else r)
        for run, r in rows
    ]


def _distinct(rows: Sequence[tuple[str, Result]]) -> Iterator[Result]:
    """Each result once: runs of a rule without a seed have the same."""
    seen: list[tuple[object, ...]] = []
    for _, result in rows:
        line = result.line
        found = (line.method, line.depth, line.base, line.task, result.values)
        if found not in seen:
            seen.append(found)
            yield result


def _differ(one: Result, other: Result) -> bool:
    """Whether two results have the same method by name, but another N, base, or values."""
    a, b = one.line, other.line
    same = (a.method, a.task) == (b.method, b.task)
    made = (a.base, a.n_tok) == (b.base, b.n_tok)
    return same and (not made or (a.depth == b.depth and one.values != other.values))


def write_report(results: Sequence[Result], folder: Path) -> None:
    """Write the tables and pictures of one task into a folder: ``report.md``, ``steps.png`` and ``memory.png``."""
    text = section(results, folder, "")
    write_atomically(folder / "report.md", lambda p: p.write_text(f"# {text}", encoding="utf-8"))


def write_page(groups: Sequence[Sequence[Result]], folder: Path) -> None:
    """Write one page of several tasks into a folder, each task as :func:`write_report` does.

    Raises:
        ConfigError: when the folder is a file.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section(results, folder, f"{number}-") for number, results in enumerate(groups, start=1)]
    text = "# Evaluations\n\n" + "\n".join(f"## {text}" for text in sections)
    write_atomically(folder / "report.md", lambda p: p.write_text(text, encoding="utf-8"))


def section(results: Sequence[Result], folder: Path, prefix: str) -> str:
    """The text of one task, title first; its pictures go into a folder, under names that begin with the prefix."""
    said = [(r.line.depth, f"{n} left out, {reason}") for r in results for reason, n in r.line.skipped.items() if n]
    broken = [r.line for r in results if NOT_FINITE in r.line.skipped]
    said += [(line.depth, f"some likelihoods of {line.method} are not finite numbers") for line in broken]
    said += [(r.line.depth, f"{what} ({n})") for r in results for what, n in r.line.noted.items()]
    pictures = [f"{prefix}{name}.png" for name in ("steps", "memory")]
    _draw(results, folder / pictures[0], "depth", "time step")
    _draw(results, folder / pictures[1], "peak_bytes", "peak K/V in bytes")
    return (
        f"{title(results)}\n\n{_made_of(results)}\n\n{overview(results)}{tables(results)}\n{by_task(results)}"
        f"{_captioned(pictures[0], pictures[1], results[0].line.main)}"
        "Recovered gain is (score - none) / (full - none); if the score is perplexity, of its logarithm. "
        f"{WHY_UNSTATED} "
        "Content is the share of a method's gain over none that is lost if the query reads the memory of another "
        "conversation with as many steps: (other's - own) / (none - own), in nats of the right answer. "
        "The number after ± is the standard error over the questions, or the standard deviation over several draws.\n\n"
        f"{_by_steps(said)}"
    )


def _captioned(by_step: str, by_memory: str, name: str) -> str:
    """The two pictures, each with what it shows under it."""
    score, better = TITLES[name], "lower" if name in NUMBERS else "higher"
    return (
        f"![{score} by step]({by_step})\n\n*The {score} of each method by time step: {better} is better.*\n\n"
        f"![{score} by memory]({by_memory})\n\n*The {score} of each method by the largest K/V that a query reads: less "
        "memory is further left. Lines join the points unless a memory shrinks from one step to the next.*\n\n"
    )


def _by_steps(said: Sequence[tuple[int, str]]) -> str:
    """A list of remarks on time steps, each once with all its steps."""
    steps: dict[str, list[int]] = defaultdict(list)
    for depth, text in sorted({*said}):
        steps[text].append(depth)
    return "".join(f"- step{'s' * (len(s) > 1)} {', '.join(map(str, s))}: {text}\n" for text, s in steps.items())


def _made_of(results: Sequence[Result]) -> str:
    """Model, data and adapters, by the last parts of their paths."""
    lines = [result.line for result in results]
    used = {(line.method, Path(line.adapter).name) for line in lines if line.n_tok is not None and line.adapter}
    adapters: dict[str, list[str]] = defaultdict(list)
    for method, name in sorted(used):
        adapters[method].append(name)
    models = sorted({f"{Path(line.model).name} ({line.base[:8]})" for line in lines})
    parts = {
        "model": ", ".join(models),
        "data": ", ".join(sorted({Path(line.data).name for line in lines if line.data})),
        "adapters": ", ".join(f"{method} ({', '.join(names)})" for method, names in adapters.items()),
    }
    return "; ".join(f"{name}: {value}" for name, value in parts.items() if value) + "."


def _draw(results: Sequence[Result], path: Path, by: str, label: str) -> None:
    """Draw the score against the step, or the memory on a logarithmic axis (as the paper's Figure 10)."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, PercentFormatter

    figure = Figure(figsize=(6, 4))
    axes: Any = figure.subplots()
    name = results[0].line.main
    rows = rows_of(results)
    names = dict.fromkeys(row.method for row in rows)
    methods = {method: [row for row in rows if row.method == method] for method in names}
    places = {method: [row.mean(by) for row in own] for method, own in methods.items()}
    joined = all(along == sorted(along) for along in places.values())  # else lines would run back over themselves
    for number, (method, own) in enumerate(methods.items()):
        scores = [[result.line.figures[name] for result in row.results] for row in own]
        spread = [stdev(values) if len(values) > 1 else 0.0 for values in scores]
        line = ["-", "--", ":"][number // 10 % 3] if joined else "none"
        style = {"marker": "os^Dv<>pPX*hd"[number % 13], "ls": line, "label": method}
        hollow = {"ms": 5, "fillstyle": "none"}  # so that all are seen where they coincide
        axes.errorbar(places[method], [*map(fmean, scores)], spread if any(spread) else None, **style, **hollow)
    if by == "depth":
        depths = sorted({row.depth for row in rows})
        axes.set_xticks(depths, [str(depth) for depth in depths])
    else:
        axes.set_xscale("log", base=2)
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(2, (1.0,) if high > 8 * low else (1.0, 1.5)))
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
    if name not in NUMBERS:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))  # no score is less
    axes.set_xlabel(label)
    axes.set_ylabel(TITLES[name])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150, bbox_inches="tight"))
