"""Base models read on from a memory: a hook on their ``forward`` completes every call that gets a MemoryCache.

stock forward or generate with a MemoryCache  ->  the same call with the mask, the positions and the pass of its memory
"""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel

from ccm.core.errors import InputError
from ccm.engine.memory import MemoryCache


def attach_view(module: PreTrainedModel, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """The forward pre-hook: it adds the pass of the memory, and the mask and positions if the caller gave none.

    Raises:
        InputError: when mask or positions do not fit the memory, or the model keeps no cache.
    """
    if "ccm" in kwargs:
        return None
    if args:
        kwargs = {**inspect.signature(module.forward).bind_partial(*args).arguments, **kwargs}
    cache = kwargs.get("cache", kwargs.get("past_key_values"))  # the older name still works
    if not isinstance(cache, MemoryCache):
        return None
    check_caching(module)
    text = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
    mask = kwargs.get("attention_mask")
    if mask is None:
        mask = cache.mask_before(*text.shape[:2]).long()
    elif mask.ndim == 2 and mask.shape[1] != cache.get_seq_length() + text.shape[1]:
        raise InputError(
            f"The attention mask has {mask.shape[1]} columns; it needs {cache.get_seq_length() + text.shape[1]}: "
            f"{cache.columns.width} for the memory, the others for later text. Leave it out if nothing is padded; "
            "to generate, call generate of the CCMModel."
        )
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = cache.positions_of(mask, text.shape[1])
    elif cache.get_seq_length() == cache.columns.width and not cache.follows(positions):
        raise InputError(
            f"The text begins at position {int(positions.min())}, but the memory ends at "
            f"{cache.memory.offset.tolist()}. Leave position_ids out; to generate, call generate of the CCMModel."
        )
    current = cache.view(positions, mask if mask.ndim == 2 else cache.mask_before(*text.shape[:2]))
    return (), {**kwargs, "attention_mask": mask, "position_ids": positions, "ccm": current}


def check_caching(module: PreTrainedModel) -> None:
    """Refuse a base model that keeps no cache.

    Raises:
        InputError: when the model is in training with gradient checkpointing.
    """
    if module.training and any(getattr(part, "gradient_checkpointing", False) for part in module.modules()):
        raise InputError(
            "With gradient checkpointing, a model in training keeps no cache, and so no memory; call model.eval() "
            "first, or train with the parallel pass."
        )
