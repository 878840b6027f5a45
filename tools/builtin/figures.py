"""The figures of the model card: recall of the built-in model by depth and rule, as a table and a plot."""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

import ccm
from ccm.cli.console import ending, plain_console, progress, quiet
from ccm.core.files import save_json, write_atomically
from ccm.data.builtin.recall import RecallReport, evaluate_recall
from ccm.models.builtin import WEIGHTS

RULES = ("full", "concat", "gate", "merge", "none")
DEPTHS = (12, 16, 24, 32, 48)


def measure(output: Path, dialogues: int) -> list[RecallReport]:
    """A report for every rule and depth; reports of the same weights in ``output`` are reused."""
    weights = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(WEIGHTS.rglob("*.safetensors")))).hexdigest()[:16]
    held = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    same = held.get("weights") == weights and held.get("dialogues") == dialogues
    reports = [RecallReport(**values) for values in held["reports"]] if same else []
    done = {(report.rule, report.steps) for report in reports}
    for rule in RULES:
        model, tokenizer = ccm.load("builtin", rule=rule)
        for steps in DEPTHS:
            if (rule, steps) in done:
                continue
            with progress(f"{rule}, {steps} steps", dialogues, "dialogues") as advance:
                report = evaluate_recall(model, tokenizer, steps=steps, dialogues=dialogues, progress=advance)
            reports.append(report)
            values = [report.to_dict() for report in reports]
            save_json(output, {"weights": weights, "dialogues": dialogues, "reports": values})
    return reports


def table(reports: list[RecallReport]) -> str:
    """A Markdown table with a row for each rule and depth."""
    lines = [
        "| rule | steps | recall | seen names | held-out names | invented | entries | bytes of full context |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        seen, held = ("" if r is None else f"{r:.1%}" for r in (report.recall_seen, report.recall_held_out))
        share = report.memory_bytes / report.full_context_bytes
        lines.append(
            f"| {report.rule} | {report.steps} | {report.recall:.1%} | {seen} | {held} | {report.invented:.1%} | "
            f"{report.entries:.0f} | {share:.1%} |"
        )
    return "\n".join(lines)


def draw(reports: list[RecallReport], path: Path) -> None:
    """Plot recall over depth, with a line for each rule."""
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    for rule in RULES:
        points = sorted((report.steps, 100 * report.recall) for report in reports if report.rule == rule)
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=rule)
    axes.set_xlabel("steps of the conversation")
    axes.set_ylabel("recall of told facts, %")
    axes.set_xticks(DEPTHS)
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150, bbox_inches="tight"))


def main() -> None:
    """Measure, print the table, and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dialogues", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("docs/results/builtin.json"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/recall.png"))
    args = parser.parse_args()
    quiet()
    torch.manual_seed(0)
    reports = measure(args.output, args.dialogues)
    draw(reports, args.picture)
    plain_console().print(table(reports))


if __name__ == "__main__":
    with ending():
        main()
