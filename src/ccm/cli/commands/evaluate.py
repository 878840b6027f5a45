"""``ccm evaluate``: measure a model on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ccm.cli.commands.notes import BuiltinNote
from ccm.cli.console import counting, interrupted, loading, plain_console, print_table, progress, quiet
from ccm.core.units import size
from ccm.data.builtin.recall import QUESTIONS, RecallReport, evaluate_recall
from ccm.data.tasks import TaskSettings
from ccm.evaluation.report import UNSTATED, WHY_UNSTATED, brief, merged, write_page, write_report
from ccm.evaluation.results import read_run
from ccm.evaluation.run import evaluate, processes
from ccm.evaluation.settings import EvaluationSettings, Selection
from ccm.evaluation.store import keeping
from ccm.models.load import load as load_model


def run_builtin(choice: dict[str, Any], asked: dict[str, Any], *, as_json: bool) -> None:
    """Recall of told facts: a table, or one JSON object.

    Args:
        choice: the model, as ``ccm.load`` takes it.
        asked: the conversations, as :func:`ccm.data.builtin.recall.evaluate_recall` takes them.
        as_json: whether to print JSON.

    Raises:
        InputError: on numbers that make no dialogue.
    """
    quiet()
    with interrupted("Nothing is kept; the same command begins again."):
        with loading(choice):
            model, tokenizer = load_model(**choice)
        with progress(f"{model.config.rule}, {asked['steps']} steps", asked["dialogues"], "dialogues") as advance:
            report = evaluate_recall(model, tokenizer, **asked, progress=advance)
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        plain_console().print(_recall_table(report))


def run_tasks(
    tasks: Sequence[TaskSettings], selection: Selection, settings: EvaluationSettings, *, as_json: bool
) -> None:
    """Tasks with several methods: a table, or one JSON object a line; everything into the output, if there is one.

    Several tasks are one with other draws: the table has their means. Of several processes the first one prints.

    Raises:
        ConfigError: when something cannot be measured as asked.
        AdapterError, DataError: when files are absent or damaged.
    """
    quiet()
    note, output = BuiltinNote(selection.model, selection.adapters), selection.output
    kept = f"Methods and steps that were done are in {output}; the same command goes on from there."
    with interrupted(kept if output else "Nothing is kept without --output."), counting("questions") as advance:

        def show(part: str, done: int, total: int) -> None:
            if done:
                note.say()
            advance(part, done, total)

        results = evaluate(tasks, selection, settings, show)
    if not processes().is_main_process:
        return
    note.say()  # all of it may have been measured before
    if output is not None:
        with keeping(output):
            write_report(results, output)
    if as_json:
        print("\n".join(json.dumps(asdict(result.line)) for result in results))
        return
    console = plain_console()
    head, *rows = brief(results)
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in head:
        table.add_column(name, no_wrap=True, overflow="fold")
    for row in rows:
        table.add_row(*row)
    print_table(console, table)
    if any(UNSTATED in row for row in rows):
        console.print(f"{UNSTATED} {WHY_UNSTATED}", soft_wrap=False)
    kinds = {kind for result in results for kind in result.line.by_task}
    if settings.most and len(kinds) > 1:
        console.print(
            f"--most {settings.most}: so many questions at most of each of {len(kinds)} kinds, at every step."
        )
    if output is not None:
        console.print(f"The report is {output / 'report.md'}.")


def run_report(folders: Sequence[Path], output: Path, *, draws: bool = False) -> None:
    """One page of several evaluations, into a folder; they may be several draws of the same.

    Raises:
        DataError: when a folder holds no whole evaluation.
        ConfigError: when the output is a file.
    """
    names = [folder.name if [f.name for f in folders].count(folder.name) == 1 else str(folder) for folder in folders]
    runs = {name: read_run(folder) for name, folder in zip(names, folders, strict=True)}
    with keeping(output):
        write_page(merged(runs, draws=draws), output)
    plain_console().print(f"The report is {output / 'report.md'}.")


def _recall_table(report: RecallReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    share = "{:.1%}".format
    memory = f"{report.entries:.1f} entries, {size(report.memory_bytes)}"
    smaller = f", {report.full_context_bytes / report.memory_bytes:.1f} x smaller" if report.memory_bytes else ""
    rows = {
        "rule": f"{report.rule}, N = {report.n_tok}",
        "dialogues": f"{report.dialogues} of {report.steps} steps that tell {report.facts} facts, seed {report.seed}",
        "recall": f"{share(report.recall)}  of the told facts asked for in the last {QUESTIONS} steps",
        "  held-out": "none was asked with a name or city never trained on"
        if report.recall_held_out is None
        else f"{share(report.recall_held_out)}  of those with a name or city never trained on",
        "wrong value": f"{share(report.wrong)}  of the told facts",
        "wrong “I don't know”": f"{share(report.unknown)}  of the told facts",
        "invented": f"{share(report.invented)}  of facts never told, answered with a value",
        "memory": f"{memory}; full context {size(report.full_context_bytes)}{smaller}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table
