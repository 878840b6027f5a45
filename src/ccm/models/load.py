"""One line to a model with its memory: ``model, tokenizer = ccm.load(...)``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ccm.core.config import CCMConfig, TurnFormat, build_settings
from ccm.core.errors import ConfigError, reason
from ccm.core.hub import why
from ccm.core.rules import RULES, make_rule, rule_class
from ccm.engine.adapter_files import base_of, find_adapter, is_plain_lora, read_config, read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.quantization import Quantization
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.models.base import HUB, check_place, is_builtin, load_base, locate
from ccm.models.builtin import NAME, WEIGHTS
from ccm.models.builtin import TURNS as BUILTIN_TURNS
from ccm.models.catalogue import ADAPTERS
from ccm.models.catalogue import MODELS as CATALOGUE
from ccm.models.published import MODELS, paper_model, turns_for

TURNS = "ccm_turns.json"  # beside a base or a plain LoRA that was trained here: how its conversations are written
DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


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
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A model under a rule of memory, :class:`CCMModel` or (on T5) :class:`CCMEncoderDecoder`, and its tokenizer.

    Args:
        model: folder or Hub id of the base, or short name of one of the paper's models, such as "llama-2-7b-chat"
            (:data:`ccm.models.published.MODELS`); "builtin" is the one that ships with the package. None takes the
            adapter's own base, or "builtin" where there is no adapter either.
        adapter: folder or Hub id of an adapter of ours. The built-in model has its own; another base without one runs
            only under rules that compress nothing, as does the folder of a plain LoRA (stage 1), by itself as "full".
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
            ``AutoModelForCausalLM.from_pretrained``, and those of the Hub to the tokenizer's, too. With an adapter,
            ``revision`` is the adapter's; without one it is the base's.

    Raises:
        ConfigError: when model, rule, device, dtype or quantization cannot be had.
        AdapterError: when the adapter is absent, damaged, or of another base model.
    """
    named = str(dtype).removeprefix("torch.")
    if named not in DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}; allowed: {', '.join(DTYPES)}.")
    if "torch_dtype" in options:  # transformers would leave it aside
        raise ConfigError("torch_dtype is called dtype here, as in transformers 5.")
    if rule is not None:
        make_rule(rule, dict(rule_options)) if rule_options else rule_class(rule)
    base = NAME if model is None and adapter is None else model
    if adapter is None:
        adapter = shipped_adapter(base, rule)
    precision = {"dtype": named if named == "auto" else getattr(torch, named), "quantize": quantize}
    place = {"device": device, **precision, **options}
    changes: dict[str, Any] = {"rule_options": rule_options, "n_tok": n_tok, "recurrent": recurrent}
    if adapter is not None and is_plain_lora(adapter):
        given = {k: v for k, v in changes.items() if v is not None}
        return _on_plain_lora(Path(adapter), base, rule or "full", given, place)
    if adapter is not None:
        folder, stock = find_parts(adapter, base, base_revision=base_revision, **place)
        loaded = model_class(stock).from_pretrained(folder, stock, rule=rule, strict=strict, **changes)
        return loaded, load_tokenizer(loaded.base.name_or_path, {**options, "revision": base_revision})
    assert base is not None
    if base_revision is not None:
        place["revision"] = base_revision
    return _without_adapter(base, rule, {k: v for k, v in changes.items() if v is not None}, place)


def shipped(base: object) -> list[Path]:
    """The folders of the adapters that ship with the package for a model of that name; none for any other."""
    place = WEIGHTS if base == NAME else ADAPTERS / str(base) if base in CATALOGUE else None
    return sorted(path.parent for path in place.glob("*/ccm_config.json")) if place else []


def shipped_adapter(base: object, rule: str | None) -> Path | None:
    """The shipped adapter of that rule, or one that it runs with, the first where any would do; None where none is."""
    folders = shipped(base)
    if not folders and base == NAME:
        raise ConfigError(f"The built-in model is not in {WEIGHTS}; build it with `make builtin`.")
    if not folders:
        return None
    by_rule = {read_config(find_adapter(folder)).rule: folder for folder in folders}
    if rule is None or rule_class(rule).compresses == "never":
        return folders[0]
    for name in (rule, *rule_class(rule).adapters):
        if name in by_rule:
            return by_rule[name]
    runs = [r.name for r in RULES.values() if r.compresses == "never" or by_rule.keys() & {r.name, *r.adapters}]
    raise ConfigError(
        f"The model {base!r} ships with no adapter for the rule {rule!r}; it runs as {', '.join(sorted(runs))}."
    )


def check_alone(base: str | Path, rule: str) -> None:
    """Refuse a rule that a base cannot run under by itself.

    Raises:
        ConfigError: when it compresses, or there is no such base.
    """
    if rule_class(rule).compresses != "never":
        check_place(locate(base))
        raise ConfigError(
            f"The rule {rule!r} needs an adapter for {base}; name one, or take rule='full' or rule='none'."
        )


def _without_adapter(
    base: str | Path, rule: str | None, changes: dict[str, Any], place: dict[str, Any]
) -> tuple[Any, PreTrainedTokenizerBase]:
    check_alone(base, rule or "concat")
    assert rule is not None
    config = CCMConfig(rule=rule, **changes)
    stock, tokenizer = load_base(base, **place), load_tokenizer(base, place)
    return model_class(stock)(stock, replace(config, turns=turn_format(base, tokenizer))).eval(), tokenizer


def _on_plain_lora(
    folder: Path, base: str | Path | None, rule: str, changes: dict[str, Any], place: dict[str, Any]
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A base with a plain LoRA, such as one of stage 1, in its weights."""
    lora = read_stage1(folder)
    base = base or lora.settings.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{folder} does not name its base model; say which, as model=MODEL.")
    if rule_class(rule).compresses != "never":
        raise ConfigError(
            f"{folder} is a plain LoRA, and the rule {rule!r} needs a compression adapter: train one on it, with that "
            "folder as its base_adapter, or take rule='full' or rule='none'."
        )
    config = CCMConfig(rule=rule, **changes)
    stock, tokenizer = load_base(base, **place), load_tokenizer(base, place)
    turns = turn_format(folder if (folder / TURNS).is_file() else base, tokenizer)
    return model_class(stock)(stock, replace(config, turns=turns), stage1=lora).eval(), tokenizer


def model_class(base: PreTrainedModel) -> type[CCMModel | CCMEncoderDecoder]:
    """The class of a base under a rule of memory."""
    return CCMEncoderDecoder if base.config.is_encoder_decoder else CCMModel


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
    """The tokenizer in a folder or on the Hub, had with what of the ``options`` is the Hub's.

    Raises:
        ConfigError: when there is none.
    """
    given = options or {}
    hub = {name: given[name] for name in (*HUB, "trust_remote_code") if given.get(name) is not None}
    try:
        return AutoTokenizer.from_pretrained(locate(source), **hub)
    except (OSError, ValueError) as error:
        raise ConfigError(f"There is no tokenizer in {source}: {why(error, source)}") from error


def find_parts(
    adapter: str | Path,
    base: str | Path | PreTrainedModel | None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: Quantization | None = None,
    revision: str | None = None,
    base_revision: str | None = None,
    **options: Any,
) -> tuple[Path, PreTrainedModel]:
    """The folder of an adapter and its base; arguments and errors as of :meth:`AdaptedModel.from_pretrained`."""
    folder = find_adapter(adapter, revision=revision, **{k: options[k] for k in HUB if k in options})
    if isinstance(base, PreTrainedModel):
        return folder, base
    given = options if base_revision is None else {**options, "revision": base_revision}
    source = base or base_of(folder, read_config(folder))
    return folder, load_base(source, device=device, dtype=dtype, quantize=quantize, **given)
