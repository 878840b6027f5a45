"""The built-in dialogues: word lists, wordings, the order of telling and asking, the scorer."""

import random
import re
from collections import Counter
from itertools import permutations

import pytest

from ccm.core.errors import InputError
from ccm.data.builtin import words
from ccm.data.builtin.generator import (
    FACTS,
    HELD_OUT,
    UNKNOWN_REPLY,
    Dialogue,
    Turn,
    Verdict,
    corpus,
    judge,
    recall_dialogue,
    training_dialogue,
    untold_question,
)
from ccm.data.builtin.words import KINDS

PEOPLE = ("name", "sister", "brother", "friend")


def plain(text: str) -> str:
    """Lower-case words with a space on both sides, for whole-word searches."""
    return f" {' '.join(re.findall(r'[a-z]+', text.lower()))} "


VALUES = {plain(v).strip(): v for kind in KINDS.values() for v in kind.values}


def values_in(text: str) -> set[str]:
    """Every value of any kind that occurs in the text as whole words."""
    parts = plain(text).split()
    spans = (" ".join(parts[i : i + n]) for i in range(len(parts)) for n in range(1, 5))
    return {VALUES[span] for span in spans if span in VALUES}


@pytest.fixture(scope="module")
def training() -> list[Dialogue]:
    return list(corpus(seed=5, dialogues=2000))


@pytest.fixture(scope="module")
def lines(training: list[Dialogue]) -> list[Turn]:
    return [turn for dialogue in training for turn in dialogue.turns]


def test_list_sizes() -> None:
    assert len(KINDS) >= 12
    assert len(words.NAMES) >= 150
    assert len(words.CITIES) >= 150
    assert len(KINDS["pet"].values) >= 40
    assert len(set(words.NAMES) & HELD_OUT) >= 15
    for kind in KINDS.values():
        assert len(set(kind.values)) == len(kind.values) >= 30
        assert len(set(kind.statements)) >= 8
        assert len(set(kind.questions)) >= 5
        assert len(kind.replies) >= 3
    for name in ("home", "job", "colour", "food", "hobby", "instrument"):
        assert len(KINDS[name].changes) >= 3
    talk = words.SMALL_TALK + words.GREETINGS + words.GOODBYES
    assert len({line for line, _ in talk}) == len(talk) >= 30


@pytest.mark.parametrize("name", KINDS)
def test_no_value_contains_another(name: str) -> None:
    for one, two in permutations([plain(value) for value in KINDS[name].values], 2):
        assert one not in two


def test_values_belong_to_one_kind() -> None:
    owners = Counter(plain(v) for name, kind in KINDS.items() if name not in PEOPLE for v in kind.values)
    owners.update(plain(name) for name in words.NAMES)
    assert max(owners.values()) == 1


def test_capitals() -> None:
    for value in words.NAMES + words.CITIES + KINDS["pet"].values:
        assert value[0].isupper()
    for kind in ("job", "colour", "food", "hobby", "instrument", "pet_kind"):
        assert all(value.islower() for value in KINDS[kind].values)


def test_wordings_contain_no_values() -> None:
    for kind in KINDS.values():
        texts = kind.statements + kind.questions + kind.replies + kind.changes
        for text in (*texts, *kind.change_replies, kind.answer):
            assert not values_in(re.sub(r"{\w+}", "_", text)), text
    for text in (*words.STATEMENT_LEADS, *words.STATEMENT_TAILS, *words.QUESTION_LEADS):
        assert not values_in(text), text


def test_small_talk_contains_no_values() -> None:
    for line, replies in words.SMALL_TALK + words.GREETINGS + words.GOODBYES:
        assert not values_in(" ".join((line, *replies))), line


@pytest.mark.parametrize(
    ("name", "statement", "question"),
    [
        ("name", "My name is {v}.", "What is my name?"),
        ("home", "I live in {v}.", "Where do I live?"),
        ("job", "I work as {a}.", "What is my job?"),
        ("colour", "My favorite color is {v}.", "What is my favorite color?"),
        ("food", "I love eating {v}.", "What is my favorite food?"),
        ("hobby", "My hobby is {v}.", "What is my hobby?"),
        ("instrument", "I play the {v}.", "Which instrument do I play?"),
        ("pet", "I have {ak} called {v}.", "What is my {k} called?"),
        ("sister", "My sister is called {v}.", "What is my sister called?"),
        ("brother", "My brother is called {v}.", "What is my brother called?"),
        ("friend", "My best friend is called {v}.", "What is my best friend called?"),
    ],
)
def test_required_wordings(name: str, statement: str, question: str) -> None:
    assert statement in KINDS[name].statements
    assert question in KINDS[name].questions


def test_british_wordings(lines: list[Turn]) -> None:
    assert any("favourite colour" in turn.user for turn in lines)


def test_articles(lines: list[Turn]) -> None:
    for turn in lines:
        for text in (turn.user, turn.reply):
            assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text.replace("euph", "")), text


def test_training_never_uses_held_out_words(lines: list[Turn]) -> None:
    text = plain(" _ ".join(f"{turn.user} _ {turn.reply}" for turn in lines))
    for word in HELD_OUT:
        assert plain(word) not in text


def test_splits_draw_from_their_words() -> None:
    drawn: dict[str, set[str]] = {}
    for split in ("eval", "heldout"):
        dialogues = list(corpus(seed=7, dialogues=600, split=split))
        told = [pair for d in dialogues for turn in d.turns for pair in turn.told]
        drawn[split] = {value for name, value in told if name in (*PEOPLE, "home")}
    assert drawn["heldout"] <= HELD_OUT
    assert drawn["eval"] & HELD_OUT
    assert drawn["eval"] - HELD_OUT


@pytest.mark.parametrize("split", ["train", "eval", "heldout"])
def test_questions_ask_for_the_latest_value(split: str) -> None:
    for dialogue in corpus(seed=3, dialogues=500, split=split):
        facts: dict[str, str] = {}
        for turn in dialogue.turns:
            if turn.asked is None:
                assert turn.value is None
                for name, value in turn.told:
                    assert facts.get(name) != value
                    assert plain(value) in plain(turn.user)
                facts.update(turn.told)
            else:
                assert not turn.told
                assert turn.value == facts.get(turn.asked)
                assert judge(turn.reply, turn.asked, turn.value) is Verdict.RIGHT
                assert (turn.reply == UNKNOWN_REPLY) == (turn.value is None)
        assert facts == dialogue.facts
        people = [value for name, value in facts.items() if name in PEOPLE]
        assert len(set(people)) == len(people)


def test_statements_name_only_the_values_told(lines: list[Turn]) -> None:
    mixed = [values_in(turn.user) - {v for _, v in turn.told} for turn in lines if turn.told]
    assert all(len(others) <= 1 for others in mixed)  # a change may name the old value
    assert sum(map(bool, mixed)) < 0.05 * len(mixed)


def test_mixture(training: list[Dialogue], lines: list[Turn]) -> None:
    later = [
        turn
        for dialogue in training
        for i, turn in enumerate(dialogue.turns)
        if any(before.told for before in dialogue.turns[:i])
    ]
    asked = [turn for turn in later if turn.asked]
    assert 0.35 < len(asked) / len(later) < 0.45
    assert 0.09 < sum(turn.value is None for turn in asked) / len(asked) < 0.16
    assert {turn.asked for turn in asked} == set(KINDS)
    assert any(len({name for name, _ in turn.told} - {"pet_kind"}) == 2 for turn in lines)
    careless = sum(turn.user[0].islower() or turn.user[-1].isalnum() for turn in lines)
    assert 0.03 < careless / len(lines) < 0.07
    length = sum(len(f"{turn.user} {turn.reply}".split()) for turn in lines) / len(lines)
    assert 11 < length < 18


def test_deterministic() -> None:
    assert list(corpus(1, 20)) == list(corpus(1, 20))
    assert list(corpus(1, 20)) != list(corpus(2, 20))
    assert all(len(dialogue.turns) in (6, 7) for dialogue in corpus(1, 20, steps=(6, 7)))


@pytest.mark.parametrize("split", ["train", "eval", "heldout"])
@pytest.mark.parametrize("steps", [12, 48])
def test_recall_dialogue(steps: int, split: str) -> None:
    rng = random.Random(11)
    changed = 0
    for _ in range(100):
        dialogue = recall_dialogue(rng, steps=steps, split=split)
        assert len(dialogue.turns) == steps
        assert len(set(dialogue.facts) - {"pet_kind"}) == 8
        asked = [turn.asked for turn in dialogue.turns[-4:]]
        assert None not in asked
        assert len({"pet" if name == "pet_kind" else name for name in asked}) == 4
        for turn in dialogue.turns[-4:]:
            assert turn.asked
            assert turn.value == dialogue.facts[turn.asked]
        telling = dialogue.turns[:-4]
        assert any(not turn.told and turn.asked is None for turn in telling)
        told = Counter(name for turn in telling for name, _ in turn.told)
        changed += max(told.values()) > 1
        assert steps > 12 or not any(turn.asked for turn in telling)
    assert changed > 10


@pytest.mark.parametrize(("steps", "facts", "questions"), [(5, 2, 2), (8, 8, 4), (20, 11, 11), (3, 1, 1), (30, 7, 0)])
def test_recall_dialogue_other_sizes(steps: int, facts: int, questions: int) -> None:
    dialogue = recall_dialogue(random.Random(0), steps, facts, questions)
    assert len(dialogue.turns) == steps
    assert len(set(dialogue.facts) - {"pet_kind"}) == facts


@pytest.mark.parametrize(("steps", "facts", "questions"), [(6, 8, 4), (30, 12, 4), (20, 3, 4)])
def test_recall_dialogue_impossible(steps: int, facts: int, questions: int) -> None:
    with pytest.raises(InputError, match="cannot tell"):
        recall_dialogue(random.Random(0), steps, facts, questions)


def test_long_dialogue() -> None:
    dialogue = training_dialogue(random.Random(0), 500, "heldout")
    assert len(dialogue.turns) == 500
    assert len(set(dialogue.facts) & set(FACTS)) == len(FACTS) - 1


def test_untold_question() -> None:
    rng = random.Random(2)
    for dialogue in corpus(seed=4, dialogues=200):
        turn = untold_question(rng, dialogue)
        assert turn.asked in set(KINDS) - set(dialogue.facts)
        assert turn.value is None
        assert turn.reply == UNKNOWN_REPLY
    with pytest.raises(InputError, match="every kind"):
        untold_question(rng, Dialogue((), dict.fromkeys(KINDS, "x")))


@pytest.mark.parametrize(
    ("reply", "kind", "value", "verdict"),
    [
        ("Your name is Anna.", "name", "Anna", Verdict.RIGHT),
        ("your name is anna", "name", "Anna", Verdict.RIGHT),
        ("ANNA!!!", "name", "Anna", Verdict.RIGHT),
        ("It is Anna's.", "name", "Anna", Verdict.RIGHT),
        ("Your name is Anna or Tom.", "name", "Anna", Verdict.WRONG),
        ("Your name is Tom.", "name", "Anna", Verdict.WRONG),
        ("Your name is Annabel.", "name", "Anna", Verdict.WRONG),
        ("Your name is.", "name", "Anna", Verdict.WRONG),
        ("", "name", "Anna", Verdict.WRONG),
        ("I don't know.", "name", "Anna", Verdict.UNKNOWN),
        ("i don’t know", "name", "Anna", Verdict.UNKNOWN),
        ("I do not know", "name", "Anna", Verdict.UNKNOWN),
        ("I don't know, maybe Tom.", "name", "Anna", Verdict.WRONG),
        ("You live in new  york", "home", "New York", Verdict.RIGHT),
        ("You live in Rio-de-Janeiro.", "home", "Rio de Janeiro", Verdict.RIGHT),
        ("You live in New.", "home", "New York", Verdict.WRONG),
        ("Your dog is called Rex.", "pet", "Rex", Verdict.RIGHT),
        ("You have a dog.", "pet_kind", "dog", Verdict.RIGHT),
        ("You have dogs.", "pet_kind", "dog", Verdict.WRONG),
        ("You live in Metropolis.", "home", "Metropolis", Verdict.RIGHT),
        ("I don't know.", "job", None, Verdict.RIGHT),
        ("You work as a baker.", "job", None, Verdict.WRONG),
        ("I don't know, a baker?", "job", None, Verdict.WRONG),
        ("Nice.", "job", None, Verdict.WRONG),
    ],
)
def test_judge(reply: str, kind: str, value: str | None, verdict: Verdict) -> None:
    assert judge(reply, kind, value) is verdict
