"""CCMConfig: everything that must travel with an adapter, and every check across its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from numbers import Integral
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ccm.core.errors import ConfigError, InputError, did_you_mean

Positions = Literal["skip", "base"]
Embeddings = Literal["separate", "table"]
Template = Literal["separators", "chat"]
T = TypeVar("T")


def bounded(default: float | None, least: float = -math.inf, most: float = math.inf) -> Any:
    """A finite number as a field of settings, with its bounds, both included; :func:`check_fields` enforces them."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class LoRASettings:
    """The low-rank update of the attention projections.

    Attributes:
        r: rank; 0 is no LoRA, so that the COMP embeddings alone are trained (ablation).
        alpha: numerator of the scale ``alpha / r``.
        dropout: probability on the input of the update, in training only.
        conditional: True adds the update at COMP tokens alone (the method); False adds it everywhere (ablation).
    """

    r: int = bounded(8, 0)
    alpha: float = bounded(16.0)
    dropout: float = 0.05
    conditional: bool = True

    def __post_init__(self) -> None:
        check_fields(self, "lora.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")


@dataclass(frozen=True)
class TurnFormat:
    """How a turn of a conversation becomes tokens (see :mod:`ccm.chat.turns`).

    Attributes:
        template: "separators" writes ``[BOS] preamble text reply_separator`` at first and
            ``separator text reply_separator`` later; "chat" uses the tokenizer's chat template.
        separator: precedes every later turn.
        reply_separator: stands between a turn and its reply.
        preamble: precedes the first turn; with "chat", the system message.
    """

    template: Template = "separators"
    separator: str = "\nUser:"
    reply_separator: str = "\nAssistant:"
    preamble: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "turns.")


@dataclass(frozen=True)
class CCMConfig:
    """The settings of one compressed context memory; stored beside its adapter as ``ccm_config.json``.

    Attributes:
        rule: name of the rule by which the steps' COMP entries become the memory (``ccm.core.rules.RULES``).
        rule_options: keyword arguments of that rule, e.g. ``{"weight": 0.3}`` for "ema".
        n_tok: N, the COMP tokens a step (or a context, under gist).
        min_n_tok: the smallest N that the adapter is trained with; ``n_tok`` alone where None.
        max_n_tok: the largest, and so the number of COMP embeddings; ``n_tok`` alone where None.
        recurrent: whether a step sees Mem(t-1) while it is read and compressed.
        sink: whether the first token stays visible to all, as one extra entry outside any mixing.
        positions: "skip" (COMP tokens take no text positions) or "base" (they count like text).
        embeddings: "separate" keeps the COMP rows beside the embedding table, "table" inside it.
        lora: the low-rank update.
        turns: how conversations become tokens.
        base_model: where the base model was loaded from, as a hint for loading it again.
        base_fingerprint: fingerprint of the base model the adapter belongs to; empty until it is saved.
        base_vocab_size: rows of that model's embedding table; None until it is saved, and where it is not known.
    """

    rule: str = "concat"
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    n_tok: int = bounded(2, 1)
    min_n_tok: int | None = None
    max_n_tok: int | None = None
    recurrent: bool = True
    sink: bool = False
    positions: Positions = "skip"
    embeddings: Embeddings = "separate"
    lora: LoRASettings = field(default_factory=LoRASettings)
    turns: TurnFormat = field(default_factory=TurnFormat)
    base_model: str = ""
    base_fingerprint: str = ""
    base_vocab_size: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        least, most = self.n_tok_range
        if not 1 <= least <= self.n_tok <= most:
            raise ConfigError(
                f"n_tok is {self.n_tok}, min_n_tok {least}, max_n_tok {most}; they must be in order, and at least 1."
            )

    @property
    def n_tok_range(self) -> tuple[int, int]:
        """The smallest and the largest N that the adapter is trained with."""
        return (
            self.n_tok if self.min_n_tok is None else self.min_n_tok,
            self.n_tok if self.max_n_tok is None else self.max_n_tok,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CCMConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: on a key that this version does not know, or a value that it does not allow, naming it.
        """
        return build_settings(cls, values, "ccm_config.json", " Was it written by a newer ccm?")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_fields(settings: Any, prefix: str = "") -> None:
    """Refuse a field of a dataclass whose value is not of its declared type, or not within its bounds.

    A whole number will do for a float.

    Raises:
        ConfigError: naming the field, its value and what is allowed.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value, choices = getattr(settings, name), _choices(hint)
        if not any(_fits(value, choice) for choice in choices):
            allowed = " or ".join(map(_allowed, choices))
            empty = " An empty one is '', its quotes included." if value is None and str in choices else ""
            raise ConfigError(f"{prefix}{name} is {value!r}; {allowed}.{empty}")
    for limited in (item for item in fields(settings) if "bounds" in item.metadata):
        (least, most), value = limited.metadata["bounds"], getattr(settings, limited.name)
        if value is not None and not (least <= value <= most and math.isfinite(value)):
            allowed = (
                f"from {least} to {most}" if most < math.inf else f"at least {least}" if least > -math.inf else "finite"
            )
            raise ConfigError(f"{prefix}{limited.name} is {value}; it must be {allowed}.")


def check_count(value: Any, name: str) -> int:
    """The value, where it is a whole number.

    Raises:
        InputError: naming it.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union; Python makes two kinds of them, one for those with a Literal among them."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    fits = isinstance(value, (int, float) if kind is float else kind)
    return fits and (kind is bool or not isinstance(value, bool))  # to Python, True is a whole number


def _allowed(hint: Any) -> str:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return f"allowed: {', '.join(map(str, get_args(hint)))}"
    return "null" if kind is NoneType else f"it must be {_KINDS.get(kind, 'a table of settings')}"


def _table_of(hint: Any) -> type | None:
    """The dataclass that a field holds, or may hold; None where it holds plain values."""
    return next((choice for choice in _choices(hint) if isinstance(choice, type) and is_dataclass(choice)), None)


def build_settings(cls: type[T], values: Any, where: str, advice: str = "") -> T:
    """A dataclass of settings, those within it included, from plain values.

    Raises:
        ConfigError: on what is no table, on unknown keys with the likeliest known one, and on values not allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} holds {values!r}; it must be a table of settings.")
    hints = get_type_hints(cls)
    if unknown := sorted(map(str, set(values) - set(hints))):
        meant = did_you_mean(unknown, hints) or f" Known are {', '.join(sorted(hints))}."
        raise ConfigError(f"{where} has unknown keys {unknown}.{meant}{advice}")
    nested: dict[str, Any] = {
        name: build_settings(table, value, f"{where}: {name}", advice)
        for name, value in values.items()
        if (table := _table_of(hints[name])) and value is not None and not isinstance(value, table)
    }
    return cls(**{**values, **nested})
