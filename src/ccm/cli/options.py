"""Options that several verbs have, one by one and in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from ccm.core.errors import ConfigError

T = TypeVar("T")

Model = Annotated[
    str | None,
    typer.Option(help="Base model: folder, Hub id, short name, or 'builtin' (the default, without --adapter)."),
]
Adapter = Annotated[str | None, typer.Option(help="Compression adapter: folder, Hub id, or checkpoint of a training.")]
Adapters = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="DIR", help="Compression adapter or checkpoint, under its own rule; repeatable."),
]
RuleName = Annotated[
    str | None, typer.Option(help="Rule of memory: concat, gate, merge, full, none ... (the adapter's own).")
]
RuleOptions = Annotated[
    list[str] | None,
    typer.Option("--rule-option", metavar="NAME=VALUE", help="Such as weight=0.3 for ema; repeatable."),
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
Dtype = Annotated[str, typer.Option(help="auto, float64, float32, bfloat16 or float16.")]
Quantize = Annotated[
    Literal["int8", "8bit", "4bit"] | None,
    typer.Option(help="Store the base's weights in fewer bits: by torchao, or by bitsandbytes (8bit, 4bit)."),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a quantized or fine-tuned relative of the adapter's base.")
]


@dataclass(frozen=True)
class BaseOptions:
    """A base model, for several adapters and rules."""

    model: Model = None
    n_tok: NTok = None
    device: Device = None
    dtype: Dtype = "auto"
    quantize: Quantize = None


@dataclass(frozen=True)
class ModelOptions:
    """One model under one rule."""

    model: Model = None
    adapter: Adapter = None
    rule: RuleName = None
    rule_option: RuleOptions = None
    n_tok: NTok = None
    recurrent: Recurrent = None
    device: Device = None
    dtype: Dtype = "auto"
    quantize: Quantize = None
    strict: Strict = False

    def chosen(self) -> dict[str, Any]:
        """As ``ccm.load`` takes it; a base that is nowhere is refused at once, before torch is imported."""
        if self.model is not None:
            from ccm.models.locate import check_base

            check_base(self.model)
        given = asdict(self)
        given["rule_options"] = _table(given.pop("rule_option"))
        given["adapter"] = given["adapter"] and trained(given["adapter"])
        return given


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: Annotated[float, typer.Option(help="Of what is generated; 0 is greedy.")] = 0.0
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is all.")] = 0
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None


def unfold(command: Callable[..., T]) -> Callable[..., T]:
    """The command with the fields of a group of options, a dataclass, in the place of the parameter that takes it."""
    every = inspect.signature(command, eval_str=True).parameters
    kinds: dict[str, Callable[..., Any]] = {name: parameter.annotation for name, parameter in every.items()}
    groups = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    fields = {name: inspect.signature(group, eval_str=True).parameters for name, group in groups.items()}
    shown = [one for name, own in every.items() for one in (fields[name].values() if name in fields else [own])]

    @wraps(command)
    def unfolded(**given: Any) -> T:
        built = {name: group(**{key: given.pop(key) for key in fields[name]}) for name, group in groups.items()}
        return command(**built, **given)

    vars(unfolded)["__signature__"] = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in shown])
    unfolded.__annotations__ = {one.name: one.annotation for one in shown}
    return unfolded


def trained(adapter: str) -> str:
    """Where an adapter is: of a checkpoint, or of a run that is not done, what it has learned so far."""
    from ccm.training.results import adapter_of

    return str(adapter_of(adapter))


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
