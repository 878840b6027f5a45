"""Models of the catalogue by their short names, with the adapters that ship for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import tiny_base, tiny_model
from tokenizers_made import CHATML, tokenizer

import ccm
from ccm.core.errors import ConfigError
from ccm.core.provenance import ModelSource, write_about
from ccm.engine.adapter_files import read_adapter
from ccm.models import cache
from ccm.models import load as loading
from ccm.models import shipped as shipping
from ccm.models.cache import model_folder

NAME = "smollm2-135m"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue whose model is here, and ships with an adapter of concat and one of gate."""
    monkeypatch.setenv("CCM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipping, "ADAPTERS", tmp_path / "adapters")
    folder = model_folder(NAME)
    folder.mkdir(parents=True)
    tiny_base(vocab_size=300).save_pretrained(folder)
    tokenizer(CHATML).save_pretrained(folder)
    write_about(folder, ModelSource(NAME, "registry", "Q4_1"))
    for seed, rule in enumerate(("concat", "gate")):
        model = tiny_model(rule, seed=seed, base=loading.load_base(NAME))
        model.save_pretrained(tmp_path / "adapters" / NAME / rule)
    return tmp_path / "adapters" / NAME


@pytest.mark.parametrize(
    ("asked", "rule", "adapter"),
    [(None, "concat", "concat"), ("gate", "gate", "gate"), ("pos_control", "pos_control", "concat")],
)
def test_a_short_name_brings_its_adapters(shipped: Path, asked: str | None, rule: str, adapter: str) -> None:
    model, _ = ccm.load(NAME, rule=asked)
    assert model.config.rule == rule
    held = read_adapter(shipped / adapter).tensors
    assert torch.equal(model.adapter_tensors()["comp_embeddings.weight"], held["comp_embeddings.weight"])


def test_a_rule_without_an_adapter_is_refused_with_those_that_there_are(shipped: Path) -> None:
    with pytest.raises(
        ConfigError, match=rf"{NAME}' ships with no adapter for the rule 'merge'; it runs as concat, full, gate, none"
    ):
        ccm.load(NAME, rule="merge")


def test_a_model_without_shipped_adapters_runs_by_itself(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "ADAPTERS", shipped / "nowhere")
    assert ccm.load(NAME, rule="full")[0].config.rule == "full"
    with pytest.raises(ConfigError, match="needs an adapter"):
        ccm.load(NAME, rule="concat")
    assert cache.find_model(NAME)


def test_the_name_of_a_model_is_no_adapter(shipped: Path) -> None:
    with pytest.raises(ConfigError, match=f"{NAME} is a model. .* name it as the model, and a rule: concat, gate"):
        ccm.load(adapter=NAME)
