"""Fingerprints: the same for the same model however it is stored, another for another model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import FAMILIES, ccm_config, make_sample, online_logits, tiny_base, tiny_model
from transformers import PreTrainedModel

from ccm import CCMModel
from ccm.core.errors import AdapterError
from ccm.engine.fingerprint import (
    effective_settings,
    fingerprint_base,
    fingerprint_tensors,
    flipped,
    pack_signs,
    sample_signs,
)
from ccm.engine.lora import PlainLoRA


def noisy(base: PreTrainedModel, size: float) -> PreTrainedModel:
    """The base after a small update of all weights, relative to their size."""
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(size * parameter.std() * torch.randn_like(parameter))
    return base


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cast_does_not_change_it(family: str) -> None:
    expected = fingerprint_base(tiny_base(family))
    assert len(expected) == 16
    assert int(expected, 16) >= 0
    assert fingerprint_base(tiny_base(family)) == expected
    assert fingerprint_base(tiny_base(family).half()) == expected
    assert fingerprint_base(tiny_base(family).bfloat16()) == expected


def test_neither_does_the_kernel() -> None:
    assert fingerprint_base(tiny_base(attn="eager")) == fingerprint_base(tiny_base())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_small_fine_tuning_changes_it(family: str) -> None:
    assert fingerprint_base(noisy(tiny_base(family), 1e-2)) != fingerprint_base(tiny_base(family))


def test_other_weights_and_other_architectures_have_others() -> None:
    prints = {fingerprint_base(tiny_base(family, seed=seed)) for family in FAMILIES for seed in (0, 1)}
    assert len(prints) == 2 * len(FAMILIES)


@pytest.mark.parametrize(
    ("size", "value"), [("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}), ("sliding_window", 3)]
)
def test_what_changes_the_computation_but_no_weight_changes_it(size: str, value: object) -> None:
    assert fingerprint_base(tiny_base("mistral_window", **{size: value})) != fingerprint_base(
        tiny_base("mistral_window")
    )


def test_the_stage_1_adapter_counts() -> None:
    base = tiny_base()
    assert len({fingerprint_base(base), fingerprint_base(base, "ab"), fingerprint_base(base, "ac")}) == 3


def test_adapters_differ_by_values_names_shapes_and_settings() -> None:
    tensor = torch.arange(6.0)
    expected = fingerprint_tensors({"a": tensor, "b": tensor}, {"r": 1})
    assert fingerprint_tensors({"b": tensor, "a": tensor.double()}, {"r": 1}) == expected
    others = [
        ({"a": tensor, "b": tensor + 1e-6}, {"r": 1}),
        ({"a": tensor, "c": tensor}, {"r": 1}),
        ({"a": tensor, "b": tensor.view(2, 3)}, {"r": 1}),
        ({"a": tensor, "b": tensor}, {"r": 2}),
        ({"a": tensor}, {"r": 1}),
    ]
    assert expected not in {fingerprint_tensors(*other) for other in others}


# Relatives -----------------------------------------------------------------------------------------------------------


def rounded(base: PreTrainedModel, bits: int) -> PreTrainedModel:
    """The base with weights as of that many bits, in groups of 32 around their middle, as GGUF's Q4_1 and the like."""
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim == 2 and parameter.numel() % 32 == 0:
                groups = parameter.reshape(-1, 32)
                low, high = groups.aminmax(dim=1, keepdim=True)
                step = (high - low) / (2**bits - 1)
                parameter.copy_((((groups - low) / step).round() * step + low).reshape(parameter.shape))
    return base


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    tiny_model("concat").save_pretrained(folder)
    return folder


def test_a_quantized_relative_is_taken_with_a_line_and_refused_where_strict(
    adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    near = rounded(tiny_base(), 5)
    share = flipped(pack_signs(sample_signs(tiny_base())), pack_signs(sample_signs(near)))
    assert 0.0 < share < 0.05
    with caplog.at_level(logging.WARNING):
        CCMModel.from_pretrained(adapter, rounded(tiny_base(), 5))
    assert f"quantized or fine-tuned relative of the base that {adapter} was trained on: {share:.1%}" in caplog.text
    with pytest.raises(AdapterError, match=f"{share:.1%} of the signs differ"):
        CCMModel.from_pretrained(adapter, rounded(tiny_base(), 5), strict=True)
    CCMModel.from_pretrained(adapter, tiny_base(), strict=True)


def test_adapters_of_one_base_share_a_relative_of_it(adapter: Path, tmp_path: Path) -> None:
    tiny_model("gate").save_pretrained(tmp_path)
    sample = make_sample([3, 5], 4)
    model = CCMModel.from_pretrained(adapter, rounded(tiny_base(), 5))
    other, loaded = model.with_adapter(tmp_path), CCMModel.from_pretrained(tmp_path, rounded(tiny_base(), 5))
    assert torch.equal(online_logits(other, sample), online_logits(loaded, sample))
    assert other.base.get_input_embeddings().weight is model.base.get_input_embeddings().weight


def test_memories_stay_with_the_very_base(adapter: Path, tmp_path: Path) -> None:
    own = CCMModel.from_pretrained(adapter, tiny_base())
    near = CCMModel.from_pretrained(adapter, rounded(tiny_base(), 5))
    own.empty_memory().save(tmp_path / "a.memory")
    with pytest.raises(Exception, match="another base model"):
        near.load_memory(tmp_path / "a.memory")


def test_a_base_that_is_no_relative_is_refused(adapter: Path) -> None:
    with pytest.raises(AdapterError, match="fingerprint"):
        CCMModel.from_pretrained(adapter, noisy(tiny_base(), 0.5))
    with pytest.raises(AdapterError, match="rope_parameters"):
        CCMModel.from_pretrained(adapter, tiny_base(rope_parameters={"rope_type": "default", "rope_theta": 5e5}))


def test_no_other_sign_is_no_other_base_and_a_relative_may_be_saved(tmp_path: Path, adapter: Path) -> None:
    with torch.no_grad():
        scaled = tiny_base()
        for parameter in scaled.parameters():
            parameter.mul_(1.001)
    CCMModel.from_pretrained(adapter, scaled, strict=True)
    near = rounded(tiny_base(), 5)
    CCMModel.from_pretrained(adapter, near).save_pretrained(tmp_path / "b")
    CCMModel.from_pretrained(tmp_path / "b", rounded(tiny_base(), 5), strict=True)


@pytest.mark.parametrize(
    ("family", "spelled"),
    [
        ("llama", {"head_dim": None}),
        ("llama", {"rms_norm_eps": 9.999999974752427e-07}),
        ("llama", {"layer_types": ["full_attention"] * 3}),
        ("llama", {"sliding_window": 0}),
    ],
)
def test_settings_are_compared_by_their_effect(family: str, spelled: dict[str, Any]) -> None:
    config = tiny_base(family).config
    config.rms_norm_eps = 1e-6
    before = effective_settings(config)
    for name, value in spelled.items():
        setattr(config, name, value)
    assert effective_settings(config) == before


@pytest.mark.parametrize("changed", [{"hidden_act": "gelu"}, {"rms_norm_eps": 1e-4}, {"num_key_value_heads": 1}])
def test_settings_of_another_effect_differ(changed: dict[str, Any]) -> None:
    config = tiny_base().config
    before = effective_settings(config)
    for name, value in changed.items():
        setattr(config, name, value)
    assert effective_settings(config) != before


def test_an_adapter_may_begin_with_one_of_another_first_stage_whose_base_it_does_not_share(tmp_path: Path) -> None:
    tensors = {}
    for name, weight in tiny_base().named_parameters():
        if name.endswith("q_proj.weight"):
            tensors[name.replace("weight", "lora_A.weight")] = torch.ones(2, weight.shape[1])
            tensors[name.replace("weight", "lora_B.weight")] = torch.ones(weight.shape[0], 2)
    lora = PlainLoRA({"r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}, tensors, None)
    first = CCMModel(tiny_base(), ccm_config(), stage1=lora)
    first.adapter_tensors()["comp_embeddings.weight"].data.fill_(0.5)
    first.save_pretrained(tmp_path / "a")
    bare = tiny_model("concat")
    assert not bare.shares_base(CCMModel.from_pretrained(tmp_path / "a", base=tiny_base()).config)
    bare.begin_with(tmp_path / "a")
    assert (bare.adapter_tensors()["comp_embeddings.weight"] == 0.5).all()
