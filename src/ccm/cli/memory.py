"""``ccm memory``: what a server keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.options import Lines, ModelOptions, unfold

app = typer.Typer(no_args_is_help=True, help="The turns and memories that a server keeps.")
Place = Annotated[
    str,
    typer.Option(
        "--store", envvar="CCM_STORE", help="The server's folder, while it does not run, or the address of its Redis."
    ),
]
Id = Annotated[str, typer.Argument(help="Id of a response or completion.")]


@app.command("list")
def list_turns(store: Place, json: Lines = False) -> None:
    """All turns, the latest last."""
    from ccm.cli.commands.memory import run_list

    run_list(store, as_json=json)


@app.command("usage")
def tell_usage(store: Place, json: Lines = False) -> None:
    """What each key has: turns, and the bytes that count against its quota."""
    from ccm.cli.commands.memory import run_usage

    run_usage(store, as_json=json)


@app.command("show")
def show_turn(name: Id, store: Place) -> None:
    """A turn: what was asked and answered, as JSON."""
    from ccm.cli.commands.memory import run_show

    run_show(name, store)


@app.command("verify")
def verify(store: Place, json: Lines = False) -> None:
    """Read every memory, and say which are damaged."""
    from ccm.cli.commands.memory import run_verify

    run_verify(store, as_json=json)


@app.command("delete")
@unfold
def delete_turn(
    name: Id,
    store: Place,
    model: ModelOptions,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="All turns that follow it, too: they hold what it said.")
    ] = False,
) -> None:
    """Delete a turn with its memory; what is deleted is overwritten.

    The model of the server is loaded where memories of later turns must be made first.
    """
    from ccm.cli.commands.memory import run_delete

    run_delete(name, store, model.chosen(), cascade=cascade)


@app.command("export")
@unfold
def export_memory(
    name: Id,
    file: Annotated[Path, typer.Argument(help="The file to make, which ccm chat --load takes.")],
    store: Place,
    model: ModelOptions,
) -> None:
    """Write the memory after a turn into a file. The model must be that of the server."""
    from ccm.cli.commands.memory import run_export

    run_export(name, file, store, model.chosen())


@app.command("import")
@unfold
def import_memory(
    file: Annotated[Path, typer.Argument(help="A memory, as ccm chat --save and ccm memory export write it.")],
    store: Place,
    model: ModelOptions,
    key: Annotated[
        Path | None, typer.Option(help="File with the API key whose it becomes (none: of a server without keys).")
    ] = None,
) -> None:
    """Keep the memory of a file, for clients to go on from. The model must be that of the server."""
    from ccm.cli.commands.memory import run_import

    run_import(file, store, key, model.chosen())


@app.command("rebuild")
@unfold
def rebuild(
    store: Place,
    model: ModelOptions,
    drop: Annotated[bool, typer.Option("--drop", help="Delete turns whose text was not kept.")] = False,
) -> None:
    """Make all memories again from text, for another model, adapter or rule. It goes on where it was stopped."""
    from ccm.cli.commands.memory import run_rebuild

    run_rebuild(store, model.chosen(), drop=drop)


@app.command("forget")
@unfold
def forget(
    name: Id,
    store: Place,
    model: ModelOptions,
    step: Annotated[int, typer.Option(min=1, help="Its number, as ccm memory show tells it.")],
) -> None:
    """Forget a step of a memory, in all memories that hold it. The model must be that of the server."""
    from ccm.cli.commands.memory import run_forget

    run_forget(name, step, store, model.chosen())
