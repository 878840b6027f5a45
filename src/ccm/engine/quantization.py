"""Bases with quantized weights: how to load them, and what their weights were before.

The stock loader of ``transformers`` has three ways. All store the weights of linear layers, except the output head, in
fewer bits. Embeddings, norms, the output head and the trained parts keep their dtype.

int8   torchao        8-bit weights, multiplied in the base's dtype
8bit   bitsandbytes   LLM.int8: 8-bit weights and activations, outliers in float16
4bit   bitsandbytes   NF4 with quantized scales, multiplied in the base's dtype
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import try_to_load_from_cache
from peft.utils.integrations import dequantize_module_weight
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from ccm.core.errors import ConfigError
from ccm.core.extras import needs

Quantization = Literal["int8", "8bit", "4bit"]
LIBRARIES: dict[Quantization, str] = {"int8": "torchao", "8bit": "bitsandbytes", "4bit": "bitsandbytes"}


def quantization_config(name: Quantization) -> Any:
    """The argument ``quantization_config`` of ``from_pretrained``.

    Raises:
        ConfigError: when the name is unknown, or the library is not installed.
    """
    if name not in LIBRARIES:
        raise ConfigError(f"quantize is {name!r}; allowed: {', '.join(LIBRARIES)}.")
    needs(LIBRARIES[name], extra="quant", what=f"quantize={name}")
    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(version=2))  # the default of torchao 0.17 cannot be saved
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def is_quantized(base: PreTrainedModel) -> bool:
    """Whether any linear layer of a model has a quantized weight."""
    return any(_has_quantized_weight(module) for module in base.modules())


def _has_quantized_weight(module: nn.Module) -> bool:
    """Whether the weight is of a class of its own, as both libraries make it, instead of a plain parameter."""
    return isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor. A tensor of torchao has several parts, and its dtype is the one that it stands for."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def matrices(base: PreTrainedModel) -> dict[str, Callable[[], Tensor]]:
    """Functions that read the matrices of a model without an adapter, by name, in the order of names.

    A matrix that was quantized on loading is read from the files in its original precision. So a base gives the same
    values however it is loaded. A matrix that is quantized on disk too gives its dequantized values.

    Raises:
        ConfigError: when the files of a quantized base are no longer where it was loaded from.
    """
    state = {name: tensor for name, tensor in sorted(base.state_dict().items()) if tensor.ndim >= 2}
    reads: dict[str, Callable[[], Tensor]] = {name: partial(_same, tensor) for name, tensor in state.items()}
    quantizer = getattr(base, "hf_quantizer", None)
    files = _files(base) if quantizer is not None and not quantizer.pre_quantized else {}
    for name, module in base.named_modules():
        if _has_quantized_weight(module):
            weight = f"{name}.weight"
            reads[weight] = partial(_read, files, weight) if files else partial(dequantize_module_weight, module)
    return reads


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _read(files: dict[str, Path], name: str) -> Tensor:
    if name not in files:
        raise ConfigError(
            f"The files of the base have no tensor {name}, so that a quantized base cannot be identified; load it "
            "unquantized, save it with save_pretrained, and quantize that."
        )
    with safe_open(files[name], "pt") as file:
        return file.get_tensor(name)


def _files(base: PreTrainedModel) -> dict[str, Path]:
    """The file of each tensor in the checkpoint from which a base was loaded."""
    if (index := _file(base, "model.safetensors.index.json")) is not None:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: index.with_name(shard) for name, shard in shards.items()}
    if (whole := _file(base, "model.safetensors")) is not None:
        with safe_open(whole, "pt") as file:
            return dict.fromkeys(file.keys(), whole)
    raise ConfigError(
        f"There is no model.safetensors of {base.name_or_path} in its folder or in the Hub's usual cache, so that a "
        "quantized base cannot be identified; save it in safetensors, and set HF_HOME rather than cache_dir."
    )


def _file(base: PreTrainedModel, name: str) -> Path | None:
    folder = Path(base.name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = try_to_load_from_cache(base.name_or_path, name, revision=base.config._commit_hash)
    return Path(found) if isinstance(found, str) else None
