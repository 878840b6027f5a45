"""Loading a base model."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from ccm.core.errors import ConfigError, reason
from ccm.core.files import SafetensorError, read_json
from ccm.core.hub import why
from ccm.engine.families import check_family
from ccm.engine.quantization import LIBRARIES, Quantization, is_quantized, quantization_config
from ccm.models.locate import check_place, locate

KERNELS = ("sdpa", "eager")
SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")  # values of device_map that are not devices
HUB = ("cache_dir", "local_files_only", "revision", "token")  # options that apply to reading from the Hub


def load_base(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: Quantization | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Load a stock language model.

    Args:
        source: a folder, a Hub id, or a short name (:func:`ccm.models.locate.locate`).
        device: the device of the model; None uses a CUDA device if there is one.
        dtype: the dtype of the weights. "auto" is the checkpoint's dtype, but float32 on a CPU.
        quantize: how to store the weights in fewer bits.
        options: further options of ``from_pretrained`` of transformers.

    Raises:
        ConfigError: if the model or device does not exist, the model's files are damaged, the attention implementation
            does not take masks, the library that quantizes is not installed or finds no layer to quantize, or two
            quantizations are asked for.
        UnsupportedModelError: if models of this type are not supported.
    """
    hub = {name: options[name] for name in HUB if name in options}
    target, source = check_device(device), locate(source, **hub)
    check_place(source)
    if (kernel := options.get("attn_implementation") or "sdpa") not in KERNELS:
        raise ConfigError(
            f"attn_implementation is {kernel!r}; allowed: {', '.join(KERNELS)}, which take the masks of a memory."
        )
    if quantize is not None:
        if options.get("quantization_config") is not None:
            raise ConfigError("quantize and quantization_config both say how to store the weights; give one of them.")
        options["quantization_config"] = quantization_config(quantize)
    _check_spread(options.get("device_map"))
    if "device_map" not in options:  # load onto the device: quantized models cannot be cast, nor all be moved
        options["device_map"] = {"": target}
        if dtype == "auto" and target.type == "cpu":
            dtype = torch.float32
    try:
        settings, _ = PretrainedConfig.get_config_dict(source, **hub)
        if not isinstance(settings, dict):
            raise ConfigError(f"The config.json of {source} is damaged: it does not hold a JSON object.")
        check_family(settings.get("model_type"), str(source))
        if quantize is not None and settings.get("quantization_config"):
            raise ConfigError(f"The weights of {source} are already quantized on disk; leave quantize={quantize} out.")
        _check_generation(source, hub)
        kind = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
        base = kind.from_pretrained(source, dtype=dtype, **options)
    except OSError as error:
        raise ConfigError(f"The base model {source} cannot be loaded: {why(error, source)}") from error
    except StrictDataclassError as error:
        raise ConfigError(f"The config.json of {source} is damaged: {' '.join(str(error).split())}") from error
    except TypeError as error:  # older versions of transformers do not check a config when they read it
        cause = f"its config.json is damaged, or an option is unknown ({why(error, source)})"
        raise ConfigError(f"The base model {source} cannot be loaded: {cause}.") from error
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the device, not the files
        raise
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ConfigError(
            f"The base model {source} cannot be loaded: its weights are damaged, hold more than tensors, or do not fit "
            "its config.json. Download the model again, with weights in safetensors."
        ) from error
    if quantize is not None and not is_quantized(base):
        raise ConfigError(
            f"quantize={quantize} does not change {source}: {LIBRARIES[quantize]} finds no linear layer that it can "
            "quantize. Try quantize=8bit, or leave quantize out."
        )
    return base


def _check_generation(source: str | Path, hub: Mapping[str, Any]) -> None:
    """Refuse a damaged generation_config.json: transformers would ignore it, and then not know where replies end."""
    try:
        path = cached_file(source, GENERATION_CONFIG_NAME, **hub)
    except OSError:  # there is none
        return
    try:
        held = read_json(Path(path))
        if not isinstance(held, dict):
            raise ValueError("it does not hold a JSON object")
        GenerationConfig.from_dict(held)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}, which may name the tokens that end a reply, is damaged ({reason(error)}). Download it again, or "
            "delete it."
        ) from error


def _check_spread(spread: Any) -> None:
    """Refuse a ``device_map`` that names a device which does not exist."""
    named = set(spread.values()) - {"disk"} if isinstance(spread, Mapping) else {spread}
    for device in named - {None, *SPREADS}:
        check_device(device)


def check_device(device: str | int | torch.device | None) -> torch.device:
    """The device of a name; for None, a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: if this machine has no such device.
    """
    try:
        found = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        torch.zeros(1, device=found).item()  # fails on the device "meta", which stores no values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        known = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        there = ", ".join(["cpu", *(name for name, available in known.items() if available)])
        raise ConfigError(f"There is no device {device!r} here; this machine has {there}.") from error
    return found
