"""Conversation, on the built-in model."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import PRODUCTS, assert_close
from transformers import PreTrainedTokenizerBase

import ccm
from ccm.conversation import Conversation
from ccm.errors import InputError, MemoryFileError
from ccm.memory import Memory
from ccm.model import CCMModel
from ccm.sampling import Sampling

LINES = ("My name is Anna.", "I live in Oslo.", "Thank you!")


@pytest.fixture(scope="module", params=["concat", "gate"])
def loaded(request: pytest.FixtureRequest) -> tuple[CCMModel, PreTrainedTokenizerBase]:
    return ccm.load("builtin", rule=request.param)


def same(a: Memory, b: Memory) -> bool:
    """Whether two memories hold the same numbers."""
    return a.offset.equal(b.offset) and all(torch.equal(x, y) for x, y in zip(a.keys, b.keys, strict=True))


def test_a_turn_streams_the_reply_and_then_compresses_the_exchange(loaded) -> None:
    chat = Conversation(*loaded)
    before = chat.memory
    pieces = []
    for piece in chat.say("My name is Anna."):
        assert chat.memory is before, "the memory changes only once the reply is complete"
        pieces.append(piece)
    assert chat.last is not None
    assert "".join(pieces).strip() == chat.last.reply
    assert chat.last.reply
    n_tok = loaded[0].config.n_tok
    assert chat.memory.entries == (n_tok,)
    assert chat.last.memory_entries == n_tok
    assert chat.last.step_tokens == chat.last.full_context_tokens == chat.memory.tokens[0]


def test_the_memory_is_that_of_the_exchange_without_its_eos(loaded) -> None:
    chat = Conversation(*loaded)
    reply = chat.answer("My name is Anna.")
    step = chat.turns.exchange("My name is Anna.", reply, first=True)
    assert loaded[1].eos_token_id not in step.ids
    with torch.no_grad():
        expected = loaded[0].compress(loaded[0].empty_memory(), torch.tensor([step.ids]))
    for one, other in zip(chat.memory.keys, expected.keys, strict=True):
        assert_close(one, other, depth=PRODUCTS)


def test_a_reply_cut_off_by_the_token_limit_is_compressed_whole(loaded) -> None:
    chat = Conversation(*loaded, sampling=Sampling(max_new_tokens=2))
    chat.answer("My name is Anna.")
    prompt = chat.turns.prompt("My name is Anna.", first=True)
    assert chat.last is not None
    assert chat.last.step_tokens == len(prompt) + 2


def test_an_interrupted_reply_leaves_the_memory_as_it_was(loaded) -> None:
    chat = Conversation(*loaded)
    chat.answer(LINES[0])
    before = chat.memory
    pieces = chat.say(LINES[1])
    next(pieces)
    pieces.close()
    assert chat.memory is before
    assert chat.answer(LINES[1])


def test_an_interrupt_at_the_very_start_leaves_no_thread_behind(loaded, monkeypatch) -> None:
    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    start, before = threading.Thread.start, threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(Conversation(*loaded).say(LINES[0]))
    assert threading.active_count() == before


@pytest.mark.parametrize("text", ["", "   ", "\t\n"])
def test_an_empty_turn_is_refused_and_nothing_is_lost(loaded, text: str) -> None:
    chat = Conversation(*loaded)
    chat.answer(LINES[0])
    before = chat.memory
    with pytest.raises(InputError, match="empty"):
        chat.answer(text)
    assert chat.memory is before


def test_text_beyond_the_models_positions_is_refused_and_nothing_is_lost(loaded) -> None:
    chat = Conversation(*loaded)
    chat.answer(LINES[0])
    before = chat.memory
    with pytest.raises(InputError, match="3072"):
        chat.answer("word " * 4000)
    assert chat.memory is before


def test_a_turn_without_room_for_a_reply_is_refused_before_anything_is_streamed(loaded, monkeypatch) -> None:
    chat = Conversation(*loaded)
    before = chat.memory
    needed = len(chat.turns.prompt(LINES[0], first=True)) + loaded[0].config.n_tok
    monkeypatch.setattr(CCMModel, "max_positions", needed)
    with pytest.raises(InputError, match="no room for a reply"):
        next(chat.say(LINES[0]))
    assert chat.memory is before
    monkeypatch.setattr(CCMModel, "max_positions", needed + 1)
    chat.answer(LINES[0])
    assert chat.memory.tokens[0] <= needed - loaded[0].config.n_tok + 1


def test_a_closed_memory_is_refused_before_anything_is_streamed(loaded) -> None:
    chat = Conversation(*loaded, memory=replace(loaded[0].empty_memory(), closed=True))
    with pytest.raises(InputError, match="closed"):
        next(chat.say(LINES[0]))


def test_undo_gives_back_the_memory_before_each_turn(loaded) -> None:
    chat = Conversation(*loaded)
    states = [chat.memory]
    for line in LINES:
        chat.answer(line)
        states.append(chat.memory)
    for state in reversed(states[:-1]):
        chat.undo()
        assert same(chat.memory, state)
    with pytest.raises(InputError, match="no exchange"):
        chat.undo()


def test_several_exchanges_are_taken_back_at_once_or_none(loaded) -> None:
    chat = Conversation(*loaded)
    for line in LINES:
        chat.answer(line)
    after = chat.memory
    for count in (0, 4):
        with pytest.raises(InputError, match=f"Cannot take {count} exchanges back: there are 3"):
            chat.undo(count)
    assert chat.memory is after
    chat.undo(2)
    assert chat.last is None
    assert len(chat.memory.steps[0]) == 1
    assert chat.compare("What is my name?")["full"] == "Your name is Anna."


def test_a_memory_of_several_conversations_is_refused(loaded, tmp_path: Path) -> None:
    both = loaded[0].empty_memory(2)
    with pytest.raises(InputError, match="holds 2 conversations"):
        Conversation(*loaded, memory=both)
    both.save(tmp_path / "both.memory")
    chat = Conversation(*loaded)
    with pytest.raises(InputError, match="holds 2 conversations"):
        chat.load(tmp_path / "both.memory")
    assert chat.memory.batch == 1


def test_a_saved_memory_goes_on_as_the_conversation_would_have(loaded, tmp_path: Path) -> None:
    chat = Conversation(*loaded)
    for line in LINES[:2]:
        chat.answer(line)
    chat.save(tmp_path / "anna.memory")
    other = Conversation(*loaded)
    other.load(tmp_path / "anna.memory")
    assert same(chat.memory, other.memory)
    if not loaded[0].rule.reversible:
        with pytest.raises(InputError, match="none from before a memory was loaded"):
            other.undo()
    reply = other.answer("What is my name?")
    assert reply == chat.answer("What is my name?")
    assert "Anna" in reply or loaded[0].config.rule != "concat"
    assert other.compare("What is my name?")["full"] is None


def test_a_file_that_cannot_be_loaded_leaves_the_conversation_as_it_was(loaded, tmp_path: Path) -> None:
    chat = Conversation(*loaded)
    chat.answer(LINES[0])
    before = chat.memory
    with pytest.raises(MemoryFileError, match="directory"):
        chat.load(tmp_path)
    assert chat.memory is before


def test_compare_answers_three_ways_and_changes_nothing(loaded) -> None:
    chat = Conversation(*loaded)
    for line in LINES[:2]:
        chat.answer(line)
    before = chat.memory
    replies = chat.compare("Where do I live?")
    assert chat.memory is before
    full = Conversation(*ccm.load("builtin", rule="full"))
    for line in LINES[:2]:
        full.answer(line)
    assert replies["full"] == full.answer("Where do I live?")
    assert replies["none"] == Conversation(*ccm.load("builtin", rule="none")).answer("Where do I live?")
    assert replies["memory"] == chat.answer("Where do I live?")


def test_reset_begins_anew(loaded) -> None:
    chat = Conversation(*loaded)
    first = chat.answer(LINES[0])
    chat.reset()
    assert chat.memory.entries == (0,)
    assert chat.answer(LINES[0]) == first


def test_without_context_every_turn_is_a_first_turn() -> None:
    chat = Conversation(*ccm.load("builtin", rule="none"))
    replies = [chat.answer("Which instrument do I play?") for _ in range(2)]
    assert replies[0] == replies[1]
    assert chat.memory.entries == (0,)
    assert chat.last is not None
    assert chat.last.full_context_tokens == 2 * chat.last.step_tokens


def test_sampling_is_repeatable_with_a_seed(loaded) -> None:
    def talk(seed: int) -> list[str]:
        chat = Conversation(*loaded, sampling=Sampling(temperature=1.5, seed=seed))
        return [chat.answer(line) for line in LINES]

    assert talk(1) == talk(1)
    assert any(talk(1) != talk(seed) for seed in range(2, 6))
