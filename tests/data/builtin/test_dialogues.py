"""The dialogues of the built-in model as training samples."""

from __future__ import annotations

import random
import re
from typing import Any, cast

import pytest

import ccm
from ccm.chat.turns import Turns, make_turns
from ccm.core.errors import ConfigError
from ccm.data import open_data
from ccm.data.builtin.dialogues import BuiltinData, MadeUp
from ccm.data.builtin.generator import HELD_OUT, recall_dialogue
from ccm.data.builtin.words import KINDS
from ccm.data.settings import DataSettings
from ccm.engine.layout import IGNORE, Sample, length
from ccm.models.builtin import TURNS, WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TURNS)


def opened(turns: Turns, *, seed: int = 0, eval_samples: int = 8, **options: Any) -> BuiltinData:
    settings = DataSettings("builtin", eval_samples=eval_samples, options=options)
    data = open_data(settings, turns, seed)
    assert isinstance(data, BuiltinData)
    return data


@pytest.fixture(scope="module")
def many(turns: Turns) -> list[Sample]:
    return opened(turns).pool(0, 250) + opened(turns, long=0.3, made_up=1.0).pool(1, 250)


def text_of(turns: Turns, sample: Sample) -> str:
    return "".join(turns.tokenizer.decode(step.ids) for step in (*sample.steps, sample.query))


def turns_of(sample: Sample) -> int:
    return len(sample.steps) + 1


def test_a_pool_is_the_same_whatever_was_drawn_before(turns: Turns) -> None:
    data = opened(turns)
    later = [data.pool(index, 5) for index in range(4)][3]
    assert opened(turns).pool(3, 5) == later
    assert opened(turns, seed=1).pool(3, 5) != later
    assert data.pool(2, 5) != later


def test_every_sample_ends_in_a_question_with_a_target_after_some_context(turns: Turns, many: list[Sample]) -> None:
    for sample in many:
        assert sample.steps
        reply = turns.tokenizer.decode([target for target in sample.query.targets if target != IGNORE])
        assert reply.endswith("</s>")
        assert len(reply) > len("</s>")
        last = re.split(r"<\|user\|>", text_of(turns, sample))[-1]
        assert last.endswith("<|assistant|>" + reply.removesuffix("</s>"))


def test_no_held_out_name_occurs(turns: Turns, many: list[Sample]) -> None:
    names = re.compile(rf"\b({'|'.join(map(re.escape, sorted(HELD_OUT)))})\b")
    found = [match[0] for sample in many for match in names.finditer(text_of(turns, sample))]
    assert not found
    eval_dialogues = [recall_dialogue(random.Random(i), split="heldout") for i in range(20)]
    assert any(names.search(turn.user) for dialogue in eval_dialogues for turn in dialogue.turns)  # the search finds


def test_no_sample_is_longer_than_promised(turns: Turns, many: list[Sample]) -> None:
    data = opened(turns, long=1.0)
    lengths = [length(sample) for sample in (*many, *data.pool(0, 40))]
    assert max(lengths) <= data.longest
    assert max(lengths) > data.longest / 2  # of 48 turns: it is no wild guess


def test_dialogues_grow_along_the_ramp(turns: Turns) -> None:
    data = opened(turns, ramp=1000, longest=14, long=0.0, dense=0.0)
    longest = [max(map(turns_of, data.pool(index, 50))) for index in (0, 10, 20, 40)]
    assert longest[0] <= 4
    assert longest[1] <= 9
    assert max(longest[2:]) > 9
    assert max(longest) <= 14


def test_long_and_dense_dialogues_have_their_share(turns: Turns) -> None:
    long = opened(turns, long=1.0, asking=0.9).pool(0, 20)
    assert min(map(turns_of, long)) > 10
    assert max(map(turns_of, long)) > 30
    dense = opened(turns, long=0.0, dense=1.0, longest=4).pool(0, 20)
    assert max(map(turns_of, dense)) > 4  # the ramp is of the others


def test_replies_to_questions_alone_are_targets_unless_all_are_wanted(turns: Turns) -> None:
    for sample, whole in zip(opened(turns).pool(0, 20), opened(turns, questions_only=False).pool(0, 20), strict=True):
        assert [step.ids for step in sample.steps] == [step.ids for step in whole.steps]
        assert all(any(t != IGNORE for t in step.targets) for step in whole.steps)
        assert all(
            not step.targets or step.targets == w.targets for step, w in zip(sample.steps, whole.steps, strict=True)
        )
    assert any(not step.targets for sample in opened(turns).pool(0, 20) for step in sample.steps)


def test_held_out_samples_are_fixed_and_in_no_pool(turns: Turns) -> None:
    data = opened(turns, eval_samples=20)
    held = data.held_out()
    assert len(held) == 20
    assert held == data.held_out()
    assert not [sample for sample in data.pool(0, 200) if sample in held]


def test_made_up_names_replace_real_ones_all_through_a_dialogue() -> None:
    dialogue = recall_dialogue(random.Random(3), split="train")
    swapped = MadeUp(1.0, 0.5)(random.Random(0), dialogue)
    told = {v for t in dialogue.turns for kind, v in t.told if kind in ("name", "home", "sister", "brother", "friend")}
    assert told
    text = " ".join(f"{turn.user} {turn.reply}" for turn in swapped.turns)
    assert not [name for name in told if re.search(rf"\b{name}\b", text)]
    for before, after in zip(dialogue.turns, swapped.turns, strict=True):
        if before.asked and before.value not in told:
            assert after.reply == before.reply
    assert MadeUp(0.0, 0.5)(random.Random(0), dialogue) == dialogue


def test_names_in_pieces_may_have_any_piece_after_any_other_but_are_none_of_those_held_out() -> None:
    class Pieces:
        vocabulary = (" An", "na", "dré", "ro", "12", "Zo", " the", "toolong")

        def get_vocab(self) -> dict[str, int]:
            return {token: i for i, token in enumerate(self.vocabulary)}

        def convert_tokens_to_string(self, tokens: list[str]) -> str:
            return "".join(tokens)

    made_up = MadeUp(rate=1.0, spliced=0.0, pieced=1.0, tokenizer=cast(Any, Pieces()))
    rng = random.Random(0)
    names = {made_up.name(rng) for _ in range(500)}
    assert "Anna" in HELD_OUT
    assert "Anna" not in names
    assert all(re.fullmatch("(An|Zo)(na|ro){1,3}", name) for name in names)
    assert len(names) == 2 * (2 + 4 + 8) - 1


def test_recall_is_measured_where_it_is_asked_for() -> None:
    model, tokenizer = ccm.load("builtin")
    turns = make_turns(tokenizer, TURNS)
    assert opened(turns).measure(model) == {}
    measured = opened(turns, recall=2).measure(model)
    assert set(measured) == {"recall", "invented"}
    assert all(0 <= value <= 1 for value in measured.values())
    assert measured["recall"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"longst": 3}, r"data.options has unknown keys \['longst'\]. Did you mean longest"),
        ({"long": "often"}, "data.options.long is 'often'; it must be a number"),
        ({"longest": 3}, "data.options.longest is 3"),
        ({"asking": 0.0}, "data.options.asking is 0"),
        ({"made_up": 1.5}, "data.options.made_up is 1.5"),
        ({"ramp": -1}, "ramp is -1"),
    ],
)
def test_options_that_it_does_not_have_are_refused(turns: Turns, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        opened(turns, **options)


def test_the_kinds_that_are_made_up_exist() -> None:
    from ccm.data.builtin import dialogues as builtin

    assert set(builtin._NAMED) <= set(KINDS)
