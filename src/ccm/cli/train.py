"""``ccm train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ccm.cli.completion import recipes


def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a recipe in the package, or a YAML file.", autocompletion=recipes)
    ],
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the recipe; repeatable.")
    ] = None,
    stage: Annotated[
        Literal["base", "compress"] | None,
        typer.Option(help="base (a plain LoRA with full context) or compress (the recipe's own)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and end.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.")] = False,
    start: Annotated[
        Path | None,
        typer.Option("--from", metavar="CHECKPOINT", help="Go on from a checkpoint of another folder or machine."),
    ] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases, too.")] = False,
) -> None:
    """Train an adapter, or the model under it. With several processes: torchrun --no-python ccm train ..."""
    from ccm.training.recipe_files import find_recipe

    find_recipe(recipe)  # an unknown name is refused before torch is imported
    from ccm.cli.commands.train import run

    changed = [*(changes or ()), *(["wandb=true"] if wandb else ())]
    run(recipe, changed, stage, dry_run=dry_run, resume=resume, start=start)
