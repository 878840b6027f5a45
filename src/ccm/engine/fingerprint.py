"""Fingerprints: which base model and which adapter a memory or an adapter belongs to."""

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

RELATED = 0.05  # of the signs that a relative of a base, quantized or fine-tuned, may have otherwise
SAMPLE = 1024  # values looked at in each tensor of the sample
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
    """Which values of a sample of a base, as it was loaded, are negative: (up to 1,024,) bool a tensor.

    The sample is of 64 tensors, evenly spread over the sorted weight names. A cast to another floating-point dtype or a
    move to another device rounds values but keeps their signs, while a fine-tuning step flips many. Of a base that was
    quantized as it was loaded, they are those of its files.

    Raises:
        ConfigError: when the files of a quantized base are not where it was loaded from.
    """
    weights, signs = matrices(base), {}
    names = list(weights)
    for name in names[:: max(1, len(names) // TENSORS)][:TENSORS]:
        tensor = weights[name]()
        picked = tensor.flatten()[:: max(1, tensor.numel() // SAMPLE)][:SAMPLE].float().cpu()
        signs[f"{name} {tuple(tensor.shape)}"] = torch.signbit(picked)
    return signs


def pack_signs(signs: Mapping[str, Tensor]) -> Tensor:
    """The signs of a sample as bits, (up to 8,192,) uint8: kin of a base have most of them in common."""
    return torch.from_numpy(numpy.packbits(torch.cat([*signs.values()]).numpy()))


def flipped(one: Tensor, other: Tensor) -> float:
    """The share of packed signs that differ; 1 where there are not as many."""
    if one.shape != other.shape:
        return 1.0
    return float(numpy.unpackbits((one ^ other).numpy()).mean()) if one.numel() else 0.0


def effective_settings(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of a base that a fingerprint is of, by their effect: what some files spell otherwise is the same.

    Args:
        config: of the text part.
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
    """Numbers as precisely as float32 holds them, in tables and lists, too."""
    if isinstance(value, Mapping):
        return {name: _rounded(held) for name, held in value.items() if held is not None}
    if isinstance(value, list | tuple):
        return [*map(_rounded, value)]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def fingerprint_base(base: PreTrainedModel, stage1: str = "", signs: Mapping[str, Tensor] | None = None) -> str:
    """16 hex digits of a base model as it was loaded, before any LoRA is put on it: of its architecture and ``signs``.

    Args:
        base: the model.
        stage1: fingerprint of a stage-1 adapter that is merged afterwards.
        signs: of :func:`sample_signs`, where they are at hand.

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
    """16 hex digits of an adapter: its tensors sorted by name, as float32, and its settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
