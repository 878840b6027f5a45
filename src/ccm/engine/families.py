"""The stock model: which families the seams reach, where their parts are, and how they are loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn
from transformers import (
    Cache,
    PreTrainedModel,
)

from ccm.core.errors import UnsupportedModelError

_QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
PROJECTIONS: dict[str, tuple[str, ...]] = {  # model_type -> the projections of its attention
    "llama": _QKVO,
    "mistral": _QKVO,
    "qwen2": _QKVO,
    "qwen3": _QKVO,
    "gemma3_text": _QKVO,
    "phi3": ("qkv_proj", "o_proj"),
    "smollm3": _QKVO,
    "olmo2": _QKVO,
    "gpt_neox": ("query_key_value", "dense"),
    "t5": ("q", "k", "v", "o"),
    "mixtral": _QKVO,
    "qwen3_moe": _QKVO,
    "gemma2": _QKVO,
    "cohere": _QKVO,
    "cohere2": _QKVO,
    "glm4": _QKVO,
    "exaone4": _QKVO,
    "granite": _QKVO,
    "starcoder2": _QKVO,
    "gpt2": ("c_attn", "c_proj"),
    "llama4_text": _QKVO,
}


def attention_modules(base: PreTrainedModel) -> list[nn.Module]:
    """The attention modules of all layers, of an encoder-decoder those of the encoder, in order.

    Raises:
        UnsupportedModelError: when the model is not of a family that both seams reach.
    """
    family = base.config.model_type
    check_family(family, type(base).__name__)
    names = PROJECTIONS[family]
    reader = base.get_encoder() if base.config.is_encoder_decoder else base
    found = [m for m in reader.modules() if hasattr(m, "layer_idx") and all(hasattr(m, n) for n in names)]
    if len(found) != base.config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{type(base).__name__} has {base.config.num_hidden_layers} layers, but {len(found)} attention modules "
            f"with {', '.join(names)}; this version of transformers lays the family out differently."
        )
    return found


def last_layer(base: PreTrainedModel) -> nn.Module:
    """The last decoder layer: what the last attention module stands in."""
    last = attention_modules(base)[-1]
    path = next(path for path, module in base.named_modules() if module is last)
    return base.get_submodule(path.rpartition(".")[0])


def decoder(base: PreTrainedModel) -> nn.Module:
    """The stock model without its output head."""
    return getattr(base, "model", base.base_model)  # Llama 4's text model is not what its base_model says


def projection_paths(base: PreTrainedModel) -> list[str]:
    """The projections of all layers by their whole names in the model: elsewhere there may be others of the same name.

    Raises:
        UnsupportedModelError: as :func:`attention_modules`.
    """
    attentions = {*attention_modules(base)}
    names = PROJECTIONS[base.config.model_type]
    return [f"{path}.{name}" for path, module in base.named_modules() if module in attentions for name in names]


def check_family(model_type: str | None, name: str) -> None:
    """Refuse a type of model that the seams do not reach.

    Raises:
        UnsupportedModelError: with the list of those that they do.
    """
    if model_type not in PROJECTIONS:
        raise UnsupportedModelError(
            f"{name} is of the type {model_type!r}, which is not supported. "
            f"Use a model of one of these types: {', '.join(sorted(PROJECTIONS))}."
        )


@cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def given_cache(model: PreTrainedModel, held: Cache) -> dict[str, Cache]:
    """The argument that hands a cache to a model: ``cache`` from transformers 5.24 on, ``past_key_values`` before."""
    return {_cache_argument(type(model).forward): held}


def entry_sizes(base: PreTrainedModel) -> tuple[tuple[int, int], ...]:
    """Per layer, the K/V heads and their dimension."""
    text = base.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // text.num_attention_heads
    return ((heads, dim),) * text.num_hidden_layers


def max_positions(base: PreTrainedModel) -> int:
    """Text positions the model was made for, without those at which its rope changes."""
    config = base.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond it, other frequencies: keys in a memory would no longer fit
        return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
    return getattr(config, "max_position_embeddings", 1 << 30)  # T5 knows distances alone, and they have no end
