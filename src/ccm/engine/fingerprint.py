"""Fingerprints: they identify base models and adapters, so that memories and adapters are read by the right ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ccm.engine.quantization import matrices

RELATED = 0.05  # the share of signs that may differ between a base and its relatives, quantized or fine-tuned
SAMPLE = 1024  # values sampled from each tensor
TENSORS = 64  # tensors in the sample
_SETTINGS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rope_parameters",
    "sliding_window",
    "use_sliding_window",
    "max_window_layers",
    "layer_types",
    "no_rope_layers",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "use_parallel_residual",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)


def sample_signs(base: PreTrainedModel) -> dict[str, Tensor]:
    """Which values in a sample of a base's weights are negative: by tensor, (up to 1,024,) bool.

    The sample has 64 tensors, at equal distances from the first of the sorted names on. Another floating-point dtype or
    device keeps the signs, while fine-tuning flips many of them. For a base that was quantized on loading, the values
    come from its files.

    Raises:
        ConfigError: when the files of a quantized base are no longer where it was loaded from.
    """
    weights, signs = matrices(base), {}
    names = list(weights)
    for name in names[:: max(1, len(names) // TENSORS)][:TENSORS]:
        tensor = weights[name]()
        picked = tensor.flatten()[:: max(1, tensor.numel() // SAMPLE)][:SAMPLE].float().cpu()
        signs[f"{name} {tuple(tensor.shape)}"] = torch.signbit(picked)
    return signs


def pack_signs(signs: Mapping[str, Tensor]) -> Tensor:
    """The signs of a sample as bits, (up to 8,192,) uint8, to be compared by :func:`flipped`."""
    return torch.from_numpy(numpy.packbits(torch.cat([*signs.values()]).numpy()))


def flipped(one: Tensor, other: Tensor) -> float:
    """The share of packed signs that differ, from 0 to 1; 1 if their numbers differ."""
    if one.shape != other.shape:
        return 1.0
    return float(numpy.unpackbits((one ^ other).numpy()).mean()) if one.numel() else 0.0


def effective_settings(config: PretrainedConfig) -> dict[str, Any]:
    """The settings that identify a base, by their effect: files that spell the same settings differently agree.

    Args:
        config: the config of the text part.
    """
    found = {name: getattr(config, name, None) for name in _SETTINGS if name != "vocab_size"}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = found["num_key_value_heads"] or heads
    found["head_dim"] = found["head_dim"] or (found["hidden_size"] // heads if heads and found["hidden_size"] else None)
    found["rope_parameters"] = {"rope_type": "default", **(found["rope_parameters"] or {})}
    if not found["sliding_window"] or found["use_sliding_window"] is False:
        found |= dict.fromkeys(("sliding_window", "use_sliding_window", "max_window_layers"))
    if {*(found["layer_types"] or ())} <= {"full_attention"}:
        found["layer_types"] = None
    if {*(found["no_rope_layers"] or ())} <= {1}:
        found["no_rope_layers"] = None
    return {name: _rounded(value) for name, value in found.items() if value is not None}


def _rounded(value: Any) -> Any:
    """The value with all floats rounded to the precision of float32, also within tables and lists."""
    if isinstance(value, Mapping):
        return {name: _rounded(inner) for name, inner in value.items() if inner is not None}
    if isinstance(value, list | tuple):
        return [*map(_rounded, value)]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def fingerprint_base(base: PreTrainedModel, stage1: str = "", signs: Mapping[str, Tensor] | None = None) -> str:
    """The fingerprint of a base model before any LoRA is added: 16 hex digits from its architecture and signs.

    Args:
        base: the model.
        stage1: fingerprint of a stage-1 adapter that will be merged into the base.
        signs: result of :func:`sample_signs`; computed if None.

    Raises:
        ConfigError: see :func:`sample_signs`.
    """
    config = base.config.get_text_config()
    digest = hashlib.sha256(json.dumps({k: getattr(config, k, None) for k in _SETTINGS}, sort_keys=True).encode())
    for name, negative in (sample_signs(base) if signs is None else signs).items():
        digest.update(name.encode())
        digest.update(negative.numpy().tobytes())
    digest.update(stage1.encode())
    return digest.hexdigest()[:16]


def fingerprint_tensors(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """The fingerprint of an adapter: 16 hex digits from its settings and its tensors in float32, sorted by name."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
