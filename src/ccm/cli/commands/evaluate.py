"""``ccm evaluate``: measure a model on a task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from ccm.cli.commands.notes import BuiltinNote
from ccm.cli.console import counting, plain_console, progress, quiet, tell
from ccm.core.units import size
from ccm.data.builtin.recall import QUESTIONS, RecallReport, evaluate_recall
from ccm.evaluation.kept import keeping
from ccm.evaluation.report import UNSTATED, WHY_UNSTATED, brief, merged, write_page, write_report
from ccm.evaluation.results import read_run
from ccm.evaluation.run import Evaluation, evaluate, processes
from ccm.models.load import load as load_model


def run_builtin(
    choice: dict[str, Any], *, steps: int, facts: int, dialogues: int, seed: int, batch: int, before: int, as_json: bool
) -> None:
    """Recall of told facts: a table, or one JSON object.

    Raises:
        InputError: on numbers that make no dialogue.
    """
    quiet()
    model, tokenizer = load_model(**choice)
    with progress(f"{model.config.rule}, {steps} steps", dialogues, "dialogues") as advance:
        report = evaluate_recall(
            model,
            tokenizer,
            steps=steps,
            facts=facts,
            dialogues=dialogues,
            seed=seed,
            batch=batch,
            before=before,
            progress=advance,
        )
    if as_json:
        print(json.dumps(report.to_dict()))
    else:
        plain_console().print(_table(report))


def run_tasks(evaluations: Sequence[Evaluation], output: Path | None, *, as_json: bool) -> None:
    """A task with several methods: a table, or one JSON object a line; everything into ``output`` where it is given.

    Several evaluations are of the same task, with others drawn: the table has their means. Of several processes the
    first one prints and writes.

    Raises:
        ConfigError: when something cannot be measured as asked.
        AdapterError, DataError: when files are absent or damaged.
    """
    quiet()
    first = evaluations[0]
    note = BuiltinNote(first.model, first.adapters)
    try:
        with counting("questions") as advance:

            def show(part: str, done: int, total: int) -> None:
                note.say()
                advance(part, done, total)

            results = evaluate(*evaluations, output=output, progress=show)
    except KeyboardInterrupt:
        if processes().is_main_process:
            kept = f"Methods and steps that were done are in {output}; the same command goes on from there."
            tell(kept if output else "Nothing is kept without --output.")
        raise
    if not processes().is_main_process:
        return
    note.say()  # all of it may have been measured before
    if output is not None:
        with keeping(output):
            write_report(results, output)
    if as_json:
        print("\n".join(json.dumps(asdict(result.line)) for result in results))
    else:
        head, *rows = brief(results)
        shown = Table(box=None, pad_edge=False, padding=(0, 1))
        for name in head:
            shown.add_column(name, no_wrap=True, overflow="fold")
        for row in rows:
            shown.add_row(*row)
        plain_console().print(shown)
        if any(UNSTATED in row for row in rows):
            plain_console().print(f"{UNSTATED} The gain is {WHY_UNSTATED}.", soft_wrap=False)
        kinds = [*dict.fromkeys(kind for result in results for kind in result.line.by_task)]
        if first.most and len(kinds) > 1:
            plain_console().print(
                f"--most {first.most}: so many questions at most of each of {len(kinds)} kinds, at every step."
            )
        if output is not None:
            plain_console().print(f"The report is {output / 'report.md'}.")


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


def _table(report: RecallReport) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    share = "{:.1%}".format
    memory = f"{report.entries:.1f} entries, {size(report.memory_bytes)}"
    smaller = f", {report.full_context_bytes / report.memory_bytes:.1f} x smaller" if report.memory_bytes else ""
    rows = {
        "rule": f"{report.rule}, N = {report.n_tok}",
        "dialogues": f"{report.dialogues} of {report.steps} steps that tell {report.facts} facts, seed {report.seed}",
        "recall": f"{share(report.recall)}  of the told facts asked for in the last {QUESTIONS} steps",
        "  held-out": _held_out(report.recall_held_out),
        "wrong value": f"{share(report.wrong)}  of the told facts",
        "wrong “I don't know”": f"{share(report.unknown)}  of the told facts",
        "invented": f"{share(report.invented)}  of facts never told, answered with a value",
        "memory": f"{memory}; full context {size(report.full_context_bytes)}{smaller}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _held_out(share: float | None) -> str:
    what = "with a name or city never trained on"
    return f"none was asked {what}" if share is None else f"{share:.1%}  of those {what}"
