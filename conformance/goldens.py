"""A folder of recorded numbers, and the differences of results from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaForCausalLM

from ccm.core.config import CCMConfig
from ccm.engine.adapter_files import read_plain_lora, read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.lora import PlainLoRA
from ccm.engine.memory import Memory, MemoryCache

NEW_TOKENS = 12
Differences = dict[str, float]  # by quantity
Group = Callable[["Goldens"], Iterator[tuple[str, Differences]]]  # yields (case, differences)


class Goldens:
    """A folder of recorded numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def json(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def arrays(self, name: str) -> dict[str, Tensor]:
        """The arrays of an npz file; the file is never unpickled."""
        with np.load(self.folder / name, allow_pickle=False) as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        return load_file(self.folder / name)

    def model(self, config: CCMConfig, adapter: str | None = None, stage1: str | None = None) -> CCMModel:
        """The tiny base model under a config, with an adapter of the folder; EOS does not end a generation."""
        base = LlamaForCausalLM.from_pretrained(self.folder / "tiny-llama")
        base.generation_config.eos_token_id = None
        merged = read_stage1(self.folder / "adapters" / stage1) if stage1 else None
        model = CCMModel(base, config, stage1=merged).eval()
        if adapter:
            own = _to_ours(read_plain_lora(self.folder / "adapters" / adapter), config.n_tok)
            model.load_adapter({"comp_embeddings.weight": model.comp_embeddings.weight.detach(), **own}, adapter)
        return model


def _to_ours(lora: PlainLoRA, n_tok: int) -> dict[str, Tensor]:
    """The authors' tensors under the names in ccm, without the rows N..2N-1 of merge adapters, which are for SUM."""
    comp = {} if lora.comp is None else {"comp_embeddings.weight": lora.comp[:n_tok]}
    return {**{name: tensor.float() for name, tensor in lora.tensors.items()}, **comp}


def greedy(
    model: CCMModel, memory: Memory, ids: Tensor, mask: Tensor | None = None, cache: MemoryCache | None = None
) -> Tensor:
    """Generate :data:`NEW_TOKENS` tokens greedily."""
    return model.generate(memory, ids, mask, cache, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def raise_to(worst: dict[str, float], new: Differences) -> None:
    """Update ``worst`` with the larger difference of every quantity."""
    for quantity, difference in new.items():
        worst[quantity] = max(worst[quantity], difference)


def largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; infinite if shapes differ or a value is NaN."""
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    difference = (a.double() - b.double()).abs().max().item()
    return difference if difference == difference else float("inf")
