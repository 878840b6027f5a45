"""The recipe of the built-in model, a few steps of it."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

import ccm
from ccm.builtin import build
from ccm.builtin.generator import HELD_OUT
from ccm.turns import make_turns


def test_batches_are_full_reproducible_and_never_hold_held_out_words() -> None:
    _, tokenizer = ccm.load("builtin")
    turns = make_turns(tokenizer, build.TURNS)
    phase = replace(build.ADAPTERS[1].phases[1], ramp=8)
    first, second = (build.batches(phase, turns, tokens=1024, only_questions=True) for _ in range(2))
    for _ in range(40):
        batch = next(first)
        assert batch == next(second)
        longest = max(sum(len(step.ids) for step in (*row.steps, row.query)) for row in batch)
        assert len(batch) * longest <= 1024 or len(batch) == 1
        text = " ".join(tokenizer.decode(step.ids) for row in batch for step in (*row.steps, row.query))
        assert not set(text.replace(".", " ").split()) & HELD_OUT


def test_every_batch_teaches_something() -> None:
    """A dialogue in which nobody asks has no target where questions alone are taught; a batch of such has no loss."""
    _, tokenizer = ccm.load("builtin")
    turns = make_turns(tokenizer, build.TURNS)
    phase = replace(build.ADAPTERS[0].phases[0], asking=0.1, ramp=0)
    for batch, _ in zip(build.batches(phase, turns, tokens=128, only_questions=True), range(100), strict=False):
        assert any(target >= 0 for row in batch for step in (*row.steps, row.query) for target in step.targets)


def test_made_up_words_are_of_one_word_and_not_held_out() -> None:
    rng = random.Random(0)
    made = [build._made_up(rng, spliced) for spliced in (0.0, 1.0) for _ in range(500)]
    assert all(word.isalpha() and word.istitle() and word not in HELD_OUT for word in made)
    assert len(set(made)) > 700


@pytest.mark.slow
def test_the_recipe_runs_and_gives_what_chat_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tuple(replace(phase, steps=2) for phase in build.BASE_PHASES)
    monkeypatch.setattr(build, "BASE_PHASES", short)
    (tmp_path / "base").mkdir()
    build.train_base(tmp_path / "base", build.build_tokenizer(tmp_path / "base"), tokens=512)
    for recipe in build.ADAPTERS:
        brief = replace(recipe, phases=tuple(replace(phase, steps=2) for phase in recipe.phases))
        build.train_adapter(tmp_path, brief, tokens=512, threads=1)
        model, tokenizer = ccm.load(adapter=tmp_path / recipe.name)
        assert isinstance(ccm.Conversation(model, tokenizer).answer("My name is Anna."), str)
