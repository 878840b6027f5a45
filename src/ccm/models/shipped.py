"""The adapters that ship with the package. This module imports no model."""

from __future__ import annotations

from pathlib import Path

from ccm.core.errors import ConfigError
from ccm.core.rules import RULES, rule_class
from ccm.models.builtin import NAME, START, WEIGHTS
from ccm.models.catalogue import ADAPTERS, MODELS


def shipped(base: object) -> list[Path]:
    """The folders of the adapters that ship with the package for a model of that name, called as their rules."""
    place = WEIGHTS if base == NAME else ADAPTERS / str(base) if base in MODELS else None
    return sorted(path.parent for path in place.glob("*/ccm_config.json")) if place else []


def shipped_adapter(base: object, rule: str | None) -> Path | None:
    """The shipped adapter for a rule, or another that can run it; the first if no rule is given; None if none ships.

    Raises:
        ConfigError: when none of those that ship runs under the rule.
    """
    by_rule = {folder.name: folder for folder in shipped(base)}
    if not by_rule and base == NAME:
        raise ConfigError(f"The built-in model is not in {WEIGHTS}; build it with `make builtin`.")
    if not by_rule or rule is None or rule_class(rule).compresses == "never":
        return next(iter(by_rule.values()), None)
    for name in (rule, *rule_class(rule).adapters):
        if name in by_rule:
            return by_rule[name]
    runs = [r.name for r in RULES.values() if r.compresses == "never" or by_rule.keys() & {r.name, *r.adapters}]
    raise ConfigError(
        f"The model {base!r} ships with no adapter for the rule {rule!r}; it runs as {', '.join(sorted(runs))}."
    )


def check_no_model(adapter: object) -> None:
    """Refuse the short name of a model where an adapter is to be named.

    Raises:
        ConfigError: in this case.
    """
    rules = [folder.name for folder in shipped(adapter)]
    if rules and not Path(str(adapter)).is_dir():
        raise ConfigError(
            f"{adapter} is a model. To take an adapter that ships for it, name it as the model, and a rule: "
            f"{', '.join(rules)}."
        )


def starting_adapter(place: str, rule: str) -> str | Path:
    """What the training of an adapter begins with: where ``place`` is the short name of a model, the adapter that ships
    for the rule, or else another that ships; any other place itself."""
    if place == NAME:
        return START
    by_rule = {folder.name: folder for folder in shipped(place)}
    return by_rule.get(rule, next(iter(by_rule.values()), place))


def first_stage(place: str) -> Path:
    """Where ``place`` is the short name of a model, the first stage of the adapters that ship for it; any other place
    itself."""
    return ADAPTERS / place / "base" if place in MODELS and shipped(place) else Path(place)
