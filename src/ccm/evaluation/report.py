"""What people read of an evaluation: a Markdown table, and two pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ccm.console import size
from ccm.errors import ConfigError
from ccm.evaluation.metrics import recovered, standard_error
from ccm.evaluation.results import Result
from ccm.files import write_atomically

TITLES = {
    "perplexity": "perplexity",
    "loss": "loss",
    "answer_f1": "answer F1",
    "em": "exact match",
    "rouge_l": "ROUGE-L",
    "acc": "accuracy, sum",
    "acc_norm": "accuracy, mean of tokens",
    "acc_base": "accuracy, beyond the answer's own",
    "f1": "macro F1",
    "mae": "MAE",
    "rmse": "RMSE",
}

WIDEST = 10  # tasks that a table of them has columns for


def gain(result: Result, results: Sequence[Result]) -> float | None:
    """The recovered gain of a result among others, at its depth; None where full and no context are not both there,
    were measured on another base or other targets, or do not differ by two standard errors."""
    by_rule = {r.line.rule: r for r in results if _same(r, result)}
    full, none = by_rule.get("full"), by_rule.get("none")
    if full is None or none is None or result in (full, none):
        return None
    difference, error = paired(full, none)
    if not difference > 2 * error:
        return None
    name = result.line.main
    score, least, most = (r.line.figures[name] for r in (result, none, full))
    return recovered(score, least, most, logarithmic=name == "perplexity")


def _same(one: Result, other: Result) -> bool:
    """Whether two results have base, task, depth and targets in common."""
    a, b = ((r.line.base, r.line.task, r.line.depth, r.weights, r.tasks) for r in (one, other))
    return a == b


def paired(one: Result, other: Result) -> tuple[float, float]:
    """By how much the values of one exceed the other's on the same questions, as a mean over tasks, and its standard
    error."""
    by_task: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for a, b, weight, task in zip(one.values, other.values, one.weights, one.tasks, strict=True):
        by_task[task].append((a - b, weight))
    means, errors = [], []
    for rows in by_task.values():
        differences, weights = [d for d, _ in rows], [w for _, w in rows]
        means.append(sum(d * w for d, w in rows) / sum(weights))
        errors.append(standard_error(differences, weights))
    return sum(means) / len(means), sum(error**2 for error in errors) ** 0.5 / len(errors)


def table(results: Sequence[Result]) -> str:
    """A Markdown table, depth by depth."""
    names = [name for name in TITLES if any(name in r.line.figures for r in results)]
    heads = ["step", "method", "N", *(TITLES[name] for name in names), "recovered gain", "questions (skipped)"]
    heads += ["memory entries", "K/V", "peak entries", "peak K/V", "write s", "read s"]
    rows = [heads, ["---"] * len(heads)]
    for result in sorted(results, key=lambda r: r.line.depth):
        line = result.line
        share = gain(result, results)
        figures = [_figure(name, line.figures.get(name)) for name in names]
        rows.append(
            [
                str(line.depth),
                line.method,
                "" if line.n_tok is None else str(line.n_tok),
                *figures,
                "" if share is None else f"{share:.1%}",
                f"{line.questions} ({sum(line.skipped.values())})",
                f"{line.entries:.1f}",
                size(line.kv_bytes),
                f"{line.peak_entries:.1f}",
                size(line.peak_bytes),
                f"{line.write_seconds:.1f}",
                f"{line.read_seconds:.1f}",
            ]
        )
    return _markdown(rows)


def by_task(results: Sequence[Result]) -> str:
    """A Markdown table of the figure that counts by task, where there are several but not too many; else nothing."""
    names = [*dict.fromkeys(name for result in results for name in result.line.by_task)]
    if not 1 < len(names) <= WIDEST:
        return ""
    main = results[0].line.main
    rows = [["step", "method", *names], ["---"] * (2 + len(names))]
    for line in sorted((result.line for result in results), key=lambda line: line.depth):
        figures = [_figure(main, line.by_task.get(name, {}).get(main)) for name in names]
        rows.append([str(line.depth), line.method, *figures])
    return f"{TITLES[main]} by task:\n\n{_markdown(rows)}\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def brief(results: Sequence[Result]) -> list[list[str]]:
    """The same for a terminal: a head and rows of what matters most."""
    name = results[0].line.main
    score = TITLES[name].partition(",")[0]
    rows = [["step", "method", score, "recovered", "questions", "entries", "K/V", "peak K/V"]]
    for result in sorted(results, key=lambda r: r.line.depth):
        line, share = result.line, gain(result, results)
        asked = f"{line.questions:,}" + (f" (-{left_out:,})" if (left_out := sum(line.skipped.values())) else "")
        measured = [_figure(name, line.figures[name]), "" if share is None else f"{share:.1%}", asked]
        memory = [f"{line.entries:.1f}", size(line.kv_bytes), size(line.peak_bytes)]
        rows.append([str(line.depth), line.method, *measured, *memory])
    return rows


def over_draws(results: Sequence[Result]) -> list[list[str]]:
    """Of one task with several draws of demonstrations or entries: a head and rows with mean and standard deviation."""
    groups: dict[tuple[int, str], list[Result]] = defaultdict(list)
    for result in sorted(results, key=lambda r: r.line.depth):
        groups[result.line.depth, result.line.method].append(result)
    name = results[0].line.main
    rows = [["step", "method", TITLES[name].partition(",")[0], "recovered", "draws", "entries", "K/V"]]
    for (depth, method), group in groups.items():
        lines, shares = [r.line for r in group], [share for r in group if (share := gain(r, results)) is not None]
        figures = _spread(name, [line.figures[name] for line in lines])
        recovered_gain = _spread("", shares) if len(shares) == len(group) else ""
        memory = [f"{fmean(line.entries for line in lines):.1f}", size(fmean(line.kv_bytes for line in lines))]
        rows.append([str(depth), method, figures, recovered_gain, str(len(group)), *memory])
    return rows


def _spread(name: str, values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{_figure(name, fmean(values))} ± {_figure(name, stdev(values) if len(values) > 1 else 0.0)}"


def title(results: Sequence[Result]) -> str:
    """What was measured, in words."""
    name, *options = results[0].line.task.items()
    return f"{name[1]}: " + ", ".join(f"{key} {value}" for key, value in options) if options else str(name[1])


def merged(runs: Mapping[str, Sequence[Result]]) -> list[list[Result]]:
    """The results of several runs, by name, those of each task together.

    Where runs differ in what they have of a method, the run stands beside its name.
    """
    by_task: dict[str, list[tuple[str, Result]]] = defaultdict(list)
    for run, results in runs.items():
        for result in results:
            by_task[json.dumps(result.line.task, sort_keys=True)].append((run, result))
    return [_together(rows) for rows in by_task.values()]


def _together(rows: Sequence[tuple[str, Result]]) -> list[Result]:
    differing = {r.line.method for (_, r), (_, s) in combinations(rows, 2) if _differ(r, s)}
    found: dict[tuple[str, int], Result] = {}
    for run, result in rows:
        method = result.line.method
        name = f"{method} [{run}]" if method in differing else method
        found[name, result.line.depth] = replace(result, line=replace(result.line, method=name))
    return [*found.values()]


def _differ(one: Result, other: Result) -> bool:
    """Whether two results have a method's name in common, but not what it is or found."""
    a, b = one.line, other.line
    return a.method == b.method and (a.base != b.base or (a.depth == b.depth and one.values != other.values))


def write_report(results: Sequence[Result], folder: Path) -> None:
    """The table and the pictures of one task, into a folder: ``report.md``, ``steps.png`` and ``memory.png``."""
    text = section(results, folder, "")
    write_atomically(folder / "report.md", lambda p: p.write_text(f"# {text}", encoding="utf-8"))


def write_page(groups: Sequence[Sequence[Result]], folder: Path, summary: Sequence[Sequence[str]] = ()) -> None:
    """One page of several tasks, each as of :func:`write_report`, into a folder; first the rows of a summary, if any.

    Raises:
        ConfigError: when the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The output {folder} is a file; name a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    sections = [section(results, folder, f"{number}-") for number, results in enumerate(groups, start=1)]
    first = _markdown([summary[0], ["---"] * len(summary[0]), *summary[1:]]) + "\n" if summary else ""
    text = f"# Evaluations\n\n{first}" + "\n".join(f"## {text}" for text in sections)
    write_atomically(folder / "report.md", lambda p: p.write_text(text, encoding="utf-8"))


def section(results: Sequence[Result], folder: Path, prefix: str) -> str:
    """The text of one task, title first; its pictures are drawn into a folder, under names that begin so."""
    skipped = sorted({(r.line.depth, reason, n) for r in results for reason, n in r.line.skipped.items() if n})
    left_out = "".join(f"- step {depth}: {count} left out, {reason}\n" for depth, reason, count in skipped)
    noted = sorted({(r.line.depth, what, n) for r in results for what, n in r.line.noted.items()})
    left_out += "".join(f"- step {depth}: {what} ({count})\n" for depth, what, count in noted)
    tables = table(results) + "\n" + by_task(results)
    pictures = [f"{prefix}{name}.png" for name in ("steps", "memory")]
    _draw(results, folder / pictures[0], "depth", "time step")
    _draw(results, folder / pictures[1], "peak_bytes", "peak K/V in bytes")
    return (
        f"{title(results)}\n\n{tables}![by step]({pictures[0]}) ![by memory]({pictures[1]})\n\n"
        "Recovered gain is (score - none) / (full - none), of log perplexity where that is the score; not stated where "
        f"full does not beat none by two standard errors, or was measured on another base.\n\n{left_out}"
    )


def _draw(results: Sequence[Result], path: Path, by: str, label: str) -> None:
    """Score against the step, or against the memory on a logarithmic axis (as the paper's Figure 10)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4))
    axes: Any = figure.subplots()
    name = results[0].line.main
    for method in dict.fromkeys(r.line.method for r in results):
        lines = sorted((r.line for r in results if r.line.method == method), key=lambda line: line.depth)
        axes.plot([getattr(line, by) for line in lines], [line.figures[name] for line in lines], marker="o", ms=4)
        axes.lines[-1].set_label(method)
    if by == "depth":
        depths = sorted({r.line.depth for r in results})
        axes.set_xticks(depths, [str(depth) for depth in depths])
    else:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
    axes.set_xlabel(label)
    axes.set_ylabel(TITLES[name])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150, bbox_inches="tight"))


def _figure(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if name in ("perplexity", "loss", "mae", "rmse") else f"{value:.1%}"
