"""Fingerprints: which base model and which adapter a memory or an adapter belongs to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ccm.quantization import matrices

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


def fingerprint_base(base: PreTrainedModel, stage1: str = "") -> str:
    """16 hex digits of a base model as it was loaded, before any LoRA is put on it.

    From the architecture and, evenly spread over the sorted weight names, the signs of up to 1,024 values each of 64
    tensors: a cast to another floating-point dtype or a move to another device rounds values but keeps their signs,
    while a fine-tuning step flips many. Of a base that was quantized as it was loaded, they are those of its files.
    ``stage1`` is the fingerprint of a stage-1 adapter that is merged afterwards.

    Raises:
        ConfigError: when the files of a quantized base are not where it was loaded from.
    """
    config = base.config.get_text_config()
    digest = hashlib.sha256(json.dumps({k: getattr(config, k, None) for k in _SETTINGS}, sort_keys=True).encode())
    weights = matrices(base)
    names = list(weights)
    for name in names[:: max(1, len(names) // TENSORS)][:TENSORS]:
        tensor = weights[name]()
        picked = tensor.flatten()[:: max(1, tensor.numel() // SAMPLE)][:SAMPLE].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(torch.signbit(picked).numpy().tobytes())
    digest.update(stage1.encode())
    return digest.hexdigest()[:16]


def fingerprint_tensors(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> str:
    """16 hex digits of an adapter: its tensors sorted by name, as float32, and its settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
