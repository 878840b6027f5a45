"""Which methods are compared: rules, each on an adapter that can run with it, and adapters under their own rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from ccm.core.adapter_folders import find_adapter, is_plain_lora, read_config
from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError
from ccm.engine.adapter_files import with_rule
from ccm.evaluation.settings import Selection
from ccm.models.builtin import NAME
from ccm.models.load import load as load_model
from ccm.models.shipped import shipped_adapter

Configs = Mapping[str, CCMConfig]  # of adapters, by their folders or Hub ids


@dataclass(frozen=True)
class Method:
    """A rule on an adapter.

    Attributes:
        name: what tables and pictures call it.
        rule: of memory; None is the adapter's own.
        adapter: its folder or Hub id; None for one that ships with the base, or where the rule needs none.
    """

    name: str
    rule: str | None
    adapter: str | None


M = TypeVar("M", bound=Method)


class Models:
    """The models of methods. A base is loaded once for all rules, and for adapters that can share its weights.

    Args:
        selection: names the base, and how it is loaded.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._loaded: tuple[object, Any, PreTrainedTokenizerBase] | None = None  # the latest adapter, model, tokenizer

    def grouped(self, methods: Sequence[M]) -> list[M]:
        """The methods in the order in which each adapter is loaded once."""
        adapters = [self._adapter(method) for method in methods]
        first = {method.name: adapters.index(adapter) for method, adapter in zip(methods, adapters, strict=True)}
        return sorted(methods, key=lambda method: first[method.name])

    def load(self, method: Method, **changes: Any) -> tuple[Any, PreTrainedTokenizerBase]:
        """The model of a method, and its tokenizer. It shares its weights with the model before, on the same adapter.

        Args:
            method: says the adapter, and the rule.
            changes: of the adapter's config; None leaves a setting as it is.

        Raises:
            ConfigError, AdapterError: as ``ccm.load``.
        """
        adapter = self._adapter(method)
        if self._loaded is None or self._loaded[0] != adapter:
            self._loaded = (adapter, *self._read(method, adapter))
        _, model, tokenizer = self._loaded
        return model.under(method.rule, **{k: v for k, v in changes.items() if v is not None}), tokenizer

    def _read(self, method: Method, adapter: str | Path | None) -> tuple[Any, PreTrainedTokenizerBase]:
        if self._loaded is not None and adapter is not None and not is_plain_lora(adapter):
            _, model, tokenizer = self._loaded
            if model.shares_base(read_config(find_adapter(adapter))):
                return model.with_adapter(adapter), tokenizer
            del model
        self._loaded, chosen = None, self._selection  # there is room for one base
        return load_model(
            self._base(method),
            adapter,
            rule=None if adapter else method.rule,
            device=chosen.device,
            dtype=chosen.dtype,
            quantize=chosen.quantize,
            strict=chosen.strict,
        )

    def _base(self, method: Method) -> str | None:
        return self._selection.model if method.adapter or self._selection.model else NAME

    def _adapter(self, method: Method) -> str | Path | None:
        return method.adapter or shipped_adapter(self._base(method), method.rule)


def shipped_rules(selection: Selection) -> tuple[str, ...]:
    """The rule that a chat with the model of a selection takes, by an adapter that ships; none where one is named."""
    own = None if selection.adapters else shipped_adapter(selection.model or NAME, None)
    return () if own is None else (own.name,)


def read_configs(adapters: Sequence[str]) -> dict[str, CCMConfig]:
    """The config of each adapter; that of a plain LoRA, as of stage 1, compresses nothing.

    Raises:
        AdapterError: when an adapter is absent, or cannot be read.
    """
    return {
        adapter: CCMConfig(rule="full") if is_plain_lora(adapter) else read_config(find_adapter(adapter))
        for adapter in adapters
    }


def adapter_for(configs: Configs, rule: str) -> str | None:
    """The first adapter that can run under a rule; None where there is no adapter at all.

    Raises:
        ConfigError: when none of the adapters can.
    """
    refused = None
    for adapter, config in configs.items():
        try:
            with_rule(config, rule)
        except ConfigError as error:
            refused = error
        else:
            return adapter
    if refused is not None:
        raise refused
    return None


def own_rules(configs: Configs, named: Sequence[str]) -> list[Method]:
    """Each adapter under its own rule, by the rule's name; where that is taken, its folder stands beside it.

    Args:
        configs: of the adapters.
        named: rules that are methods by themselves. An adapter that one of them takes is no further method under it,
            nor is a plain LoRA beside "full".
    """
    taken = {(adapter_for(configs, rule), rule) for rule in named if rule in {own.rule for own in configs.values()}}
    rule_of = {a: config.rule for a, config in configs.items() if not ("full" in named and is_plain_lora(a))}
    compared = {adapter: rule for adapter, rule in rule_of.items() if (adapter, rule) not in taken}
    rules, folders = [*compared.values()], [Path(adapter).name for adapter in compared]
    methods = []
    for (adapter, rule), folder in zip(compared.items(), folders, strict=True):
        alone = rules.count(rule) == 1 and rule not in named
        told = folder if folders.count(folder) == 1 else adapter
        methods.append(Method(rule if alone else f"{rule} ({told})", None, adapter))
    return methods


def named_once(methods: list[M]) -> list[M]:
    """The methods, once it is sure that each has a name of its own.

    Raises:
        ConfigError: when there is no method, or several have the same name.
    """
    if not methods:
        raise ConfigError("There is no method to compare; give adapters=DIR, rules=NAME or baselines=NAME.")
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{', '.join(twice)} is asked for twice; name each rule, adapter and baseline once.")
    return methods
