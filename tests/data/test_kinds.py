"""Chats and tasks: how they are cut, and which of their replies are targets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.data.kinds import Chat, TaskExample
from ccm.engine.layout import IGNORE
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def long(count: int, silent: frozenset[int] = frozenset()) -> Chat:
    return Chat(tuple((f"ask {i}", f"say {i}") for i in range(count)), "Be kind.", silent)


@pytest.mark.parametrize("count", [2, 4, 6, 7, 8, 10, 12, 5, 9])
def test_a_long_conversation_is_cut_into_stretches_that_use_every_turn(count: int) -> None:
    whole = long(count)
    parts = list(whole.parts(3))
    assert {turn for part in parts for turn in part.turns} == set(whole.turns)
    assert all(1 <= part.length <= 3 and part.system == "Be kind." for part in parts)
    assert {turn for part in whole.parts(1) for turn in part.turns} == set(whole.turns)


@pytest.mark.parametrize(("count", "most"), [(13, 11), (14, 6), (40, 12), (25, 11)])
def test_no_tail_of_a_long_conversation_has_little_to_remember(count: int, most: int) -> None:
    lengths = [len(part.turns) for part in long(count).parts(most)]
    assert sum(lengths) == count
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= most + 1


@given(st.sets(st.integers(0, 11)), st.integers(2, 12), st.integers(1, 5))
def test_every_reply_that_is_learned_is_in_a_stretch_that_ends_with_one(most: set[int], count: int, steps: int) -> None:
    silent = frozenset(i for i in most if i < count)
    whole = long(count, silent)
    heard = {turn for i, turn in enumerate(whole.turns) if i and i not in silent}
    found = set()
    for part in whole.parts(steps):
        assert 1 <= part.length <= steps
        assert part.length not in part.silent
        assert {whole.turns.index(part.turns[i]) for i in part.silent} <= silent
        found |= {turn for i, turn in enumerate(part.turns) if i not in part.silent}
        assert part.latest(0) == Chat(part.turns[-1:], "Be kind.")
    assert heard <= found


@pytest.mark.parametrize("silent", [set(), {0}, {1}, {0, 2}, {1, 2}])
def test_a_reply_that_is_not_learned_is_read_and_the_query_has_a_target(turns: Turns, silent: set[int]) -> None:
    chat = long(4, frozenset(silent))
    for steps in range(1, 4):
        sample = chat.sample(turns, steps)
        read = [*sample.steps, sample.query]
        assert [turns.tokenizer.decode(step.ids).split("say ")[1] for step in read] == [
            str(i) for i in range(len(read))
        ]
        taught = {i for i, step in enumerate(read) if any(target != IGNORE for target in step.targets)}
        assert taught == set(range(len(read))) - silent
        assert len(read) - 1 in taught
        assert len(read) - 1 == steps or steps in silent
        assert len(read) > 1


def test_a_task_cut_short_keeps_its_latest_steps_and_its_query(turns: Turns) -> None:
    sample = TaskExample(("One.", "Two.", "Three."), "Sum?", "Six.").sample(turns, 2)
    read = [turns.tokenizer.decode(step.ids) for step in (*sample.steps, sample.query)]
    assert read == ["<s>Two.", "\nUser:Three.", "\nUser:Sum?\nAssistant:Six."]
