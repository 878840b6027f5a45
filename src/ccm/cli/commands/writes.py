"""``ccm writes``: a picture of which step wrote which entry of the memory."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill, shorten
from typing import Any

from ccm.chat.turns import make_turns
from ccm.cli.commands.demo import read_example, split_turn
from ccm.cli.console import loading, plain_console, quiet
from ccm.core.errors import InputError, reason
from ccm.core.extras import needs
from ccm.engine.layout import Step
from ccm.evaluation.writes import draw_writes, write_weights
from ccm.models.load import load as load_model


def run(choice: dict[str, Any], file: Path | None, output: Path) -> None:
    """Draw the picture of an example, its question and answer being the last step.

    Raises:
        InputError: when the example cannot be read or the picture cannot be written.
        ConfigError: when the rule mixes nothing.
    """
    quiet()
    needs("matplotlib", extra="eval", what="A picture")
    if output.suffix.lower() != ".png":
        raise InputError(f"The picture is a PNG; name a file that ends in .png, not {output}.")
    *context, question, expected = read_example(file)
    with loading(choice):
        model, tokenizer = load_model(**choice)
    turns = make_turns(tokenizer, model.config.turns)
    lines = [split_turn(line) for line in context] + [(question, expected)]
    steps = [Step(turns.exchange(user, reply, first=i == 0).ids) for i, (user, reply) in enumerate(lines)]
    labels = [fill(shorten(user, 72, placeholder="\u2026"), 24) for user, _ in lines]
    try:
        weights, title = write_weights(model, steps, turns.head), f"Who wrote the memory: {model.config.rule}"
        draw_writes(weights, labels, title, output)
    except OSError as error:
        raise InputError(f"The picture {output} cannot be written: {reason(error)}.") from error
    plain_console().print(f"{output}: the memory after {len(steps)} steps, one row an entry of each head and layer.")
