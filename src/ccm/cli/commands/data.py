"""``ccm data``: lists the data sets, and makes the folders that training and evaluation read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ccm.cli.console import counting, interrupted, plain_console
from ccm.core.units import size
from ccm.data.sources.catalogue import SOURCES, File, Source, source


def run_list(*, verbose: bool, as_json: bool) -> None:
    """The data sets: a table, a paragraph each, or one JSON object a line."""
    console = plain_console()
    if as_json:
        print("\n".join(json.dumps(_facts(name, row)) for name, row in SOURCES.items()))
    elif verbose:
        for name, row in SOURCES.items():
            for line in _paragraph(name, row).split("\n"):
                console.print(line, soft_wrap="://" in line or None)  # an address stays whole
    else:
        console.print(_table())
        console.print("\nPrepare one: ccm data prepare NAME. More on each: ccm data list --verbose.")


def run_prepare(
    name: str, given: Path | None, output: Path | None, only: Sequence[str], *, as_json: bool = False
) -> None:
    """Make the folder of a data set, and print what is in it: a table, or one JSON object.

    Raises:
        ConfigError: when there is no such data set, or the output holds something else.
        DataError: when files cannot be had, or are damaged.
    """
    from ccm.data.sources.prepare import prepare

    row = source(name)
    kept = interrupted("What has arrived is kept; the same command goes on from there.")
    with kept, counting("bytes") as progress:
        done = prepare(name, output or Path("data") / name, given, only, progress)
    if as_json:
        held = {name: getattr(done.record, name) for name in ("counts", "missing", "notes")}
        print(
            json.dumps({"name": name, "folder": str(done.folder), "fresh": done.fresh, "licence": row.licence, **held})
        )
        return
    console = plain_console()
    console.print(f"{row.title} is {'' if done.fresh else 'already '}in {done.folder}. Licence: {_licence(row)}.")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    for kind, count, compared in done.lines():
        table.add_row(f"  {kind}", f"{count:,}", compared)
    console.print(table)
    if lacks := done.record.missing:
        console.print(
            f"Not there: {', '.join(lacks)}. Put them into a folder DIR, and say: ccm data prepare {name} "
            f"--source DIR --output {done.folder}"
        )
    for line in (*done.record.notes, *(f"ccm {command.format(done.folder)}" for command in row.used_by)):
        console.print(line)


def _table() -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("name", no_wrap=True)
    table.add_column("what", overflow="fold")
    table.add_column("licence", overflow="fold")
    table.add_column("size", no_wrap=True, justify="right")
    for name, row in SOURCES.items():
        table.add_row(name, row.about, _licence(row), _size(row.size))
    return table


def _licence(row: Source) -> str:
    return ("non-commercial, " if row.commercial is False else "") + row.licence


def _verbs(row: Source) -> list[str]:
    return [" ".join(command.split()[:2]) for command in row.used_by]


def _size(count: int | None) -> str:
    return "unknown" if count is None else size(count)


def _paragraph(name: str, row: Source) -> str:
    facts = {
        "licence": _licence(row),
        "page": row.home,
        "paper": row.paper,
        "size": _size(row.size),
        "used by": ", ".join(_verbs(row)),
        "folder": row.layout,
        "before": row.terms,
        "addresses": row.address,
    }
    lines = [f"{name}: {row.title}, {row.about}", *(f"  {key}: {value}" for key, value in facts.items() if value)]
    return "\n".join([*lines, *(f"  file: {file.url} ({_known(file)})" for file in row.files), ""])


def _known(file: File) -> str:
    listed = ", and what it lists" if file.lists else ""
    if file.sha256 is None:
        return f"no checksum known{listed}"
    return f"{file.size:,} bytes, sha256 {file.sha256}{listed}"


def _facts(name: str, row: Source) -> dict[str, Any]:
    keys = ("title", "about", "licence", "commercial", "home", "paper", "size", "address", "layout", "terms")
    files = [{"path": file.path, "url": file.url, "size": file.size, "sha256": file.sha256} for file in row.files]
    facts = {key: getattr(row, key) for key in keys}
    return {"name": name, **facts, "used_by": _verbs(row), "known": {**row.known}, "files": files}
