"""The sizes of a model, from its config alone: no weights are loaded, and no code of models is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from ccm.core.errors import ConfigError, UnsupportedModelError
from ccm.core.hub import why
from ccm.engine.families import check_family, entry_sizes, max_positions, windows
from ccm.models.locate import check_place, locate

DTYPES = ("auto", "float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelShape:
    """What decides how large the keys and values of a model are.

    Attributes:
        sizes: per layer, the number of K/V heads and the dimension of a head.
        dtype: of keys and values, such as "bfloat16".
        positions: text positions that the model was made for; None where they have no limit.
        windows: per layer, how many tokens of text it sees; None where it sees all.
    """

    sizes: tuple[tuple[int, int], ...]
    dtype: str
    positions: int | None
    windows: tuple[int | None, ...]

    @property
    def layer_nbytes(self) -> tuple[int, ...]:
        """Bytes of the key and the value of one token, per layer."""
        width = getattr(torch, self.dtype).itemsize
        return tuple(2 * heads * dim * width for heads, dim in self.sizes)

    @property
    def entry_nbytes(self) -> int:
        """Bytes of one entry of a memory, and of one token of full context: its keys and values in all layers."""
        return sum(self.layer_nbytes)


def plain_shape(layers: int, kv_heads: int, head_size: int, positions: int | None, dtype: str) -> ModelShape:
    """The shape of a model that is told by its numbers; without ``positions``, there is no limit of them.

    Raises:
        ConfigError: when a number is below 1, or the dtype is not allowed.
    """
    told = {"layers": layers, "kv_heads": kv_heads, "head_size": head_size, "positions": positions}
    for name, value in told.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1.")
    if (dtype := check_dtype(dtype)) == "auto":
        dtype = "bfloat16"
    return ModelShape(((kv_heads, head_size),) * layers, dtype, positions, (None,) * layers)


def shape_of(source: str | Path, dtype: str = "auto") -> ModelShape:
    """The shape of a decoder by its config.

    Args:
        source: as :func:`ccm.models.locate.locate` takes it; a folder with a config.json is enough.
        dtype: "auto" is that of the checkpoint.

    Raises:
        ConfigError: when there is no such model, its config is damaged, or the dtype is not allowed.
        UnsupportedModelError: when models of this type are not supported, or it is an encoder-decoder.
    """
    from transformers import AutoConfig, PreTrainedConfig  # not needed for a shape that is told by its numbers

    named, place = check_dtype(dtype), locate(source)
    check_place(place)
    try:
        settings, _ = PreTrainedConfig.get_config_dict(place)
        check_family(settings.get("model_type"), str(source))
        config = AutoConfig.from_pretrained(place)
        sizes, positions, seen = entry_sizes(config), max_positions(config), windows(config)
    except OSError as error:
        raise ConfigError(f"The config of {source} cannot be read: {why(error, place)}") from error
    except (StrictDataclassError, AttributeError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"The config.json of {source} is damaged: {' '.join(str(error).split())}") from error
    if config.is_encoder_decoder:
        raise UnsupportedModelError(f"{source} is an encoder-decoder; a plan needs a decoder alone.")
    if named == "auto":
        own = config.dtype or config.get_text_config().dtype or torch.float32
        named = str(own).removeprefix("torch.")
    return ModelShape(sizes, named, positions, seen)


def check_dtype(dtype: torch.dtype | str) -> str:
    """The name of a dtype, or "auto".

    Raises:
        ConfigError: when it is not allowed.
    """
    named = str(dtype).removeprefix("torch.")
    if named not in DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}; allowed: {', '.join(DTYPES)}.")
    return named
