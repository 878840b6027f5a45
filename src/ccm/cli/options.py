"""Options that several verbs have, by the settings that they fill in, and in groups."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from json import loads
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_origin

from typer import Option

from ccm.cli.completion import models, rules
from ccm.core.errors import ConfigError, DataError
from ccm.evaluation.settings import Quantization

T = TypeVar("T")


def numbers(given: str | None) -> list[int] | None:
    """Whole numbers with commas between them."""
    try:
        return None if given is None else [int(number) for number in given.split(",")]
    except ValueError:
        raise ConfigError(f"{given}: write whole numbers with commas between them, such as 1,2,4.") from None


def _known_base(model: str | None) -> str | None:
    """Check that a base model exists, without importing torch."""
    if model is not None:
        from ccm.models.locate import check_base

        check_base(model)
    return model


def known_adapter(adapter: str | None) -> str | None:
    """Check that an adapter exists, without importing torch; returns its folder.

    Of a checkpoint, or of a training that is not done, it is what was learned so far.
    """
    if adapter is None:
        return None
    from ccm.core.adapter_folders import CONFIG, find_adapter, is_plain_lora
    from ccm.models.shipped import check_no_model

    check_no_model(adapter)
    if not is_plain_lora(adapter) and not (Path(adapter) / CONFIG).is_file():
        if Path(adapter).exists():
            from ccm.training.results import adapter_of

            return str(adapter_of(adapter))
        find_adapter(adapter)
    return adapter


def _known_adapters(adapters: Sequence[str]) -> list[str]:
    return [str(known_adapter(adapter)) for adapter in adapters]


def existing(what: str = "the one that holds your data") -> Callable[[Any], Any]:
    """A callback that takes files or folders only if they are there: a path, or several.

    Raises:
        DataError: by the callback, naming the first that is not, and what it should be.
    """

    def check(given: Path | list[Path] | None) -> Path | list[Path] | None:
        for path in given if isinstance(given, list) else [given]:
            if path is not None and not path.exists():
                raise DataError(f"There is no file or folder {path}; name {what}.")
        return given

    return check


def _table(given: Sequence[str] | None) -> dict[str, Any] | None:
    """NAME=VALUE pairs as a table; each value is JSON."""
    table = {}
    for pair in given or ():
        name, _, value = pair.partition("=")
        try:
            table[name] = loads(value)
        except ValueError:
            raise ConfigError(f"--rule-option {pair}: write NAME=VALUE with a number, such as weight=0.3.") from None
    return table or None


Recurrent = Annotated[
    bool | None,
    Option("--recurrent/--no-recurrent", help="Whether a step sees the memory while it is read (the adapter's own)."),
]
Lines = Annotated[bool, Option("--json", help="One JSON object a line on standard output.")]
Text, Number, Names = str | None, int | None, list[str] | None

SETTINGS: dict[str, Any] = {  # by the name of a field in a group of settings
    "model": Annotated[
        Text,
        Option(
            help="Base model: folder, Hub id, short name, or 'builtin' (without --adapter).",
            callback=_known_base,
            autocompletion=models,
        ),
    ],
    "adapter": Annotated[
        Text, Option(help="Adapter: folder, Hub id, or checkpoint of a training.", callback=known_adapter)
    ],
    "adapters": Annotated[
        list[str],
        Option(
            "--adapter",
            metavar="DIR",
            help="Adapter or checkpoint, under its own rule; repeatable.",
            callback=_known_adapters,
        ),
    ],
    "rule": Annotated[
        Text,
        Option(help="Rule of memory: concat, gate, merge, full, none ... (the adapter's own).", autocompletion=rules),
    ],
    "rule_options": Annotated[
        Names, Option("--rule-option", metavar="NAME=VALUE", help="Such as weight=0.3 for ema; repeatable.")
    ],
    "rules": Annotated[
        Names,
        Option(
            "--rule",
            metavar="NAME",
            help="Rule to compare, on the first adapter that can run it; repeatable. Without any, that of the adapter "
            "which ships for the model; for tasks full and none, too.",
            autocompletion=rules,
        ),
    ],
    "baselines": Annotated[
        Names,
        Option(
            "--baseline",
            metavar="NAME",
            help="Baseline to compare; repeatable. Tasks, at equal K/V: window (with sink), bm25, embedding, static, "
            "pool. Streams, with a sink: window (always full, the default), blocks (drops what is compressed).",
        ),
    ],
    "n_tok": Annotated[Number, Option(help="COMP tokens a step that the adapter must have.")],
    "recurrent": Recurrent,
    "device": Annotated[Text, Option(help="Such as cpu or cuda:0.")],
    "dtype": Annotated[str, Option(help="auto, float64, float32, bfloat16 or float16.")],
    "quantize": Annotated[
        Quantization | None,
        Option(help="Store the base's weights in fewer bits: by torchao, or by bitsandbytes (8bit, 4bit)."),
    ],
    "strict": Annotated[
        bool, Option("--strict", help="Refuse a quantized or fine-tuned relative of the adapter's base.")
    ],
    "output": Annotated[Path | None, Option(help="Folder for results, report and pictures; goes on where it was.")],
    "depths": Annotated[
        Text, Option("--steps", "--k", help="Time steps, such as 1,2,4 (all of the task).", callback=numbers)
    ],
    "most": Annotated[
        int, Option(help="Most questions of each kind (task of MetaICL, category of LoCoMo) at every step; 0 is all.")
    ],
    "batch": Annotated[int, Option(help="Answers at a time.")],
    "generate": Annotated[
        Number, Option(help="Most new tokens of replies, which are judged as texts; 0 is none (the task's own).")
    ],
    "control": Annotated[
        bool, Option(help="Read each query with another conversation's memory, too: how much of a gain is content.")
    ],
    "room": Annotated[Number, Option(help="Entries that a baseline keeps (as many as concat: N a step, and one).")],
    "embedder": Annotated[Text, Option(help="Model of the baseline embedding: folder or Hub id.")],
    "temperature": Annotated[float, Option(help="Of what is generated; 0 is greedy.")],
    "top_k": Annotated[int, Option(help="Sample from the k likeliest tokens; 0 is all.")],
    "top_p": Annotated[float, Option(help="Sample from the likeliest tokens of this probability.")],
    "seed": Annotated[Number, Option(help="Of the sampling.")],
}


@dataclass(frozen=True)
class ModelOptions:
    """One model under one rule."""

    model: str | None = None
    adapter: str | None = None
    rule: str | None = None
    rule_options: list[str] | None = None
    n_tok: int | None = None
    recurrent: bool | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Quantization | None = None
    strict: bool = False

    def chosen(self) -> dict[str, Any]:
        """As ``ccm.load`` takes it."""
        return {**asdict(self), "rule_options": _table(self.rule_options)}


@dataclass(frozen=True)
class SamplingOptions:
    """How the next token is chosen."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None


def unfold(command: Callable[..., T]) -> Callable[..., T]:
    """The command with an option for each field of a parameter that is a group of settings.

    A group is a dataclass, and may have groups as fields. :data:`SETTINGS` declares the option of a field, unless the
    field itself does.
    """
    parameters = _fields(command)
    shown = [*_options(parameters)]

    @wraps(command)
    def unfolded(**given: Any) -> T:
        return command(**_filled(parameters, given))

    vars(unfolded)["__signature__"] = inspect.Signature(shown)
    unfolded.__annotations__ = {one.name: one.annotation for one in shown}
    return unfolded


def _options(parameters: Mapping[str, inspect.Parameter]) -> Iterator[inspect.Parameter]:
    for name, one in parameters.items():
        if is_dataclass(one.annotation):
            yield from _options(_fields(one.annotation))
        else:
            declared = one.annotation if get_origin(one.annotation) is Annotated else SETTINGS[name]
            yield one.replace(kind=one.KEYWORD_ONLY, annotation=declared)


def _filled(parameters: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a command, its groups built from the values of their fields."""
    arguments = {}
    for name, one in parameters.items():
        group: Any = one.annotation
        grouped = is_dataclass(one.annotation)
        arguments[name] = group(**_filled(_fields(group), given)) if grouped else given[name]
    return arguments


def _fields(group: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(group, eval_str=True).parameters
