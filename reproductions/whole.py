"""All weights of the small LLaMA, trained on by a recipe, with full context: a base for what a reproduction measures.

    torchrun --nproc_per_node 2 -m reproductions.whole reproductions/dialog.yaml --data DIR --output DIR

What it learns of may not be open; then its weights are for measuring only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from ccm.chat.turns import Turns
from ccm.cli.commands.progress import progress
from ccm.cli.console import ending, quiet
from ccm.training.loop import train
from ccm.training.recipe import Recipe, load_recipe
from reproductions.small import SMALL, Whole


def trained_on(recipe: Recipe, turns: Turns) -> Whole:
    """The model of a recipe, all of it to be trained."""
    return Whole(LlamaForCausalLM.from_pretrained(recipe.model, dtype=torch.float32), recipe, turns)


def main() -> None:
    """Train, or go on."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="YAML file")
    parser.add_argument("--data", type=Path, required=True, help="folder of the recipe's data set")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE over the recipe")
    args = parser.parse_args()
    quiet()
    places = (f"model={SMALL}", f"data.path={args.data}", f"output_dir={args.output}")
    recipe = load_recipe(args.recipe, (*places, *args.set))
    with progress(recipe, args.output.name) as shown:
        train(recipe, resume=args.output.is_dir(), report=shown.report, advance=shown.advance, make=trained_on)


if __name__ == "__main__":
    with ending():
        main()
