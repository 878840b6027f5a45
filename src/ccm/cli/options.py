"""Options that several verbs have."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ccm.errors import ConfigError

Model = Annotated[
    str | None,
    typer.Option(help="Base model: folder, Hub id, short name, or 'builtin' (the default, without --adapter)."),
]
Adapter = Annotated[str | None, typer.Option(help="Compression adapter: folder or Hub id.")]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="Compression adapter, under its own rule; repeatable.")
]
RuleName = Annotated[
    str | None, typer.Option(help="Rule of memory: concat, gate, merge, full, none ... (the adapter's own).")
]
RuleOptions = Annotated[
    list[str] | None, typer.Option("--rule-option", help="NAME=VALUE, such as weight=0.3 for ema; repeatable.")
]
NTok = Annotated[int | None, typer.Option(help="COMP tokens a step that the adapter must have.")]
Recurrent = Annotated[
    bool | None,
    typer.Option(
        "--recurrent/--no-recurrent", help="Whether a step sees the memory while it is read (the adapter's own)."
    ),
]
Output = Annotated[Path | None, typer.Option(help="Folder for results, report and pictures; goes on where it was.")]
Lines = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantize = Annotated[
    Literal["int8", "8bit", "4bit"] | None,
    typer.Option(help="Store the base's weights in fewer bits: by torchao, or by bitsandbytes (8bit, 4bit)."),
]


def choice(
    model: str | None,
    adapter: str | None,
    rule: str | None,
    rule_option: list[str] | None,
    n_tok: int | None,
    recurrent: bool | None,
    device: str | None,
    dtype: str,
    quantize: str | None,
) -> dict[str, Any]:
    """The model that was asked for, as ``ccm.load`` takes it."""
    return {
        "model": model,
        "adapter": adapter,
        "rule": rule,
        "rule_options": _table(rule_option),
        "n_tok": n_tok,
        "recurrent": recurrent,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
    }


def _table(given: list[str] | None) -> dict[str, Any] | None:
    """NAME=VALUE pairs as a table; a value is written as in JSON."""
    table = {}
    for pair in given or ():
        name, _, value = pair.partition("=")
        try:
            table[name] = loads(value)
        except ValueError:
            raise ConfigError(f"--rule-option {pair}: write NAME=VALUE with a number, such as weight=0.3.") from None
    return table or None
