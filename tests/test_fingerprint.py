"""Fingerprints: the same for the same model however it is stored, another for another model."""

from __future__ import annotations

import pytest
import torch
from helpers import FAMILIES, tiny_base
from transformers import PreTrainedModel

from ccm.fingerprint import fingerprint_base, fingerprint_tensors


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
