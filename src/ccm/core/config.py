"""CCMConfig: the settings that belong to an adapter, and the checks that all settings share."""

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
    """A field for a finite number from ``least`` to ``most``, both included; :func:`check_fields` enforces them."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True)
class LoRASettings:
    """The low-rank update of the attention projections.

    Attributes:
        r: rank; with 0 there is no LoRA and only the COMP embeddings are trained (ablation).
        alpha: numerator of the scale ``alpha / r``.
        dropout: probability on the input of the update, in training only.
        conditional: True adds the update at COMP tokens only (the method); False adds it at all tokens (ablation).
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
        template: "separators" writes the first turn as ``[BOS] preamble text reply_separator`` and later ones as
            ``separator text reply_separator``; "chat" uses the tokenizer's chat template.
        separator: precedes every turn but the first.
        reply_separator: stands between a turn and its reply.
        preamble: precedes the first turn; with "chat" it is the system message.
    """

    template: Template = "separators"
    separator: str = "\nUser:"
    reply_separator: str = "\nAssistant:"
    preamble: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "turns.")


@dataclass(frozen=True)
class CCMConfig:
    """The settings of a compressed context memory, saved with its adapter as ``ccm_config.json``.

    Attributes:
        rule: name of the rule that turns COMP entries into the memory (a key of ``ccm.core.rules.RULES``).
        rule_options: keyword arguments of the rule, e.g. ``{"weight": 0.3}`` for "ema".
        n_tok: N, the number of COMP tokens after each step (under gist, after the whole context).
        min_n_tok: the smallest N that the adapter is trained with; ``n_tok`` if None.
        max_n_tok: the largest N, which is also the number of COMP embeddings; ``n_tok`` if None.
        recurrent: whether a step sees Mem(t-1) while it is read and compressed.
        sink: whether the first token stays visible to all later tokens, as one extra entry that is never mixed.
        positions: "skip" (COMP tokens take no text positions) or "base" (they take positions as text does).
        embeddings: "separate" keeps the COMP embeddings beside the embedding table, "table" inside it.
        lora: the low-rank update.
        turns: how conversations become tokens.
        base_model: where the base model was loaded from; a hint for loading it again.
        base_fingerprint: fingerprint of the base model that the adapter belongs to; empty until it is saved.
        base_vocab_size: rows of the base model's embedding table; None until it is saved, or if it is unknown.

    Raises:
        ConfigError: when a value is not allowed, or the three numbers of COMP tokens are not in order.
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
    _commit_hash = None  # pipeline() of transformers 5.3 reads it of every model's config

    def __post_init__(self) -> None:
        check_fields(self)
        least, most = self.n_tok_range
        if not 1 <= least <= self.n_tok <= most:
            raise ConfigError(
                f"n_tok is {self.n_tok}, min_n_tok {least}, max_n_tok {most}; "
                "min_n_tok <= n_tok <= max_n_tok must hold, and all must be at least 1."
            )

    @property
    def n_tok_range(self) -> tuple[int, int]:
        """The smallest and the largest N that the adapter is trained with."""
        return (
            self.n_tok if self.min_n_tok is None else self.min_n_tok,
            self.n_tok if self.max_n_tok is None else self.max_n_tok,
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CCMConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: when a key is unknown or a value is not allowed; the message names it.
        """
        return build_settings(cls, values, "ccm_config.json", " Was it written by a newer ccm?")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def check_fields(settings: Any, prefix: str = "") -> None:
    """Refuse a dataclass with a value of another type than its field declares, or out of bounds.

    A field that is a float also takes a whole number.

    Raises:
        ConfigError: with the field, its value and what is allowed.
    """
    for name, hint in get_type_hints(type(settings)).items():
        value, choices = getattr(settings, name), _choices(hint)
        if not any(_fits(value, choice) for choice in choices):
            allowed = " or ".join(map(_allowed, choices))
            empty = " An empty one is '', its quotes included." if value is None and str in choices else ""
            raise ConfigError(f"{prefix}{name} is {value!r}; {allowed}.{empty}")
    for limited in (item for item in fields(settings) if "bounds" in item.metadata):
        (least, most), value = limited.metadata["bounds"], getattr(settings, limited.name)
        if value is not None and not (least <= value <= most and abs(value) != math.inf):
            allowed = (
                f"from {least} to {most}" if most < math.inf else f"at least {least}" if least > -math.inf else "finite"
            )
            raise ConfigError(f"{prefix}{limited.name} is {value}; it must be {allowed}.")


def check_count(value: Any, name: str) -> int:
    """The value as an int.

    Raises:
        InputError: when it is not a whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def _choices(hint: Any) -> tuple[Any, ...]:
    """The types of a union, of either kind that Python has (``X | Literal[...]`` makes a ``typing.Union``)."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return value in get_args(hint)
    fits = isinstance(value, (int, float) if kind is float else kind)
    return fits and (kind is bool or not isinstance(value, bool))  # in Python, True is an int


def _allowed(hint: Any) -> str:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return f"allowed: {', '.join(map(str, get_args(hint)))}"
    return "null" if kind is NoneType else f"it must be {_KINDS.get(kind, 'a table of settings')}"


def _table_of(hint: Any) -> type | None:
    """The dataclass among the types of a field; None where it holds plain values."""
    return next((choice for choice in _choices(hint) if isinstance(choice, type) and is_dataclass(choice)), None)


def build_settings(cls: type[T], values: Any, where: str, advice: str = "") -> T:
    """Build a dataclass of settings, and the dataclasses within it, from plain values.

    Args:
        cls: the dataclass.
        values: a table, such as JSON or TOML gives.
        where: what the messages call the table.
        advice: follows the message about unknown keys.

    Raises:
        ConfigError: when ``values`` is not a table, a key is unknown, or a value is not allowed.
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
