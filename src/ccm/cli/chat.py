"""``ccm chat``, ``demo`` and ``writes``: one model and its memory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccm.cli.options import Adapter, Device, Dtype, Model, NTok, Quantize, Recurrent, RuleName, RuleOptions, choice


def chat(
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    load: Annotated[Path | None, typer.Option(help="Go on from a saved memory.")] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Talk without end in so many entries: memory, at most half of them, and recent text as it is."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a turn on standard output.")] = False,
) -> None:
    """Talk to a model whose past is a compressed memory. /help lists what else you can say.

    Not on a terminal: one user turn a line on standard input, one reply a line on standard output.
    """
    from ccm.commands.chat import run
    from ccm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, max_new_tokens, seed)
    asked = choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    raise typer.Exit(run(asked, sampling, load, window, as_json=json))


def demo(
    file: Annotated[Path | None, typer.Option(help="Your own example: turns, a question, the expected answer.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Answer one question in one parallel pass, from the memory built step by step, and without context."""
    from ccm.commands.demo import run

    asked = choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    run(asked, file)


def writes(
    file: Annotated[Path | None, typer.Option(help="Your own example, as of the demo.")] = None,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("writes.png"),
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Draw which step wrote which entry of a memory that mixes its steps."""
    from ccm.commands.writes import run

    if rule is None and adapter is None:
        rule = "gate"  # of the built-in adapters the one that mixes
    asked = choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    run(asked, file, output)
