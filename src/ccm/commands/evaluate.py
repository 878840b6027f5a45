"""``ccm evaluate``: measure a model on a task."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import ccm
from ccm.builtin.evaluate import evaluate_recall
from ccm.console import quiet, size
from ccm.errors import InputError


def run_builtin(choice: dict[str, Any], *, steps: int, dialogues: int, seed: int, batch: int, as_json: bool) -> None:
    """Recall of told facts: a table, or one JSON object.

    Raises:
        InputError: on numbers that make no dialogue.
    """
    if steps < 8 or dialogues < 1 or batch < 1:
        raise InputError(
            f"steps is {steps}, dialogues {dialogues}, batch {batch}; a dialogue has at least 8 steps (four tell eight "
            "facts, four ask), and the others are at least 1."
        )
    quiet()
    model, tokenizer = ccm.load(**choice)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{model.config.rule}, {steps} steps", total=dialogues)
        report = evaluate_recall(
            model,
            tokenizer,
            steps=steps,
            dialogues=dialogues,
            seed=seed,
            batch=batch,
            progress=lambda done: progress.update(task, completed=done),
        )
    if as_json:
        print(json.dumps(report.to_dict()))
        return
    table = Table(
        "rule",
        "N",
        "steps",
        "recall",
        "held-out names",
        "wrong “I don't know”",
        "wrong value",
        "invented",
        "memory",
        "full context",
        "smaller by",
    )
    share = "{:.1%}".format
    table.add_row(
        report.rule,
        str(report.n_tok),
        str(report.steps),
        share(report.recall),
        "-" if report.recall_held_out is None else share(report.recall_held_out),
        share(report.unknown),
        share(report.wrong),
        share(report.invented),
        f"{report.entries:.1f} entries, {size(report.memory_bytes)}",
        size(report.full_context_bytes),
        f"{report.full_context_bytes / report.memory_bytes:.1f} x" if report.memory_bytes else "-",
    )
    Console(highlight=False).print(table)
