"""The base model: how it is loaded."""

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


SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")  # values of device_map that name no device


HUB = ("cache_dir", "local_files_only", "revision", "token")  # options of whatever reads from the Hub


_TEXT_PART = {"llama4": "llama4_text"}  # published with a vision part, which transformers leaves out as it loads


def load_base(
    source: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = "auto",
    quantize: Quantization | None = None,
    **options: Any,
) -> PreTrainedModel:
    """A stock language model; "auto" is the checkpoint's dtype, but float32 for half precision on a CPU.

    Raises:
        ConfigError: when the model or the device does not exist, the model's files are damaged, the attention is none
            that takes our masks, the library that quantizes is not installed or finds nothing to quantize, or the
            model is to be quantized in two ways.
        UnsupportedModelError: when the seams do not reach a model of its type.
    """
    place, source = check_device(device), locate(source)
    check_place(source)
    if (kernel := options.get("attn_implementation") or "sdpa") not in KERNELS:
        raise ConfigError(
            f"attn_implementation is {kernel!r}; the masks of a memory are taken by {' and '.join(KERNELS)} alone."
        )
    if quantize is not None:
        if options.get("quantization_config") is not None:
            raise ConfigError("quantize and quantization_config both say how to store the weights; give one of them.")
        options["quantization_config"] = quantization_config(quantize)
    _check_spread(options.get("device_map"))
    if "device_map" not in options:  # loaded where it belongs: a quantized model cannot be cast, and some not be moved
        options["device_map"] = {"": place}
        if dtype == "auto" and place.type == "cpu":
            dtype = torch.float32
    hub = {name: options[name] for name in HUB if name in options}
    try:
        settings, _ = PretrainedConfig.get_config_dict(source, **hub)
        if not isinstance(settings, dict):
            raise ConfigError(f"The config.json of {source} is damaged: it holds no object.")
        family: Any = settings.get("model_type")
        check_family(_TEXT_PART.get(family, family), str(source))
        if quantize is not None and settings.get("quantization_config"):
            raise ConfigError(f"{source} is quantized on disk already; leave quantize={quantize} out.")
        _check_generation(source, hub)
        kind = AutoModelForSeq2SeqLM if settings.get("is_encoder_decoder") else AutoModelForCausalLM
        base = kind.from_pretrained(source, dtype=dtype, **options)
    except OSError as error:
        raise ConfigError(f"The base model {source} cannot be loaded: {why(error, source)}") from error
    except StrictDataclassError as error:
        raise ConfigError(f"The config.json of {source} is damaged: {' '.join(str(error).split())}") from error
    except TypeError as error:  # of older transformers, which do not check a config as they read it
        reason = f"its config.json is damaged, or an option has no meaning ({why(error, source)})"
        raise ConfigError(f"The base model {source} cannot be loaded: {reason}.") from error
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # the device, not the files
        raise
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ConfigError(
            f"The base model {source} cannot be loaded: its weights are damaged, hold more than tensors, or do not fit "
            "its config.json. Copy it again, with weights in safetensors."
        ) from error
    if quantize is not None and not is_quantized(base):
        raise ConfigError(
            f"quantize={quantize} changes nothing of {source}: {LIBRARIES[quantize]} finds none of its kind of linear "
            "layer there. Try quantize=8bit, or leave it out."
        )
    return base


def _check_generation(source: str | Path, hub: Mapping[str, Any]) -> None:
    """Refuse a generation_config.json that is damaged: transformers leaves it out, and with it the ends of replies."""
    try:
        path = cached_file(source, GENERATION_CONFIG_NAME, **hub)
    except OSError:  # there is none
        return
    try:
        held = read_json(Path(path))
        if not isinstance(held, dict):
            raise ValueError("it holds no object")
        GenerationConfig.from_dict(held)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is damaged ({reason(error)}), and may name the tokens that end a reply. Copy it again, or delete "
            "it."
        ) from error


def _check_spread(spread: Any) -> None:
    """Refuse a ``device_map`` that names a device which is not there."""
    named = set(spread.values()) - {"disk"} if isinstance(spread, Mapping) else {spread}
    for place in named - {None, *SPREADS}:
        check_device(place)


def check_device(device: str | int | torch.device | None) -> torch.device:
    """The device of that name; where None, a CUDA device if there is one, else the CPU.

    Raises:
        ConfigError: when this machine has no such device.
    """
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device is None else device)
        torch.zeros(1, device=place).item()  # "meta" has no values to read
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = [
            "cpu",
            *(["cuda"] if torch.cuda.is_available() else []),
            *(["mps"] if torch.backends.mps.is_available() else []),
        ]
        raise ConfigError(f"There is no device {device!r} here; this machine has {', '.join(there)}.") from error
    return place
