"""Which methods are compared: rules, each on an adapter that it runs with, and adapters under their own rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError
from ccm.engine.adapter_files import find_adapter, is_plain_lora, read_config, with_rule
from ccm.models.builtin import NAME
from ccm.models.load import load as load_model
from ccm.models.load import shipped_adapter


@dataclass(frozen=True)
class Method:
    """A rule on an adapter.

    Attributes:
        name: what it is called in tables and pictures.
        rule: of memory; None is the adapter's own.
        adapter: its folder; None for the built-in one, or where the base needs none.
    """

    name: str
    rule: str | None
    adapter: str | None


class Models:
    """The models of methods on one base: an adapter is loaded with its base once, whatever rules run on it.

    Args:
        base: as ``ccm.load`` takes it.
        place: the same of device, dtype and quantization.
    """

    def __init__(self, base: str | None, **place: Any) -> None:
        self._base, self._place = base, place
        self._held: tuple[Any, Any, PreTrainedTokenizerBase] | None = None  # the latest adapter, its model, a tokenizer

    def load(self, method: Method, **changes: Any) -> tuple[Any, PreTrainedTokenizerBase]:
        """The model of a method, and its tokenizer; ``changes`` are of its config, left as they are where None.

        Raises:
            ConfigError, AdapterError: as ``ccm.load``.
        """
        base = self._base if method.adapter or self._base else NAME
        adapter = method.adapter or shipped_adapter(base, method.rule)
        if self._held is None or self._held[0] != adapter:
            self._held = None  # there is room for one
            loaded = load_model(base, adapter, rule=None if adapter else method.rule, **self._place)
            self._held = (adapter, *loaded)
        _, model, tokenizer = self._held
        return model.under(method.rule, **{k: v for k, v in changes.items() if v is not None}), tokenizer


M = TypeVar("M", bound=Method)


def adapter_for(adapters: Sequence[str], rule: str) -> str | None:
    """The first adapter that runs with that rule; None where there are none, for the built-in one, or none at all.

    Raises:
        ConfigError: when it runs with none of them.
        AdapterError: when one cannot be read.
    """
    if not adapters:
        return None
    for adapter in adapters:
        try:
            with_rule(settings_of(adapter), rule)
        except ConfigError as error:
            refused = error
        else:
            return adapter
    raise refused


def settings_of(adapter: str) -> CCMConfig:
    """Those of an adapter; a plain LoRA, as of stage 1, compresses nothing.

    Raises:
        AdapterError: when it is absent, or cannot be read.
    """
    return CCMConfig(rule="full") if is_plain_lora(adapter) else read_config(find_adapter(adapter))


def own_rules(adapters: Sequence[str], named: Sequence[str]) -> list[Method]:
    """Each adapter under its own rule, by the rule's name; its folder stands beside it where others are called so.

    Args:
        adapters: the folders or Hub ids.
        named: rules that are methods by themselves.

    Raises:
        AdapterError: when an adapter cannot be read.
    """
    adapters = [adapter for adapter in adapters if not ("full" in named and is_plain_lora(adapter))]
    rules = [settings_of(adapter).rule for adapter in adapters]
    folders = [Path(adapter).name for adapter in adapters]
    found = []
    for adapter, rule, folder in zip(adapters, rules, folders, strict=True):
        alone = rules.count(rule) == 1 and rule not in named
        place = folder if folders.count(folder) == 1 else adapter
        found.append(Method(rule if alone else f"{rule} ({place})", None, adapter))
    return found


def named_once(methods: list[M]) -> list[M]:
    """The methods themselves, after a look at their names.

    Raises:
        ConfigError: when there is none, or several have the same name.
    """
    if not methods:
        raise ConfigError("There is no method to compare; give adapter=DIR, rule=NAME or baseline=NAME.")
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)} is asked for twice; name each rule, adapter and baseline once.")
    return methods
