"""Folders as the authors publish their adapters, good and bad ones."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def authors_folder(folder: Path, *, pickled: bool, comp: bool) -> dict[str, torch.Tensor]:
    """An adapter as the authors' code saves it; returns what it wrote."""
    folder.mkdir()
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{prefix}.lora_A.weight": torch.randn(2, 32), f"{prefix}.lora_B.weight": torch.randn(32, 2)}
    if comp:
        tensors["base_model.model.model.embed_tokens.comp_embeddings.weight"] = torch.randn(4, 32)
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return tensors


class Malicious:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.mkdir, (str(self.mark),)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


COMP = "base_model.model.model.embed_tokens.comp_embeddings.weight"


def theirs(
    folder: Path,
    rows: int = 2,
    *,
    change: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    dtype: torch.dtype = torch.float32,
    safe: bool = False,
    **settings: Any,
) -> Path:
    """An adapter of the tiny Llama as the authors' code saves it; without rows it is a stage-1 adapter."""
    folder.mkdir(parents=True)
    told = {
        "r": 2,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "target_modules": [*TARGETS],
        "peft_type": "LORA",
        **settings,
    }
    (folder / "adapter_config.json").write_text(json.dumps(told))
    generator = torch.Generator().manual_seed(rows)
    tensors = {
        f"base_model.model.model.layers.{layer}.self_attn.{target}.lora_{side}.weight": 0.25
        * torch.randn(*shape, generator=generator)
        for layer in range(3)
        for target in TARGETS
        for side, shape in (("A", (2, 32)), ("B", (32, 2)))
    }
    if rows:
        tensors[COMP] = 0.25 * torch.randn(rows, 32, generator=generator)
    if change:
        change(tensors)
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors") if safe else torch.save(tensors, folder / "pytorch_model.bin")
    return folder
