"""One line to a model with its memory: ``model, tokenizer = ccm.load(...)``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ccm.core.adapter_folders import base_of, find_adapter, is_plain_lora
from ccm.core.config import CCMConfig, TurnFormat, build_settings
from ccm.core.errors import ConfigError, reason
from ccm.core.hub import why
from ccm.core.rules import make_rule, rule_class
from ccm.engine.adapter_files import SavedAdapter, read_adapter, read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.quantization import Quantization
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.models.base import HUB, load_base
from ccm.models.builtin import NAME
from ccm.models.builtin import TURNS as BUILTIN_TURNS
from ccm.models.gguf import gguf_file
from ccm.models.locate import check_place, is_builtin, locate
from ccm.models.published import MODELS, paper_model, turns_for
from ccm.models.shapes import check_dtype
from ccm.models.shipped import check_no_model, shipped_adapter

TURNS = "ccm_turns.json"  # beside a base or a plain LoRA that was trained here: how its conversations are written


@overload
def load(
    model: Literal["builtin"] | None = None, adapter: None = None, **options: Any
) -> tuple[CCMModel, PreTrainedTokenizerBase]: ...
@overload
def load(
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    rule: str | None = None,
    rule_options: Mapping[str, Any] | None = None,
    n_tok: int | None = None,
    recurrent: bool | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: Quantization | None = None,
    base_revision: str | None = None,
    strict: bool = False,
    **options: Any,
) -> tuple[CCMModel | CCMEncoderDecoder, PreTrainedTokenizerBase]: ...
def load(
    model: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    rule: str | None = None,
    rule_options: Mapping[str, Any] | None = None,
    n_tok: int | None = None,
    recurrent: bool | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: Quantization | None = None,
    base_revision: str | None = None,
    strict: bool = False,
    **options: Any,
) -> tuple[CCMModel | CCMEncoderDecoder, PreTrainedTokenizerBase]:
    """A model under a rule of memory and its tokenizer.

    Args:
        model: folder or Hub id of the base, or a short name: of the paper's models
            (:data:`ccm.models.published.MODELS`), of those that ``ccm models get`` fetches, or "builtin", which ships
            with the package. None takes the adapter's own base, or "builtin" where there is no adapter either.
        adapter: folder or Hub id of an adapter of ours, or folder of a plain LoRA (stage 1), which runs as "full" or
            "none". None takes an adapter that ships for the model; without any, a model runs as "full" or "none".
        rule: as in :class:`CCMConfig`; the adapter's own where None.
        rule_options: such as ``{"weight": 0.3}`` for the rule "ema"; the adapter's own, or the rule's defaults.
        n_tok: another N of those that the adapter was trained with, or its own to insist on.
        recurrent: another value of the flag.
        device: such as "cpu" or "cuda:0"; a CUDA device if there is one where None.
        dtype: "auto", "float64", "float32", "bfloat16", "float16", or torch's own of that name, ``torch.bfloat16``.
        quantize: how to store the base's weights in fewer bits: "int8" (torchao), "8bit" or "4bit" (bitsandbytes).
        base_revision: of the base on the Hub.
        strict: refuse a quantized or fine-tuned relative of the base that the adapter was trained on.
        options: such as ``device_map``, ``attn_implementation`` and ``quantization_config``, passed on to
            ``from_pretrained`` of transformers; the tokenizer gets those of the Hub. With an adapter, ``revision`` is
            the adapter's; without one it is the base's.

    Raises:
        ConfigError: when model, rule, device, dtype or quantization cannot be had.
        AdapterError: when the adapter is absent, damaged, or of another base model.
    """
    named = check_dtype(dtype)
    if "torch_dtype" in options:  # transformers would leave it aside
        raise ConfigError("torch_dtype is called dtype here, as in transformers 5.")
    if rule is not None:
        make_rule(rule, dict(rule_options)) if rule_options else rule_class(rule)
    place = {"device": device, "dtype": getattr(torch, named, named), "quantize": quantize, **options}
    changes: dict[str, Any] = {"rule_options": rule_options, "n_tok": n_tok, "recurrent": recurrent}
    changes = {name: value for name, value in changes.items() if value is not None}
    check_no_model(adapter)
    base = NAME if model is None and adapter is None else model
    adapter = shipped_adapter(base, rule) if adapter is None else adapter
    if adapter is None or is_plain_lora(adapter):
        return _without_memory(base, adapter, rule, changes, {**place, **_revision(base_revision)})
    saved, stock = find_parts(adapter, base, base_revision=base_revision, **place)
    loaded = model_class(stock).on(stock, saved, str(adapter), rule=rule, strict=strict, **changes)
    return loaded, load_tokenizer(stock.name_or_path, {**options, "revision": base_revision})


def find_parts(
    adapter: str | Path,
    base: str | Path | PreTrainedModel | None,
    *,
    revision: str | None = None,
    base_revision: str | None = None,
    **place: Any,
) -> tuple[SavedAdapter, PreTrainedModel]:
    """An adapter as it was saved, and its base; arguments and errors as of :meth:`AdaptedModel.from_pretrained`."""
    folder = find_adapter(adapter, revision=revision, **{name: place[name] for name in HUB if name in place})
    saved = read_adapter(folder)
    if isinstance(base, PreTrainedModel):
        return saved, base
    return saved, load_base(base or base_of(folder, saved.config), **place, **_revision(base_revision))


def _without_memory(
    base: str | Path | None, lora: str | Path | None, rule: str | None, changes: dict[str, Any], place: dict[str, Any]
) -> tuple[CCMModel | CCMEncoderDecoder, PreTrainedTokenizerBase]:
    """A base that compresses nothing: as it is, or with a plain LoRA in its weights."""
    stage1 = None if lora is None else read_stage1(Path(lora))
    if base is None and stage1 is not None:
        base = stage1.settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{lora} does not name its base model; say which, as model=MODEL.")
    rule = rule or ("full" if stage1 else CCMConfig.rule)
    if stage1 is None:
        check_alone(base, rule)
    elif rule_class(rule).compresses != "never":
        raise ConfigError(
            f"{lora} is a plain LoRA, and the rule {rule!r} needs a compression adapter: train one on it, with that "
            "folder as its base_adapter, or take rule='full' or rule='none'."
        )
    config = CCMConfig(rule=rule, **changes)
    stock, tokenizer = load_base(base, **place), load_tokenizer(base, place)
    trained = Path(lora) if lora is not None and (Path(lora) / TURNS).is_file() else base
    config = replace(config, turns=turn_format(trained, tokenizer))
    return model_class(stock)(stock, config, stage1=stage1).eval(), tokenizer


def _revision(of_base: str | None) -> dict[str, Any]:
    return {} if of_base is None else {"revision": of_base}


def model_class(base: PreTrainedModel) -> type[CCMModel | CCMEncoderDecoder]:
    """The class of a base under a rule of memory."""
    return CCMEncoderDecoder if base.config.is_encoder_decoder else CCMModel


def check_alone(base: str | Path, rule: str) -> None:
    """Refuse a rule that a base cannot run under by itself.

    Raises:
        ConfigError: when the rule compresses, or there is no such base.
    """
    if rule_class(rule).compresses != "never":
        if gguf_file(base) is None:  # a copy is not made only to refuse it
            check_place(locate(base))
        raise ConfigError(
            f"The rule {rule!r} needs an adapter for {base}; name one, or take rule='full' or rule='none'."
        )


def turn_format(base: str | Path, tokenizer: PreTrainedTokenizerBase) -> TurnFormat:
    """How conversations with a base are written: as the authors do under its short name, as it was trained here, by its
    chat template, or as plain text.

    Raises:
        ConfigError: when what its folder says of it cannot be read.
    """
    if is_builtin(base):
        return BUILTIN_TURNS
    if str(base) in MODELS and (known := paper_model(base)):
        return turns_for(None, chat=known.chat)
    if not (Path(base) / TURNS).is_file():
        return TurnFormat(template="chat" if tokenizer.chat_template else "separators")
    return read_turns(Path(base))


def read_turns(folder: Path) -> TurnFormat:
    """How conversations are written with what was trained here, a base or a plain LoRA, as its folder says.

    Raises:
        ConfigError: when it does not.
    """
    path = folder / TURNS
    try:
        return build_settings(TurnFormat, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {reason(error)}") from error


def load_tokenizer(source: str | Path, options: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder or on the Hub. Of the ``options``, only those of the Hub are used.

    Raises:
        ConfigError: when there is none.
    """
    given = options or {}
    hub = {name: given[name] for name in HUB if given.get(name) is not None}
    try:
        return AutoTokenizer.from_pretrained(
            locate(source, **hub), trust_remote_code=given.get("trust_remote_code"), **hub
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"There is no tokenizer in {source}: {why(error, source)}") from error
