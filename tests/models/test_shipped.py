"""The adapters that ship for models of the catalogue."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ccm.core.config import TurnFormat
from ccm.engine.adapter_files import read_adapter
from ccm.models.builtin import START
from ccm.models.catalogue import ADAPTERS, MODELS
from ccm.models.shipped import first_stage, shipped, starting_adapter

MOST = 16 * 10**6  # bytes of a model's adapters with their first stage


@pytest.fixture(params=[name for name in MODELS if shipped(name)])
def model(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_model_ships_with_adapters() -> None:
    assert {path.name for path in ADAPTERS.iterdir()} == {name for name in MODELS if shipped(name)} == {"smollm2-135m"}


def test_adapters_are_called_as_their_rules_and_share_a_first_stage_of_that_model(model: str) -> None:
    for folder in shipped(model):
        saved = read_adapter(folder)
        assert (saved.config.rule, saved.config.base_model) == (folder.name, model)
        assert saved.config.turns == TurnFormat("chat")
        assert saved.stage1 is not None
        assert saved.stage1.settings["base_model_name_or_path"] == model
        assert {tensor.dtype for tensor in saved.tensors.values()} == {torch.bfloat16}
        assert saved.base_signs is not None  # so that relatives of the base can be told
        assert {path.name for path in folder.iterdir()} == {"ccm_adapter.safetensors", "ccm_config.json"}


def test_adapters_are_small_and_have_a_card(model: str) -> None:
    files = [path for path in (ADAPTERS / model).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST
    card = (ADAPTERS / model / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert all(word in card for word in (model, MODELS[model].licence, "CC BY-SA 4.0", *map(_called, shipped(model))))


def test_a_training_begins_with_what_ships_where_a_short_name_is_given(model: str) -> None:
    rules = {folder.name: folder for folder in shipped(model)}
    assert {rule: starting_adapter(model, rule) for rule in rules} == rules
    assert starting_adapter(model, "ema") in rules.values()
    assert first_stage(model) == ADAPTERS / model / "base"
    assert starting_adapter("my/adapter", "concat") == "my/adapter"
    assert first_stage("my/adapter") == Path("my/adapter")
    assert starting_adapter("builtin", "concat") == START


def _called(folder: Path) -> str:
    return f"`{folder.name}`"
