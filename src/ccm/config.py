"""CCMConfig: everything that must travel with an adapter, and every check across its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ccm.errors import ConfigError

Positions = Literal["skip", "base"]
Embeddings = Literal["separate", "table"]
Template = Literal["separators", "chat"]


@dataclass(frozen=True)
class LoRASettings:
    """The low-rank update of the attention projections.

    Attributes:
        r: rank.
        alpha: numerator of the scale ``alpha / r``.
        dropout: probability on the input of the update, in training only.
        conditional: True adds the update at COMP tokens alone (the method); False adds it everywhere (ablation).
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    conditional: bool = True

    def __post_init__(self) -> None:
        _check_types(self, "lora.")
        if self.r < 1:
            raise ConfigError(f"lora.r is {self.r}; it must be at least 1.")
        if not math.isfinite(self.alpha):
            raise ConfigError(f"lora.alpha is {self.alpha}; it must be finite.")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"lora.dropout is {self.dropout}; it must be in [0, 1).")


@dataclass(frozen=True)
class TurnFormat:
    """How a turn of a conversation becomes tokens (see :mod:`ccm.turns`).

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
        _check_types(self, "turns.")


@dataclass(frozen=True)
class CCMConfig:
    """The settings of one compressed context memory; stored beside its adapter as ``ccm_config.json``.

    Attributes:
        rule: name of the rule by which the steps' COMP entries become the memory (``ccm.rules.RULES``).
        rule_options: keyword arguments of that rule, e.g. ``{"weight": 0.3}`` for "ema".
        n_tok: N, the COMP tokens a step (or a context, under gist).
        recurrent: whether a step sees Mem(t-1) while it is read and compressed.
        sink: whether the first token stays visible to all, as one extra entry outside any mixing.
        positions: "skip" (COMP tokens take no text positions) or "base" (they count like text).
        embeddings: "separate" keeps the COMP rows beside the embedding table, "table" inside it.
        lora: the low-rank update.
        turns: how conversations become tokens.
        base_model: where the base model was loaded from, as a hint for loading it again.
        base_fingerprint: fingerprint of the base model the adapter belongs to; empty until it is saved.
    """

    rule: str = "concat"
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    n_tok: int = 2
    recurrent: bool = True
    sink: bool = False
    positions: Positions = "skip"
    embeddings: Embeddings = "separate"
    lora: LoRASettings = field(default_factory=LoRASettings)
    turns: TurnFormat = field(default_factory=TurnFormat)
    base_model: str = ""
    base_fingerprint: str = ""

    def __post_init__(self) -> None:
        _check_types(self)
        if self.n_tok < 1:
            raise ConfigError(f"n_tok is {self.n_tok}; it must be a whole number of at least 1.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CCMConfig:
        """The inverse of :meth:`to_dict`.

        Raises:
            ConfigError: on a key that this version does not know, or a value that it does not allow, naming it.
        """
        return _build(cls, values, "ccm_config.json")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _check_types(settings: LoRASettings | TurnFormat | CCMConfig, prefix: str = "") -> None:
    """Refuse a field whose value is not of its declared type; a whole number will do for a float."""
    for name, hint in get_type_hints(type(settings)).items():
        value, kind = getattr(settings, name), get_origin(hint) or hint
        if kind is Literal:
            fits, allowed = value in get_args(hint), f"allowed: {', '.join(get_args(hint))}"
        else:
            fits = isinstance(value, (int, float) if kind is float else kind)
            fits = fits and (kind is bool or not isinstance(value, bool))  # to Python, True is a whole number
            allowed = f"it must be {_KINDS.get(kind, 'a table of settings')}"
        if not fits:
            raise ConfigError(f"{prefix}{name} is {value!r}; {allowed}.")


def _build(cls: type, values: Mapping[str, Any], where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} holds {values!r}; it must be a table of settings.")
    hints = get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where} has unknown keys {unknown}; known: {sorted(known)}. Was it written by a newer ccm?")
    nested = {
        name: _build(hints[name], value, f"{where}: {name}")
        for name, value in values.items()
        if hints[name] in (LoRASettings, TurnFormat) and isinstance(value, Mapping)
    }
    return cls(**{**values, **nested})
