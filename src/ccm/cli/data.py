"""``ccm data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.completion import data_sets
from ccm.cli.options import Lines

app = typer.Typer(no_args_is_help=True, help="The data sets: where they are, and how to get them.")


@app.command("list")
def list_data(
    verbose: Annotated[bool, typer.Option("--verbose", help="Addresses, papers, checksums, and the folders.")] = False,
    json: Lines = False,
) -> None:
    """The data sets that can be prepared."""
    from ccm.cli.commands.data import run_list

    run_list(verbose=verbose, as_json=json)


@app.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="Of the data set; ccm data list has them.", autocompletion=data_sets)],
    given: Annotated[
        Path | None, typer.Option("--source", help="Folder of the publisher's files; nothing is downloaded.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to make (data/NAME).")] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files in that folder, such as 'test/*'; repeatable.")
    ] = None,
    json: Lines = False,
) -> None:
    """Bring a data set into the folder that training and evaluation read."""
    from ccm.cli.commands.data import run_prepare

    run_prepare(name, given, output, only or (), as_json=json)
