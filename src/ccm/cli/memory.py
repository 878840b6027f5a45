"""``ccm memory``: what a server keeps, while it does not run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.options import Lines, ModelOptions, existing, unfold

app = typer.Typer(no_args_is_help=True, help="The turns and memories that a server keeps, while it does not run.")
Folder = Annotated[
    Path,
    typer.Option("--store", help="The server's folder.", callback=existing("the folder of a server, as its --store")),
]
Id = Annotated[str, typer.Argument(help="Id of a response or completion.")]


@app.command("list")
def list_turns(store: Folder, json: Lines = False) -> None:
    """All turns, the latest last."""
    from ccm.cli.commands.memory import run_list

    run_list(store, as_json=json)


@app.command("show")
def show_turn(name: Id, store: Folder) -> None:
    """A turn: what was asked and answered, as JSON."""
    from ccm.cli.commands.memory import run_show

    run_show(name, store)


@app.command("verify")
def verify(store: Folder) -> None:
    """Read every memory, and say which are damaged."""
    from ccm.cli.commands.memory import run_verify

    run_verify(store)


@app.command("delete")
def delete_turn(
    name: Id,
    store: Folder,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="All turns that follow it, too: they hold what it said.")
    ] = False,
) -> None:
    """Delete a turn with its memory; what is deleted is overwritten."""
    from ccm.cli.commands.memory import run_delete

    run_delete(name, store, cascade=cascade)


@app.command("export")
@unfold
def export_memory(
    name: Id,
    file: Annotated[Path, typer.Argument(help="The file to make, which ccm chat --load takes.")],
    store: Folder,
    model: ModelOptions,
) -> None:
    """Write the memory after a turn into a file. The model must be that of the server."""
    from ccm.cli.commands.memory import run_export

    run_export(name, file, store, model.chosen())
