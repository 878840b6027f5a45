"""Dialogues in which sentences of other conversations are recited."""

from __future__ import annotations

import json
import random
import re
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers_made import CHATML, tokenizer

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data
from ccm.data.recital import BY_BEGINNING, BY_WORD, LONGEST, SHORTEST, Recitals, sentences
from ccm.data.settings import DataSettings
from ccm.engine.layout import IGNORE, length

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe"]
WORDS = ["".join(parts) for parts in product(SYLLABLES, repeat=3)]
COMMON = ["this", "that", "then", "when", "where", "which", "while", "with", "from", "have"]


def line(rng: random.Random) -> str:
    """One to three sentences of 2 to 24 words."""
    made = (
        [rng.choice(WORDS if rng.random() < 0.7 else COMMON) for _ in range(rng.randint(2, 24))]
        for _ in range(rng.randint(1, 3))
    )
    return " ".join(" ".join(words).capitalize() + rng.choice(".!?") for words in made)


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(tokenizer(CHATML), TurnFormat("chat"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("recital") / "chats.jsonl"
    with file.open("w") as out:
        for _ in range(60):
            said = [{"role": role, "content": line(rng)} for _ in range(8) for role in ("user", "assistant")]
            out.write(json.dumps({"messages": said}) + "\n")
    return file


def opened(path: Path, turns: Turns, seed: int = 0, **options: Any) -> Recitals:
    data = open_data(DataSettings("recital", str(path), options, eval_samples=4, max_step_tokens=1024), turns, seed)
    assert isinstance(data, Recitals)
    return data


@pytest.fixture(scope="module")
def data(path: Path, turns: Turns) -> Recitals:
    return opened(path, turns)


@given(seed=st.integers(0, 10**6))
def test_what_is_recited_was_said_once_and_by_the_one_who_is_asked(data: Recitals, seed: int) -> None:
    told, asked = data.dialogue(random.Random(seed), data.chats)
    said = [*sentences(told)]
    for question, answer in asked:
        found = [one for one in said if one.text in answer]
        if not found:  # its beginning is in the question
            found = [one for one in said if begins_and_ends(one.text, question, answer)]
        assert len({one.text for one in found}) == 1
        forms = [*BY_WORD[found[0].by_assistant], *BY_BEGINNING[found[0].by_assistant]]
        assert any(question.startswith(form.partition("{")[0]) for form, _ in forms)


def begins_and_ends(sentence: str, question: str, answer: str) -> bool:
    words = sentence.split()
    cuts = ((" ".join(words[:cut]), " ".join(words[cut:])) for cut in range(2, len(words)))
    return any(begun in question and answer.endswith(rest) for begun, rest in cuts)


@pytest.fixture(scope="module")
def by_word(path: Path, turns: Turns) -> Recitals:
    return opened(path, turns, begun=0.0)


@pytest.fixture(scope="module")
def by_beginning(path: Path, turns: Turns) -> Recitals:
    return opened(path, turns, begun=1.0)


@given(seed=st.integers(0, 10**6))
def test_a_question_tells_one_sentence_from_all_others(by_word: Recitals, by_beginning: Recitals, seed: int) -> None:
    told, asked = by_word.dialogue(random.Random(seed), by_word.chats)
    for question, answer in asked:
        [word] = [word for word in WORDS if re.search(rf"\b{word}\b", question, re.IGNORECASE)]
        assert word in answer.casefold()
        assert sum(bool(re.search(rf"\b{word}\b", one.text, re.IGNORECASE)) for one in sentences(told)) == 1
    told, asked = by_beginning.dialogue(random.Random(seed), by_beginning.chats)
    for question, answer in asked:
        assert len([one for one in sentences(told) if begins_and_ends(one.text, question, answer)]) == 1


def test_only_what_is_recited_is_a_target(data: Recitals) -> None:
    for sample in data.pool(0, 20):
        steps = [*sample.steps, sample.query]
        taught = [any(target != IGNORE for target in step.targets) for step in steps]
        assert taught == sorted(taught)
        assert not any(taught[:2])
        assert taught[-1]


def test_samples_follow_from_the_seed_and_the_place(path: Path, turns: Turns, data: Recitals) -> None:
    again = opened(path, turns)
    assert [str(data.at(5)), str(data.pool(1, 4)[1])] == [str(again.at(5))] * 2
    assert str(opened(path, turns, seed=1).at(5)) != str(data.at(5))


def test_samples_are_no_longer_than_is_told(data: Recitals) -> None:
    for sample in data.pool(0, 80):
        assert len(sample.steps) <= data.deepest
        assert length(sample) <= data.longest


def test_conversations_to_evaluate_on_are_held_out(data: Recitals) -> None:
    assert len(data.held_out()) == 4
    told = set(chain.from_iterable(chat.turns for chat in data.chats))
    assert data.held
    assert told.isdisjoint(chain.from_iterable(chat.turns for chat in data.held))


@pytest.mark.parametrize("together", [0.0, 1.0])
def test_exchanges_stand_together_as_far_as_is_asked(path: Path, turns: Turns, together: float) -> None:
    data = opened(path, turns, together=together)
    stretches = [chat.turns[i : i + 2] for chat in data.chats for i in range(len(chat.turns))]
    for seed in range(20):
        told, _ = data.dialogue(random.Random(seed), data.chats)
        assert (tuple(told[:2]) in stretches) == bool(together)


def test_sentences_end_at_their_marks_and_not_within_numbers() -> None:
    told = [("It costs $4.35 a night here. Ok?\nAnd this is the next one!", "Too short."), ("a " * (LONGEST + 1), "")]
    assert [(one.text, one.by_assistant) for one in sentences(told)] == [
        ("It costs $4.35 a night here.", False),
        ("And this is the next one!", False),
    ]
    assert SHORTEST == 4


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"messages": [{"role": r, "content": "Hm."} for r in ("user", "assistant") * 2]},
            "conversations in sentences",
        ),
        ({"steps": ["One."], "query": "Sum?", "answer": "Two."}, "holds no conversation"),
    ],
)
def test_what_cannot_be_recited_is_told(tmp_path: Path, turns: Turns, line: dict[str, Any], said: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(f"{json.dumps(line)}\n" * 20)
    with pytest.raises(DataError, match=said):
        opened(file, turns).at(0)


def test_a_file_must_be_named(turns: Turns) -> None:
    with pytest.raises(ConfigError, match=r"needs a file or folder of conversations; name it as data\.path=PATH"):
        open_data(DataSettings("recital"), turns, 0)
    with pytest.raises(ConfigError, match="asked"):
        open_data(DataSettings("recital", "x", {"asked": 0}), turns, 0)
