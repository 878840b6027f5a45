"""The recipe of the built-in model, a few steps of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

import ccm
from ccm.data.builtin import words
from ccm.data.builtin.generator import HELD_OUT
from ccm.training.recipe import load_recipe
from ccm.training.stages import open_turns
from tools.builtin import build

SHORT = ("max_steps=2", "batch_size=2", "data.eval_samples=2", "data.options.recall=2", "tensorboard=false")


@pytest.mark.slow
def test_the_tokenizer_treats_held_out_names_as_it_treats_others(tmp_path: Path) -> None:
    """A name that no training saw must not be the only one in pieces."""
    build.build_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def pieces(names: list[str]) -> float:
        return sum(len(tokenizer.encode(f" {name}", add_special_tokens=False)) for name in names) / len(names)

    names = words.NAMES + words.CITIES
    seen, held = pieces([n for n in names if n not in HELD_OUT]), pieces([n for n in names if n in HELD_OUT])
    assert seen > 1.8
    assert held < 1.6 * seen


def test_pretraining_draws_every_rule_and_all_parts_of_a_batch_have_the_same() -> None:
    recipe = load_recipe(Path(build.__file__).with_name("base.yaml"), ["model=builtin", *SHORT])
    stage = build.Pretraining(recipe, open_turns(recipe))
    drawn = [stage.draw(number)[0] for number in range(300)]
    assert drawn == [stage.draw(number)[0] for number in range(300)]
    for name, _, share in stage.RULES:
        assert abs(drawn.count(name) / 300 - share) < 0.1
    assert all(p.requires_grad for p in stage.base.parameters())


@pytest.mark.slow
def test_the_recipe_runs_goes_on_and_gives_what_chat_opens(tmp_path: Path) -> None:
    weights, runs = tmp_path / "weights", tmp_path / "runs"
    build.build_base(weights, runs, SHORT)
    build.build_base(weights, runs, SHORT)  # done already
    for name in build.ADAPTERS:
        build.build_adapter(name, weights, runs, SHORT)
        model, tokenizer = ccm.load(adapter=weights / name)
        assert model.config.base_model == "../base"
        assert isinstance(ccm.Conversation(model, tokenizer).answer("My name is Anna."), str)
