"""``ccm train``: from a recipe to an adapter, with a bar that tells how it goes; or a look at it before."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

from ccm.cli.commands.notes import is_running_text
from ccm.cli.commands.progress import progress
from ccm.cli.console import interrupted, plain_console, quiet, tell
from ccm.core.processes import is_main
from ccm.core.units import size
from ccm.data import open_data
from ccm.engine.adapter_files import read_adapter
from ccm.training.batches import Batches
from ccm.training.checks import check, check_checkpoint
from ccm.training.loop import train
from ccm.training.preview import estimate, picture
from ccm.training.recipe import Recipe, StageName, load_recipe, write_recipe
from ccm.training.run import Run
from ccm.training.stages import make_stage, open_turns
from ccm.training.trackers import check_trackers


def run(
    source: str, changes: list[str], stage: StageName | None, *, dry_run: bool, resume: bool, start: Path | None = None
) -> None:
    """Train, or show what would be trained."""
    quiet()
    with interrupted("Nothing was begun."):
        recipe = load_recipe(source, changes, stage)
        if dry_run:
            _show(recipe, resume, start)
            return
        with progress(recipe) as shown:
            folder = train(recipe, resume=resume, start=start, report=shown.report, advance=shown.advance)
    if is_main():
        tell(f"Done. {_next(recipe, str(folder))}")


def _next(recipe: Recipe, folder: str) -> str:
    if recipe.stage == "compress":
        if read_adapter(Path(folder)).for_encoder:
            return f"Measure it: ccm evaluate custom --data FILE --adapter {folder}"
        if is_running_text(recipe.data.name, recipe.data.path):
            return f"Read a text with it: ccm stream FILE --adapter {folder}"
        return f"Talk to it: ccm chat --adapter {folder}"
    key, talk = ("model", f"--model {folder} --rule full") if recipe.merge else ("base_adapter", f"--adapter {folder}")
    return (
        f"Now train an adapter on it, with --stage compress --set {key}={folder}; or talk to it, in full context: "
        f"ccm chat {talk}"
    )


def _show(recipe: Recipe, resume: bool, start: Path | None) -> None:
    """Print the resolved recipe, one sample with its blocks and COMP slots, parameters and memory."""
    console = plain_console()
    run = None if recipe.output_dir is None else Run(Path(recipe.output_dir), recipe, start)
    if run is not None:
        run.check(resume=resume)
    check_trackers(recipe)
    turns = open_turns(recipe)
    data, stage = open_data(recipe.data, turns, recipe.seed), make_stage(recipe, turns)
    check(recipe, data, stage)
    batches = Batches.of(recipe, data)
    if run is not None and (checkpoint := run.previous()):
        check_checkpoint(checkpoint, stage, batches)
    sample = data.pool(0, 1)[0]
    console.print(write_recipe(replace(recipe, turns=turns.form)))
    console.print("One sample; the text after > is learned.\n")
    console.print(picture(sample, stage))
    trained = sum(tensor.numel() for tensor in stage.trained.values())
    whole = sum(parameter.numel() for parameter in stage.module.parameters())
    console.print(f"\nThe training changes {trained:,} of {whole:,} parameters ({trained / whole:.2%}).")
    needs = estimate(recipe, stage, islice(batches.since(0), recipe.pool))
    console.print(
        f"Estimated memory of a process: {size(needs.total)} (weights {size(needs.weights)}, gradients and moments "
        f"{size(needs.trained)}, activations of a pass {size(needs.activations)}, logits {size(needs.logits)}"
        + (f", libraries and free heap {size(needs.heap)})." if needs.heap else ").")
    )
