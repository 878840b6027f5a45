"""The shape of a model, from its config alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import FAMILIES, tiny_base
from tiny_t5 import write_t5
from transformers import DynamicCache

from ccm.core.errors import ConfigError, UnsupportedModelError
from ccm.engine.families import entry_sizes, max_positions
from ccm.models.shapes import plain_shape, shape_of


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_config_gives_the_shape_of_the_model(family: str, tmp_path: Path) -> None:
    base = tiny_base(family)
    base.config.save_pretrained(tmp_path)
    shape = shape_of(tmp_path, "float32")
    assert (shape.sizes, shape.positions) == (entry_sizes(base.config), max_positions(base.config))
    layers = DynamicCache(config=base.config).layers  # of transformers, which drops what a layer no longer sees
    assert shape.windows == tuple(getattr(layer, "sliding_window", None) for layer in layers)


def test_the_dtype_is_the_checkpoints_own_or_another(tmp_path: Path) -> None:
    config = FAMILIES["llama"]()
    config.dtype = torch.bfloat16
    config.save_pretrained(tmp_path)
    assert shape_of(tmp_path).dtype == "bfloat16"
    assert shape_of(tmp_path, "float32").entry_nbytes == 2 * shape_of(tmp_path).entry_nbytes
    assert plain_shape(1, 1, 8, None, "auto").dtype == "bfloat16"


def test_what_is_no_decoder_of_a_known_family_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json in the folder"):
        shape_of(tmp_path)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        shape_of(write_t5(tmp_path / "t5"))
    for said, error, message in (
        ({"model_type": "bert"}, UnsupportedModelError, "'bert', which is not supported"),
        ({"model_type": "llama", "hidden_size": "many"}, ConfigError, "damaged"),
        ({"model_type": "llama", "num_attention_heads": 0, "num_key_value_heads": 0}, ConfigError, "damaged"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
        with pytest.raises(error, match=message):
            shape_of(tmp_path)
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        shape_of(tmp_path)


def test_sizes_and_dtypes_that_there_are_not_are_refused() -> None:
    with pytest.raises(ConfigError, match="kv_heads is 0; it must be at least 1"):
        plain_shape(2, 0, 8, None, "auto")
    with pytest.raises(ConfigError, match="no dtype 'int3'; allowed: auto, float64"):
        shape_of("builtin", "int3")
