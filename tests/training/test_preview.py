"""The look at a training before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ccm_config
from tiny_t5 import write_t5
from tiny_training import Tiny, make
from transformers import GPT2Config, LlamaConfig, T5Config

from ccm.core.config import TurnFormat
from ccm.data.kinds import Chat, TaskExample
from ccm.training.batches import Batch
from ccm.training.preview import estimate, mlp_width, picture
from ccm.training.stages import Stage

CHAT = Chat((("My name is Anna.", "Hello."), ("Thank you!", "Gladly."), ("My name?", "Anna,\nI think.")))


def test_blocks_and_slots_and_what_is_learned_are_visible(tiny: Tiny) -> None:
    stage = make(tiny.recipe(objective={"every": 1.0}))
    assert picture(CHAT.sample(stage.turns, 2), stage).splitlines() == [
        "block 0  | <s>My name is Anna.\\nAssistant:Hello. [COMP 1][COMP 2]",
        "         > Hello.</s>",
        "block 1  | \\nUser:Thank you!\\nAssistant:Gladly. [COMP 1][COMP 2]",
        "         > Gladly.</s>",
        "block 2  | \\nUser:My name?\\nAssistant:Anna,\\nI think.",
        "         > Anna,\\nI think.</s>",
    ]


def test_the_objective_says_what_is_learned(tiny: Tiny) -> None:
    stage = make(tiny.recipe(objective={"last": 1.0}, adapter=ccm_config("concat", n_tok=1)))
    lines = picture(CHAT.sample(stage.turns, 2), stage).splitlines()
    assert [line for line in lines if ">" in line[:12]] == ["         > Anna,\\nI think.</s>"]
    assert lines[0].endswith("Hello. [COMP 1]")


def test_the_rule_says_where_comp_tokens_stand(tiny: Tiny) -> None:
    stage = make(tiny.recipe(adapter=ccm_config("gist"), objective={"last": 1.0}))
    sample = TaskExample(("One.", "Two."), "Sum?", "Three.").sample(stage.turns, 2)
    assert picture(sample, stage).splitlines()[0] == "block 0  | <s>One.\\nUser:Two. [COMP 1][COMP 2]"
    base = make(tiny.recipe(stage="base", turns=TurnFormat()))
    assert "COMP" not in picture(CHAT.sample(base.turns, 2), base)


@pytest.mark.parametrize(("rule", "mixed"), [("concat", []), ("merge", ["block 2  |  [SUM 1][SUM 2]"])])
def test_the_blocks_of_an_encoder_are_shown_and_what_its_decoder_says(
    tiny: Tiny, tmp_path: Path, rule: str, mixed: list[str]
) -> None:
    model = str(write_t5(tmp_path / "t5"))
    stage = make(tiny.recipe(model=model, adapter=ccm_config(rule, recurrent=False), objective={"last": 1.0}))
    query = 2 + len(mixed)
    assert picture(CHAT.sample(stage.turns, 2), stage).splitlines() == [
        "block 0  | <s>My name is Anna.\\nAssistant:Hello. [COMP 1][COMP 2]",
        "block 1  | \\nUser:Thank you!\\nAssistant:Gladly. [COMP 1][COMP 2]",
        *mixed,
        f"block {query}  | \\nUser:My name?\\nAssistant:",
        "         > Anna,\\nI think.</s>",
    ]


def needs(tiny: Tiny, **changes: Any) -> Any:
    recipe = tiny.recipe(**changes)
    stage = make(recipe)
    return stage, estimate(recipe, stage, [batch(stage, 120)])


def batch(stage: Stage, count: int) -> Batch:
    """One sample so many times."""
    return Batch([CHAT.sample(stage.turns, 2)] * count, [0] * count, stage.config.n_tok)


def test_the_estimate_counts_weights_gradients_and_moments(tiny: Tiny) -> None:
    stage, found = needs(tiny)
    assert found.weights == sum(p.numel() * p.element_size() for p in stage.module.parameters())
    assert found.trained == 3 * 4 * sum(p.numel() for p in stage.trained.values())
    assert found.heap == pytest.approx(430e6 + 0.75 * (found.activations + found.logits)), "of a CPU"
    assert found.total == found.weights + found.trained + found.activations + found.logits + found.heap


def test_the_estimate_follows_the_pass_and_what_is_kept_of_it(tiny: Tiny) -> None:
    width = batch(make(tiny.recipe()), 1).tokens
    one = needs(tiny, pass_tokens=20 * width)[1]
    two = needs(tiny, pass_tokens=40 * width)[1]
    assert (two.activations, two.logits) == (2 * one.activations, 2 * one.logits)
    assert needs(tiny, pass_tokens=1 << 30)[1].activations == 6 * one.activations  # no pass has more than its batch
    assert needs(tiny, pass_tokens=20 * width, gradient_checkpointing=True)[1].activations < one.activations
    assert needs(tiny, pass_tokens=20 * width, objective={"last": 1.0})[1].logits < one.logits


def test_a_sample_that_is_longer_than_a_pass_is_what_counts(tiny: Tiny) -> None:
    stage, one = needs(tiny, pass_tokens=1)
    same = needs(tiny, pass_tokens=batch(stage, 1).tokens)[1]
    assert (one.activations, one.logits) == (same.activations, same.logits)
    assert needs(tiny, pass_tokens=batch(stage, 2).tokens)[1].activations == 2 * one.activations


def test_activations_of_a_base_in_half_precision_are_half_as_large(tiny: Tiny) -> None:
    full, half = needs(tiny, dtype="float32")[1], needs(tiny, dtype="bfloat16")[1]
    assert half.activations == full.activations / 2


def test_activations_are_estimated_to_within_a_factor_of_two(tiny: Tiny) -> None:
    """What autograd really keeps for the backward pass, counted as it is packed."""
    recipe = tiny.recipe()
    stage = make(recipe)
    weights = {p.data_ptr() for p in stage.module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stage.sums(batch(stage, 4))
    found = estimate(recipe, stage, [batch(stage, 4)])
    assert 0.5 < sum(kept.values()) / (found.activations + found.logits) < 2


@pytest.mark.parametrize(("config", "width"), [(GPT2Config(n_embd=8), 32), (GPT2Config(n_embd=8, n_inner=9), 9)])
def test_the_width_of_an_mlp_is_known_by_every_name_of_it(config: GPT2Config, width: int) -> None:
    assert mlp_width(config) == width
    assert mlp_width(T5Config(d_ff=7)) == 7
    assert mlp_width(LlamaConfig(intermediate_size=5)) == 5
