"""Sampling: settings, and the tokens that they choose."""

from __future__ import annotations

import pytest
import torch

from ccm.core.errors import ConfigError
from ccm.engine.sampling import Sampling


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": 1e-40},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("inf")},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_sampling_settings_without_meaning_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


def test_tokens_are_chosen_as_sampling_says() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]]).expand(400, 4)
    for greedy in (Sampling(), Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=0.05)):
        assert set(greedy.choose(logits).tolist()) == {1}
    torch.manual_seed(0)
    assert set(Sampling(temperature=1.0, top_k=2).choose(logits).tolist()) == {1, 2}
    assert set(Sampling(temperature=1.0, top_p=0.9).choose(logits).tolist()) == {1, 2}
    warm = Sampling(temperature=50.0).choose(logits)
    assert set(warm.tolist()) == {0, 1, 2, 3}
    assert warm.shape == (400,)


def test_the_repetition_penalty_is_about_the_ids_that_are_given() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.0, -1.0]])
    penalty = Sampling(repetition_penalty=2.0)
    assert penalty.choose(logits).tolist() == penalty.choose(logits, torch.tensor([[2]])).tolist() == [1]
    assert penalty.choose(logits, torch.tensor([[1]])).tolist() == [2]
    assert Sampling().choose(logits, torch.tensor([[1]])).tolist() == [1]
