"""``ccm adapters``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.completion import adapter_sets, models, rules
from ccm.cli.options import Lines, Recurrent, known_adapter

app = typer.Typer(no_args_is_help=True, help="Adapters: the authors', and yours for others.")


@app.command("list")
def list_adapters(
    folder: Annotated[Path | None, typer.Argument(help="Where to look for adapters (the published ones).")] = None,
    json: Lines = False,
) -> None:
    """The adapters that the authors published, or those in a folder."""
    from ccm.cli.commands.adapters_list import run_list

    run_list(folder, as_json=json)


@app.command("show")
def show_adapter(
    adapter: Annotated[str, typer.Argument(help="Folder, the authors' too, or Hub id.", callback=known_adapter)],
    json: Lines = False,
) -> None:
    """What an adapter is: its rule, N, LoRA, turns, and base."""
    from ccm.cli.commands.adapters import run_show

    run_show(adapter, as_json=json)


@app.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(help="One of the authors' folders: adapter_config.json and weights.")],
    output: Annotated[Path, typer.Option(help="The folder to make.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Its base: folder, Hub id or short name. It is loaded, and the adapter bound to it.",
            autocompletion=models,
        ),
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(
            help="concat, merge, gist or pos_control (as the folder's name says, or concat).", autocompletion=rules
        ),
    ] = None,
    recurrent: Recurrent = None,
    sink: Annotated[
        bool | None, typer.Option("--sink/--no-sink", help="Whether the first token stays in view.")
    ] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="Data set, which says how turns are written: unified, dialog, metaicl ...")
    ] = None,
    base_adapter: Annotated[
        str | None, typer.Option(help="Folder of the stage-1 adapter under it (beside it); none: the base has it in.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, and replace what is there.")] = False,
) -> None:
    """Turn one of the authors' adapters into one of ours. What it has to assume, it says."""
    from ccm.adapters.importing import Choices
    from ccm.cli.commands.adapters import run_import

    run_import(folder, output, Choices(base, rule, recurrent, sink, trained_on, base_adapter), yes=yes)


@app.command("download")
def download_adapters(
    name: Annotated[
        str, typer.Argument(help="unified, pretrain, metaicl, dialog or lamp.", autocompletion=adapter_sets)
    ],
    output: Annotated[Path | None, typer.Option(help="The folder to make (adapters/NAME).")] = None,
) -> None:
    """Fetch the authors' adapters from their public drive, to be imported. Needs gdown."""
    from ccm.cli.commands.adapters import run_download

    run_download(name, output)


@app.command("merge")
def merge_adapter(
    adapter: Annotated[str, typer.Argument(help="An adapter of ours with a stage-1 adapter under it.")],
    output: Annotated[Path, typer.Option(help="The folder to make: the adapter, and its base as a whole model.")],
    base: Annotated[str | None, typer.Option(help="Its base, where it is not where the adapter says.")] = None,
) -> None:
    """Merge the stage-1 adapter under an adapter into its base, which can be quantized then."""
    from ccm.cli.commands.adapters import run_merge

    run_merge(adapter, output, base)


@app.command("push")
def push_adapter(
    folder: Annotated[Path, typer.Argument(help="An adapter of ours.")],
    name: Annotated[str, typer.Argument(help="The repository on the Hub, such as you/name.")],
    base: Annotated[str | None, typer.Option(help="Hub id of its base, where the adapter names a folder.")] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="What an evaluation wrote as --output, for the card; repeatable."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A private repository, where it is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card, and send nothing.")] = False,
) -> None:
    """Send an adapter to the Hub, with a model card made from its settings and results."""
    from ccm.cli.commands.adapters import run_push

    run_push(folder, name, base, results or (), private=private, dry_run=dry_run)
