"""``ccm chat``, ``demo`` and ``writes``: one model and its memory."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.console import importing
from ccm.cli.options import Lines, ModelOptions, SamplingOptions, unfold


@unfold
def chat(
    model: ModelOptions,
    sampling: SamplingOptions,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    load: Annotated[Path | None, typer.Option(help="Go on from a saved memory.")] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Talk without end in so many entries: memory, at most half of them, and recent text as it is."
        ),
    ] = None,
    system: Annotated[
        str, typer.Option(help="A message that stands before all turns as it is, never compressed.")
    ] = "",
    json: Lines = False,
) -> None:
    """Talk to a model whose past is a compressed memory. /help lists what else you can say.

    Not on a terminal: one user turn a line on standard input, one reply a line on standard output.
    """
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not json
    chosen = model.chosen()  # refuses what it can before torch is imported
    if on_terminal:
        print("Loading ...", end="\r", flush=True)  # the first line of the chat replaces it
    with importing():
        from ccm.cli.commands.chat import run
        from ccm.engine.sampling import Sampling

    choosing = Sampling(**asdict(sampling), repetition_penalty=repetition_penalty, max_new_tokens=max_new_tokens)
    raise typer.Exit(run(chosen, choosing, load, window, system, on_terminal=on_terminal, as_json=json))


@unfold
def demo(
    model: ModelOptions,
    file: Annotated[Path | None, typer.Option(help="Your own example: turns, a question, the expected answer.")] = None,
    json: Lines = False,
) -> None:
    """Answer one question in one parallel pass, from the memory built step by step, and without context."""
    chosen = model.chosen()
    with importing():
        from ccm.cli.commands.demo import run

    run(chosen, file, as_json=json)


@unfold
def writes(
    model: ModelOptions,
    file: Annotated[Path | None, typer.Option(help="Your own example, as of the demo.")] = None,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("writes.png"),
) -> None:
    """Draw which step wrote which entry of a memory that mixes its steps."""
    from ccm.cli.commands.writes import run

    if model.rule is None and model.adapter is None:
        model = replace(model, rule="gate")  # of the built-in adapters the one that mixes
    run(model.chosen(), file, output)
