"""WindowConversation, on the built-in model: exact recent turns, older ones compressed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import PRODUCTS, assert_close
from transformers import PreTrainedTokenizerBase

import ccm
from ccm.chat import window
from ccm.chat.conversation import Conversation
from ccm.chat.window import WindowConversation, window_settings
from ccm.core.errors import ConfigError, InputError, MemoryFileError
from ccm.engine.decoder import CCMModel
from ccm.engine.sampling import Sampling
from ccm.streams.entries import NO_ID
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

LINES = ("My name is Anna.", "I live in Oslo.", "Thank you!", "I like pizza.", "My dog is called Rex.")
SMALL = 40  # entries: about two exchanges beside the memory


@pytest.fixture(scope="module", params=["concat", "gate"])
def loaded(request: pytest.FixtureRequest) -> tuple[CCMModel, PreTrainedTokenizerBase]:
    return ccm.load("builtin", rule=request.param)


def talk(loaded, size: int = SMALL, sampling: Sampling | None = None) -> WindowConversation:
    chat = WindowConversation(*loaded, size, sampling)
    for line in LINES:
        chat.answer(line)
    return chat


@pytest.mark.covers
def test_while_the_window_is_not_full_replies_are_those_of_full_context(loaded) -> None:
    for sampling in (Sampling(), Sampling(repetition_penalty=1.3, max_new_tokens=8)):
        full = Conversation(*ccm.load("builtin", rule="full"), sampling=sampling)
        chat = WindowConversation(*loaded, 400, sampling)
        for line in [*LINES, "Where do I live?"]:
            pieces = [*chat.say(line)]
            assert chat.last is not None
            assert "".join(pieces).strip() == chat.last.reply == full.answer(line)
            assert full.last is not None
            assert chat.last.recent_tokens == chat.last.memory_entries == full.last.memory_entries
        assert chat.past.steps == 0


@pytest.mark.covers("size", "loaded")
@pytest.mark.parametrize("size", [SMALL, 120])  # room for one exchange, and for several, of which the oldest goes
def test_the_oldest_exchanges_are_compressed_one_by_one_as_steps(loaded, size: int) -> None:
    chat, plain = WindowConversation(*loaded, size), Conversation(*loaded)
    begin = chat.turns.prompt("x", first=False)[0]
    lengths, steps = [], 0
    plain.answer(LINES[0])
    for line in [*LINES, *LINES, *LINES]:
        chat.answer(line)
        assert chat.last is not None
        lengths.append(chat.last.step_tokens)
        assert chat.last.memory_entries == chat.past.entries <= size
        held = chat.stream.held
        ids = held.entries.ids[0].tolist()
        assert ids[: held.memory] == [NO_ID] * held.memory
        if held.evictions:
            assert ids[held.memory] == begin
            assert len(ids) - held.memory == chat.past.recent == sum(lengths[held.evictions :])
        if held.evictions == 1 and not steps:  # what was compressed alone is what a conversation makes of it
            for mine, other in zip(held.entries.values, plain.memory.values, strict=True):
                assert_close(mine[:, :, : held.memory], other, depth=PRODUCTS)
        steps = held.evictions
    assert steps >= 5
    assert chat.past.tokens == sum(lengths)


def test_what_was_compressed_is_remembered() -> None:
    chat = talk(ccm.load("builtin", rule="concat"))
    assert chat.past.steps == 2  # those that told both
    assert chat.answer("What is my name?") == "Your name is Anna."
    assert chat.answer("Where do I live?") == "You live in Oslo."


@pytest.mark.covers
def test_no_length_is_too_long(loaded, monkeypatch) -> None:
    monkeypatch.setattr(CCMModel, "max_positions", SMALL + 1)
    chat = WindowConversation(*loaded, SMALL, Sampling(max_new_tokens=4))
    seen = []
    run = type(loaded[0].base).forward

    def forward(self, *args, **kwargs):
        seen.append(int(kwargs["position_ids"].max()))
        return run(self, *args, **kwargs)

    monkeypatch.setattr(type(loaded[0].base), "forward", forward)
    chat.answer("word " * 300)
    for line in LINES:
        chat.answer(line)
    assert chat.past.tokens > 300
    assert chat.past.entries <= SMALL
    assert max(seen) == SMALL
    assert chat.compare("What is my name?")["full"] is None


@pytest.mark.covers
def test_an_interrupted_reply_and_an_empty_turn_leave_the_past_as_it_was(loaded) -> None:
    chat = talk(loaded)
    before, past = chat.stream, chat.past
    pieces = chat.say("What is my name?")
    next(pieces)
    pieces.close()
    with pytest.raises(InputError, match="empty"):
        chat.answer(" ")
    assert chat.stream is before
    assert chat.past == past
    assert chat.answer("What is my name?") == talk(loaded).answer("What is my name?")


@pytest.mark.covers
def test_exchanges_are_taken_back_as_far_as_they_are_kept(loaded, monkeypatch) -> None:
    monkeypatch.setattr(window, "UNDO", 3)
    chat = WindowConversation(*loaded, SMALL)
    states = []
    for line in LINES:
        states.append((chat.stream, chat.past))
        chat.answer(line)
    for count in (0, 4):
        with pytest.raises(InputError, match=f"Cannot take {count} exchanges back, 3 at most"):
            chat.undo(count)
    chat.undo()
    assert (chat.stream, chat.past) == states[4]
    assert chat.last is None
    chat.undo(2)
    assert (chat.stream, chat.past) == states[2]
    with pytest.raises(InputError, match="or reset"):
        chat.undo()
    assert chat.compare("What is my name?")["full"] == "Your name is Anna."


@pytest.mark.covers
def test_a_saved_window_goes_on_as_the_conversation_would_have(loaded, tmp_path: Path) -> None:
    chat = talk(loaded)
    chat.save(tmp_path / "anna.stream")
    other = WindowConversation(*loaded, 100)
    other.load(tmp_path / "anna.stream")
    assert other.past == chat.past
    with pytest.raises(InputError, match="none from before one was loaded"):
        other.undo()
    assert other.compare("What is my name?")["full"] is None
    for line in ("What is my name?", *LINES):
        assert other.answer(line) == chat.answer(line)
        assert other.past == chat.past
    other.reset()
    assert other.past.tokens == 0
    assert (chat.past.window, other.past.window) == (SMALL, 100)


@pytest.mark.covers
def test_files_of_another_kind_leave_the_conversation_as_it_was(loaded, tmp_path: Path) -> None:
    plain, chat = Conversation(*loaded), talk(loaded)
    before = chat.stream
    plain.save(tmp_path / "plain.memory")
    chat.save(tmp_path / "chat.stream")
    with pytest.raises(MemoryFileError, match="a memory, as of a chat without a window; wanted is a stream"):
        chat.load(tmp_path / "plain.memory")
    with pytest.raises(MemoryFileError, match="a stream, as of a chat with a window; wanted is a memory"):
        plain.load(tmp_path / "chat.stream")
    with pytest.raises(MemoryFileError, match="holds a memory, .* without a window, and what is saved is a stream"):
        chat.save(tmp_path / "plain.memory")
    two = StreamingMemory(loaded[0], StreamSettings(40, 10), batch=2)
    two.save(tmp_path / "two.stream")
    with pytest.raises(InputError, match="holds 2 streams"):
        chat.load(tmp_path / "two.stream")
    StreamingMemory(loaded[0], StreamSettings(40, 10, evict="window")).save(tmp_path / "drops.stream")
    with pytest.raises(InputError, match="drops its oldest text"):
        chat.load(tmp_path / "drops.stream")
    assert chat.stream is before


@pytest.mark.covers
def test_compare_answers_three_ways_and_changes_nothing(loaded) -> None:
    chat = talk(loaded)
    before = chat.stream
    replies = chat.compare("Where do I live?")
    assert chat.stream is before
    assert replies["full"] == "You live in Oslo."
    assert replies["none"] == Conversation(*ccm.load("builtin", rule="none")).answer("Where do I live?")
    assert replies["memory"] == chat.answer("Where do I live?")


@pytest.mark.covers
def test_sampling_is_repeatable_with_a_seed(loaded) -> None:
    def said(seed: int) -> list[str]:
        chat = WindowConversation(*loaded, SMALL, Sampling(temperature=1.5, seed=seed, max_new_tokens=8))
        return [chat.answer(line) for line in LINES[:3]]

    assert said(1) == said(1)
    assert any(said(1) != said(seed) for seed in range(2, 6))


def test_a_window_that_does_not_fit_the_model_is_refused(loaded) -> None:
    model = loaded[0]
    least = 2 * (model.config.n_tok + 2)
    for size in (0, least - 1, model.max_positions):
        with pytest.raises(ConfigError, match=f"The window is {size} entries.*from {least} to 3071"):
            WindowConversation(*loaded, size)
    for size in range(least, 120):
        assert window_settings(size, model).least <= size
    with pytest.raises(ConfigError, match="does not compress step by step"):
        WindowConversation(*ccm.load("builtin", rule="full"), SMALL)


def test_the_smallest_window_talks(loaded) -> None:
    least = 2 * (loaded[0].config.n_tok + 2)
    chat = talk(loaded, least, Sampling(max_new_tokens=6))
    assert chat.past.entries <= least
