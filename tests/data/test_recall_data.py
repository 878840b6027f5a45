"""Dialogues of facts that are told and asked for: to train on, and to measure recall with."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_made import CHATML, tokenizer

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError
from ccm.data import recall
from ccm.data.facts import Line, Writer, mixed, read_bank, told_then_asked
from ccm.data.facts.others import CONTENT, OtherWords
from ccm.data.tasks import TaskSettings, open_task
from ccm.engine.layout import IGNORE
from ccm.training.recipe import load_recipe


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(tokenizer(CHATML), TurnFormat("chat"))


def simple(texts: set[str]) -> set[str]:
    return {re.sub(r"[^\w{}# ]", "", text.casefold()) for text in texts}


def test_nothing_that_recall_is_measured_with_is_trained_on() -> None:
    train, held = read_bank("train"), read_bank("held_out")
    assert not simple(train.sentences()) & simple(held.sentences())
    assert not simple(train.values()) & simple(held.values())
    assert len(held.values()) > 200
    assert len(train.kinds) > 30


@pytest.fixture(scope="module")
def others(turns: Turns) -> OtherWords:
    return OtherWords(1.0, turns.tokenizer, read_bank("held_out").words())


@pytest.mark.parametrize("seed", range(3))
def test_other_words_keep_the_shape_of_a_phrase_and_are_none_that_recall_is_measured_with(
    others: OtherWords, seed: int
) -> None:
    measured = read_bank("held_out").words()
    for phrase in sorted(read_bank("train").values() | read_bank("held_out").values()):
        other = others.instead(random.Random(seed), phrase)
        assert other == others.instead(random.Random(seed), phrase)
        if "#" in phrase:
            assert other == phrase
            continue
        shape = r"(\w{2,})".join(re.sub(r"\b([Aa])n?\b", r"\1n?", re.escape(part)) for part in CONTENT.split(phrase))
        found = re.fullmatch(shape, other)
        assert found
        assert [word[0].isupper() for word in found.groups()] == [w[0].isupper() for w in CONTENT.findall(phrase)]
        assert not {word.lower() for word in found.groups()} & measured
        assert not re.search(r"\b[Aa]( [aeio]|n [^aeiouAEIO])", other)


@pytest.mark.parametrize("marked", [0, 30])
def test_all_words_are_invented_where_a_vocabulary_lends_none(marked: int) -> None:
    vocabulary = {f"Ġword{chr(97 + i % 26)}{chr(97 + i // 26)}": i for i in range(marked)} | {"##ing": 99, "cat": 98}
    vocabulary |= {"x": 97}
    pieces = SimpleNamespace(get_vocab=lambda: vocabulary, convert_tokens_to_string=lambda tokens: tokens[0])
    other = OtherWords(1.0, cast(Any, pieces)).instead(random.Random(0), "carrot cake and tea")
    assert re.fullmatch(r"[a-z]{2,} [a-z]{2,} and [a-z]{2,}", other)
    assert "word" not in other


def test_as_many_phrases_have_other_words_as_is_asked_for(turns: Turns) -> None:
    rng = random.Random(0)
    some = OtherWords(0.3, turns.tokenizer)
    changed = sum(some.instead(rng, "carrot cake") != "carrot cake" for _ in range(2000))
    assert 500 < changed < 700
    assert OtherWords(0.0, turns.tokenizer).instead(rng, "carrot cake") == "carrot cake"


@pytest.mark.parametrize("name", ["train", "held_out"])
def test_every_wording_can_be_filled(name: str) -> None:
    bank = read_bank(name)
    for slots in bank.kinds:
        for slot in slots:
            writer = Writer(bank, random.Random(0))
            for part in (slot.kind.told, slot.kind.asked, slot.kind.answer, slot.kind.heard, slot.kind.changed):
                for wording in part:
                    text = writer._filled(wording, slot, "onyx")
                    assert "{" not in text
                    assert not re.search(r"\b[Aa] [aeio]", text)
                    assert ("{v}" in wording or "{a}" in wording) == ("nyx" in text)
            for wording in (*slot.kind.told, *slot.kind.answer):
                assert "{v}" in wording or "{a}" in wording
            for wording in slot.kind.asked:
                assert "{v}" not in wording


def assert_coherent(lines: list[Line]) -> None:
    """Every fact that is asked for was told before, in these words, and no answer of a doubt holds one."""
    for i, line in enumerate(lines):
        if line.value:
            assert line.value.casefold() in line.reply.casefold()
            assert any(line.value.casefold() in said.user.casefold() for said in lines[:i])


def test_a_dialogue_asks_for_what_it_told(others: OtherWords) -> None:
    for seed in range(200):
        count = 2 + seed % 39
        writer = Writer(read_bank("train"), random.Random(seed), replace(others, share=0.4), careless=True)
        lines = mixed(writer, count, asking=0.4, untold=0.1)
        assert len(lines) == count
        assert lines[-1].asks
        assert_coherent(lines)


@given(st.integers(0, 10**6))
def test_a_changed_fact_is_asked_for_as_it_is_now(seed: int) -> None:
    writer = Writer(read_bank("train"), random.Random(seed))
    for _ in range(12):
        writer.tell()
    writer.change()
    latest = [*writer.facts][-1]
    writer.ask(latest)
    assert writer.lines[-1].value in writer.lines[-2].user


@given(st.integers(0, 10**6))
def test_no_two_facts_of_a_dialogue_answer_one_question(seed: int) -> None:
    writer = Writer(read_bank("held_out"), random.Random(seed))
    told_then_asked(writer, 12, 8, 4)
    questions = [
        {writer._filled(wording, slot, "") for wording in slot.kind.asked} for slot, _ in writer.facts.values()
    ]
    assert sum(map(len, questions)) == len(set().union(*questions))


def data(turns: Turns, *changes: str) -> recall.RecallData:
    recipe = load_recipe("custom", ["data.name=recall", *changes])
    return recall.open_data(recipe.data, turns, recipe.seed)


def test_samples_follow_from_seed_and_place(turns: Turns) -> None:
    made = data(turns)
    assert [*made.pool(0, 6)] == [*made.pool(0, 3), *made.pool(1, 3)]
    assert made.pool(0, 1) != data(turns, "seed=1").pool(0, 1)
    assert made.held_out() == made.held_out()
    assert not {str(sample) for sample in made.held_out()} & {str(sample) for sample in made.pool(0, 64)}


def test_system_messages_are_heads_and_only_questions_are_learned_where_it_is_asked_for(turns: Turns) -> None:
    headed = data(turns, "data.options={headed: 1, asked_only: 1}").pool(0, 4)
    assert all(len(sample.head) > len(turns.head) for sample in headed)
    targets = [any(t != IGNORE for t in step.targets) for sample in headed for step in sample.steps]
    assert 0 < sum(targets) < len(targets)
    assert all(any(t != IGNORE for t in sample.query.targets) for sample in headed)
    some = data(turns, "data.options={asked_only: 0.5}").pool(0, 16)
    whole = [all(any(t != IGNORE for t in step.targets) for step in sample.steps) for sample in some]
    assert 0 < sum(whole) < len(whole)


def test_the_task_asks_four_questions_of_every_dialogue_after_its_lines(turns: Turns) -> None:
    task = open_task(TaskSettings("recall", options={"dialogues": 3}), turns)
    questions = [*task.questions(12)]
    assert len(questions) == 12
    for question in questions:
        assert len(question.steps) == 12
        (value,) = question.references
        read = turns.tokenizer.decode([token for step in question.steps for token in step])
        assert value.casefold() in read.casefold()
        tokens = len(turns.tokenizer.tokenize(f" {value}"))
        assert question.task == (recall.LENGTHS[tokens - 1] if tokens < 4 else recall.LENGTHS[-1])
        assert question.alone().steps == []
    assert questions == [*task.questions(12)]
    assert questions != [*replace(task, options=recall.RecallTaskOptions(3, seed=1)).questions(12)]


@pytest.mark.parametrize(("known", "bank"), [(False, "held_out"), (True, "train")])
def test_the_task_asks_for_kinds_that_training_has_where_it_is_asked_to(turns: Turns, known: bool, bank: str) -> None:
    task = open_task(TaskSettings("recall", options={"dialogues": 8, "known": known}), turns)
    plain = {value for value in read_bank(bank).values() if "#" not in value}
    asked = {question.references[0] for question in task.questions(12)}
    assert len(asked & plain) > len(asked) / 2


def test_the_task_asks_for_other_words_where_it_is_asked_to(turns: Turns) -> None:
    known = open_task(TaskSettings("recall", options={"dialogues": 8, "known": True, "others": 1.0}), turns)
    asked = [re.sub(r"\d", "#", question.references[0]) for question in known.questions(12)]
    kept = {*asked} & read_bank("train").values()
    assert len(kept) < len(asked) / 2
    assert all("#" in value or not CONTENT.search(value) for value in kept)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("data.path=a.jsonl", "makes its own dialogues"),
        ("data.options={longest: 3}", "longest is 3; it must be from 4 to 40"),
        ("data.options={asking: 1.5}", "asking is 1.5; it must be from 0 to 1"),
        ("data.options={asked: 1}", "asked"),
    ],
)
def test_what_cannot_be_made_is_refused(turns: Turns, given: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        data(turns, given)


def test_a_task_that_cannot_be_is_refused(turns: Turns) -> None:
    with pytest.raises(ConfigError, match=r"leave task\.path out"):
        open_task(TaskSettings("recall", "folder"), turns)
    with pytest.raises(ConfigError, match="dialogues is 0"):
        open_task(TaskSettings("recall", options={"dialogues": 0}), turns)
    with pytest.raises(ConfigError, match="no time step 7"):
        next(open_task(TaskSettings("recall"), turns).questions(7))
