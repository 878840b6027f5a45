"""``ccm stream``: texts without end in a cache of fixed size, by several methods side by side."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import torch
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from ccm.cli.commands.notes import BuiltinNote
from ccm.cli.console import LINE_SECONDS, interrupted, plain_console, quiet, repeating
from ccm.core.units import size
from ccm.evaluation.stream_results import StreamResult, totals
from ccm.evaluation.streams import StreamReport, StreamRun, run_streams

LOADING = "loading the model"


def run(asked: StreamRun, seed: int | None, *, as_json: bool) -> None:
    """Perplexity along the texts: live on standard error, then a table, or JSON lines as they come.

    Raises:
        ConfigError: when something cannot be read as asked.
        AdapterError, DataError: when files are absent, damaged, empty, or no text.
    """
    quiet()
    note, output = BuiltinNote(asked.selection.model, asked.selection.adapters), asked.selection.output
    if seed is not None:
        torch.manual_seed(seed)
    kept = f"What was read is in {output}, but for the last seconds; the same command goes on from there."
    with interrupted(kept if output else "Nothing is kept without --output."), _progress() as show:

        def report(result: StreamResult) -> None:
            note.say()
            show(result)
            if as_json:
                _print_point(result)

        results = run_streams(asked, report)
    note.say()  # all of it may have been read before
    if as_json:
        lines = [result.line() for result in results] + [asdict(total) for total in totals(results)]
        print("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
        return
    console = plain_console()
    console.print(_table(results))
    for result in results:
        if result.continued is not None:
            console.print(f"\n{result.text} goes on, by {result.method}:\n{result.continued}")
    if output is not None:
        console.print(f"\nThe picture is {output / 'perplexity.png'}.")


def _print_point(result: StreamResult) -> None:
    """How far a stream has come, as a line of JSON."""
    point = result.last
    told = {"read": point.read, "of": result.total, "perplexity": point.perplexity, "recent": _recent(result)}
    told |= {"entries": point.entries, "tokens_per_second": _speed(result)}
    print(json.dumps({"method": result.method, "text": result.text, **told}), flush=True)


@contextmanager
def _progress() -> Iterator[StreamReport]:
    """A line for each method and text on a terminal, which follows it, many elsewhere; on standard error."""
    if not sys.stderr.isatty():
        begun, told = time.monotonic(), 0.0

        def line(result: StreamResult) -> None:
            nonlocal told
            if result.done or time.monotonic() - told > LINE_SECONDS:
                told = time.monotonic()
                read = f"{result.last.tokens} of {result.total - 1}"
                left = f"{(result.total - result.last.read) / (_speed(result) or 1):.0f} s left"
                print(f"{_name(result)}: {read}  {_live(result)}  {left}", file=sys.stderr, flush=True)

        def wait() -> None:
            if not told:
                print(f"{LOADING}: {time.monotonic() - begun:.0f} s so far", file=sys.stderr, flush=True)

        with repeating(wait):
            yield line
        return
    tasks: dict[str, TaskID] = {}
    live = TextColumn("{task.fields[live]}", table_column=Column(no_wrap=False))  # on a narrow terminal, two lines
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        live,
    )
    with Progress(*columns, console=plain_console(stderr=True)) as bar:
        before = bar.add_task(LOADING, total=None, live="")

        def advance(result: StreamResult) -> None:
            name = _name(result)
            bar.update(before, visible=False)
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=result.total - 1, live="")
            bar.update(tasks[name], completed=result.last.tokens, live=_live(result))

        yield advance


def _name(result: StreamResult) -> str:
    return f"{result.method}, {result.text}"


def _live(result: StreamResult) -> str:
    """Perplexity so far and of the latest stretch, entries in the cache, speed."""
    shown = f"perplexity {result.last.perplexity:.2f} (latest {_recent(result):.2f})"
    return f"{shown}  {result.last.entries} entries  {_speed(result):,.0f} tokens/s"


def _recent(result: StreamResult) -> float:
    return result.last.since(result.points[-2] if len(result.points) > 1 else None)


def _speed(result: StreamResult) -> float:
    return result.last.read / result.last.seconds if result.last.seconds else 0.0


def _table(results: Sequence[StreamResult]) -> Table:
    """A line for each text and method, and one for each method where there are several texts."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("text", overflow="fold")
    table.add_column("method", overflow="fold")
    for name in ("tokens", "perplexity", "largest cache", "K/V", "seconds"):
        table.add_column(name, no_wrap=True, justify="right")
    for result in sorted(results, key=lambda result: result.text):
        end = result.last
        figures = f"{end.tokens:,}", f"{end.perplexity:.3f}", str(result.largest), size(result.bytes)
        table.add_row(result.text, result.method, *figures, f"{end.seconds:.1f}")
    every = totals(results)
    if every[0].texts > 1:
        for total in every:
            means = f"{total.tokens:,}", f"{total.perplexity:.3f}", str(total.largest_cache), ""
            table.add_row(f"all {total.texts}", total.method, *means, f"{total.seconds:.1f}")
            table.add_row("mean of the texts", total.method, "", f"{total.mean:.3f}", "", "", "")
    return table
