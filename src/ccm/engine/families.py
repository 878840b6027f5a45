"""Stock models: which families are supported, and where the parts of each are."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import nn

from ccm.core.errors import UnsupportedModelError

if TYPE_CHECKING:  # a model's config alone is read without the code of models, which takes seconds to import
    from transformers import Cache, PreTrainedConfig, PreTrainedModel

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
_TEXT_PART = {"llama4": "llama4_text"}  # model types with a vision part, which transformers does not load


def attention_modules(base: PreTrainedModel) -> list[nn.Module]:
    """The attention modules of all layers, in order; those of the encoder in an encoder-decoder.

    Raises:
        UnsupportedModelError: when the model's family is not supported.
    """
    family = base.config.model_type
    check_family(family, type(base).__name__)
    names = PROJECTIONS[family]
    reader = base.get_encoder() if base.config.is_encoder_decoder else base
    found = [m for m in reader.modules() if hasattr(m, "layer_idx") and all(hasattr(m, n) for n in names)]
    if len(found) != base.config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{type(base).__name__} has {base.config.num_hidden_layers} layers, but {len(found)} attention modules "
            f"with {', '.join(names)}; this version of transformers names their parts differently."
        )
    return found


def last_layer(base: PreTrainedModel) -> nn.Module:
    """The last decoder layer, which contains the last attention module."""
    last = attention_modules(base)[-1]
    path = next(path for path, module in base.named_modules() if module is last)
    return base.get_submodule(path.rpartition(".")[0])


def decoder(base: PreTrainedModel) -> nn.Module:
    """The stock model without its output head."""
    return getattr(base, "model", base.base_model)  # base_model is wrong for the text model of Llama 4


def projection_paths(base: PreTrainedModel) -> list[str]:
    """The full names of all attention projections; other parts of a model may repeat the short ones.

    Raises:
        UnsupportedModelError: see :func:`attention_modules`.
    """
    attentions = {*attention_modules(base)}
    names = PROJECTIONS[base.config.model_type]
    return [f"{path}.{name}" for path, module in base.named_modules() if module in attentions for name in names]


def check_family(model_type: str | None, name: str) -> None:
    """Refuse a ``model_type`` that is not supported; ``name`` names the model in the message.

    Raises:
        UnsupportedModelError: with the list of supported types.
    """
    if _TEXT_PART.get(str(model_type), model_type) not in PROJECTIONS:
        raise UnsupportedModelError(
            f"{name} is of the type {model_type!r}, which is not supported. "
            f"Use a model of one of these types: {', '.join(sorted(PROJECTIONS))}."
        )


@cache
def _cache_argument(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def given_cache(model: PreTrainedModel, value: Cache) -> dict[str, Cache]:
    """The argument that passes a cache to a model: ``cache`` since transformers 5.24, ``past_key_values`` before."""
    return {_cache_argument(type(model).forward): value}


def entry_sizes(config: PreTrainedConfig) -> tuple[tuple[int, int], ...]:
    """Per layer: the number of K/V heads, and the dimension of a head."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or getattr(text, "d_kv", None) or text.hidden_size // text.num_attention_heads
    return ((heads, dim),) * text.num_hidden_layers


def max_positions(config: PreTrainedConfig) -> int:
    """The number of text positions that a model was made for, as far as its rope stays the same."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # longer texts use other frequencies: keys in a memory would not fit
        return rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
    return getattr(text, "max_position_embeddings", 1 << 30)  # T5 uses distances, which have no limit


def windows(config: PreTrainedConfig) -> tuple[int | None, ...]:
    """Per layer: how many tokens of text its sliding window or chunk holds; None if it sees all text."""
    text = config.get_text_config()
    sliding = getattr(text, "sliding_window", None)
    sizes = {"sliding_attention": sliding, "chunked_attention": getattr(text, "attention_chunk_size", None)}
    types = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(sizes.get(kind) for kind in types)
