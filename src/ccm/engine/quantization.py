"""Bases with quantized weights: how one is asked for, and what its weights were before.

Three ways, each by the stock loader of ``transformers``. The weights of all linear layers but the output head are
stored in fewer bits; embeddings, norms, the head and what is trained stay as they are.

int8   torchao        8-bit weights, multiplied in the base's dtype
8bit   bitsandbytes   LLM.int8: 8-bit weights and activations, outliers in float16
4bit   bitsandbytes   NF4, its scales quantized too, multiplied in the base's dtype
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
    """What ``from_pretrained`` takes as ``quantization_config``.

    Raises:
        ConfigError: when there is no such way, or its library is not installed.
    """
    if name not in LIBRARIES:
        raise ConfigError(f"quantize is {name!r}; allowed: {', '.join(LIBRARIES)}.")
    needs(LIBRARIES[name], extra="quant", what=f"quantize={name}")
    if name == "int8":
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig(version=2))  # what torchao 0.17 makes by default cannot be saved
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def is_quantized(base: PreTrainedModel) -> bool:
    """Whether any linear layer of the model holds a quantized weight."""
    return any(_holds_quantized(module) for module in base.modules())


def _holds_quantized(module: nn.Module) -> bool:
    """Both libraries put a tensor class of their own in the place of the parameter."""
    return isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter


def stored_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes; torchao's consist of several, and speak of the dtype that they stand for."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, part)) for part in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def matrices(base: PreTrainedModel) -> dict[str, Callable[[], Tensor]]:
    """What reads each matrix of a model that carries no adapter, by its name, in order.

    A matrix that was quantized as it was loaded is read from the files, as it was before: so the same base gives the
    same values in every precision. One that is in 8 or 4 bits on disk has no other values than these.

    Raises:
        ConfigError: when the files of a quantized base are not where it was loaded from.
    """
    held = {name: tensor for name, tensor in sorted(base.state_dict().items()) if tensor.ndim >= 2}
    reads: dict[str, Callable[[], Tensor]] = {name: partial(_same, tensor) for name, tensor in held.items()}
    quantizer = getattr(base, "hf_quantizer", None)
    files = _files(base) if quantizer is not None and not quantizer.pre_quantized else {}
    for name, module in base.named_modules():
        if _holds_quantized(module):
            weight = f"{name}.weight"
            reads[weight] = partial(_read, files, weight) if files else partial(dequantize_module_weight, module)
    return reads


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _read(files: dict[str, Path], name: str) -> Tensor:
    if name not in files:
        raise ConfigError(
            f"The files of the base name no {name}, so that a quantized base cannot be told from others; load it "
            "unquantized, save it with save_pretrained, and quantize that."
        )
    with safe_open(files[name], "pt") as file:
        return file.get_tensor(name)


def _files(base: PreTrainedModel) -> dict[str, Path]:
    """The file that holds each tensor of the checkpoint from which a base was loaded."""
    if (index := _file(base, "model.safetensors.index.json")) is not None:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {name: index.with_name(shard) for name, shard in shards.items()}
    if (whole := _file(base, "model.safetensors")) is not None:
        with safe_open(whole, "pt") as file:
            return dict.fromkeys(file.keys(), whole)
    raise ConfigError(
        f"There is no model.safetensors of {base.name_or_path} in its folder or in the Hub's usual cache, so that a "
        "quantized base cannot be told from others; save it in safetensors, and set HF_HOME rather than cache_dir."
    )


def _file(base: PreTrainedModel, name: str) -> Path | None:
    folder = Path(base.name_or_path)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    found = try_to_load_from_cache(base.name_or_path, name, revision=base.config._commit_hash)
    return Path(found) if isinstance(found, str) else None
