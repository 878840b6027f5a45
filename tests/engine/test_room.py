"""Room: a conversation goes on beyond its model's positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import RULE_NAMES, assert_close, compress_all, compress_batch, make_sample, same, tiny_base, tiny_model
from tokenizers_made import CHATML, tokenizer

from ccm import Conversation
from ccm.chat.conversation import UNDO
from ccm.core.config import TurnFormat
from ccm.core.errors import InputError, IrreversibleError, UnsupportedModelError
from ccm.engine.layout import Sample
from ccm.engine.memory import Memory
from ccm.engine.room import drop_oldest
from ccm.engine.rope import Rope
from ccm.engine.sampling import Sampling

ROW = make_sample([3, 5, 4, 6], 4, seed=1)
GROWING = ["concat", "full"]


def dropped(rule: str, steps: int, **settings: object) -> tuple[Memory, Memory]:
    """A memory, and what is left of it without its oldest steps."""
    model = tiny_model(rule, **settings)
    memory = compress_all(model, ROW)
    least = sum(step.positions for step in memory.steps[0][:steps])
    return memory, drop_oldest(memory, least, Rope(model.base))


def test_steps_read_in_isolation_leave_nothing_of_those_that_went() -> None:
    model = tiny_model("concat", recurrent=False)
    left = drop_oldest(compress_all(model, ROW), 8, Rope(model.base))
    later = compress_all(model, Sample(ROW.steps[2:], ROW.query))
    assert left.entries == later.entries
    assert left.offset.equal(later.offset)
    for key, value, other_key, other_value in zip(left.keys, left.values, later.keys, later.values, strict=True):
        assert_close(key, other_key)
        assert_close(value, other_value)


def test_a_step_read_in_isolation_is_forgotten_as_if_it_had_never_been() -> None:
    model = tiny_model("concat", recurrent=False)
    left = model.forget(compress_all(model, ROW), 2)
    never = compress_all(model, Sample([ROW.steps[0], *ROW.steps[2:]], ROW.query))
    assert left.steps == never.steps
    assert left.offset.equal(never.offset)
    for key, value, other_key, other_value in zip(left.keys, left.values, never.keys, never.values, strict=True):
        assert_close(key, other_key)
        assert_close(value, other_value)
    with pytest.raises(InputError, match="no step 5; the memory holds 4"):
        model.forget(compress_all(model, ROW), 5)


@pytest.mark.parametrize("settings", [{}, {"recurrent": False, "sink": True}])
def test_a_step_that_other_entries_know_is_not_forgotten(settings: dict[str, bool]) -> None:
    model = tiny_model("concat", **settings)
    with pytest.raises(IrreversibleError, match="Read the other steps again"):
        model.forget(compress_all(model, ROW), 2)


@pytest.mark.parametrize("rule", GROWING)
def test_the_entries_of_the_oldest_steps_go_and_the_others_are_turned_back(rule: str) -> None:
    memory, left = dropped(rule, 2)
    first = int(rule == "full")  # a first token that nothing hides stays
    gone = sum(step.entries or 0 for step in memory.steps[0][:2])
    assert left.entries[0] == memory.entries[0] - gone + first
    assert left.tokens == memory.tokens
    assert left.offset.item() == memory.offset.item() - 8
    assert left.values[-1][:, :, first:].equal(memory.values[-1][:, :, gone:])
    assert not left.keys[0][:, :, first:].equal(memory.keys[0][:, :, gone:])
    if rule == "full":
        assert left.positions[0].tolist() == [0, *range(left.offset.item() - left.width + 1, left.offset.item())]


def test_a_sink_stays_where_it_is() -> None:
    memory, left = dropped("concat", 1, sink=True)
    assert left.keys[0][:, :, 0].equal(memory.keys[0][:, :, 0])
    assert left.entries[0] == memory.entries[0] - 2


@pytest.mark.parametrize("rule", ["merge", "gate", "ema"])
def test_a_memory_that_mixes_is_turned_back_whole(rule: str) -> None:
    memory, left = dropped(rule, 3)
    assert left.entries == memory.entries
    assert left.offset.item() == memory.offset.item() - 12
    assert len(left.steps[0]) == 4, "the next step's weight is of a fifth"
    turn = Rope(tiny_model(rule).base).by(torch.full((memory.width,), -12))
    for layer, (key, before) in enumerate(zip(left.keys, memory.keys, strict=True)):
        assert_close(key, turn(layer, before))
        assert left.values[layer].equal(memory.values[layer])


def test_what_was_left_is_saved_and_rolled_back(tmp_path: Path) -> None:
    model = tiny_model("concat", sink=True)
    left = drop_oldest(compress_all(model, ROW), 4, Rope(model.base))
    left.save(tmp_path / "a.memory")
    assert same(model.load_memory(tmp_path / "a.memory"), left)
    back = left.rollback()
    assert back.offset.item() == left.offset.item() - 6
    assert back.entries[0] == left.entries[0] - 2
    assert left.rollback(4).entries == (0,)


def test_room_is_made_only_where_it_is_needed_and_row_by_row() -> None:
    model = tiny_model("concat", base=tiny_base(max_position_embeddings=64))
    rows = [make_sample([20, 20], 2, seed=1), make_sample([5, 5], 2, seed=2)]
    memory = compress_batch(model, rows)
    assert model.make_room(memory, 22) is memory
    roomy = model.make_room(memory, 23)
    assert roomy.offset.tolist() == [20, 10]
    assert same(roomy[1], memory[1])
    with pytest.raises(InputError, match="64"):
        model.make_room(memory, 63)
    assert model.make_room(memory, 62).offset.tolist() == [0, 0]
    gist = tiny_model("gist", base=tiny_base(max_position_embeddings=64))
    with pytest.raises(InputError, match="64"):
        gist.make_room(compress_all(gist, rows[0]), 40)
    learned = tiny_model("concat", base=tiny_base("gpt2"))
    with pytest.raises(UnsupportedModelError, match="rotary"):
        learned.make_room(compress_all(learned, rows[0]), learned.max_positions - 10)


def chat_of(rule: str, positions: int = 160) -> Conversation:
    made = tokenizer(CHATML, eos="<|im_end|>")
    base = tiny_base(vocab_size=len(made), max_position_embeddings=positions)
    model = tiny_model(rule, base=base, turns=TurnFormat(template="chat"))
    return Conversation(model, made, sampling=Sampling(max_new_tokens=4), system="Be kind.")


@pytest.mark.covers(cases=3)
@pytest.mark.parametrize("rule", [rule for rule in RULE_NAMES if rule not in ("gist", "pos_control")])
def test_a_conversation_has_no_end(rule: str, tmp_path: Path) -> None:
    chat = chat_of(rule)
    for number in range(12):
        chat.answer(f"turn {number}")
        assert chat.memory.offset.item() <= chat.model.max_positions
    assert len(chat.memory.steps[0]) == 12
    assert rule == "none" or chat.memory.tokens[0] > chat.model.max_positions
    chat.undo()
    assert len(chat.memory.steps[0]) == 11
    chat.save(tmp_path / "a.memory")
    chat.load(tmp_path / "a.memory")
    said = chat.compare("so")
    assert said["full"] is None, "not all of its text fits"
    assert chat.answer("so") == said["memory"]
    with pytest.raises(InputError, match="no room for a reply"):
        chat.answer("so " * 60)


def test_a_long_reply_that_may_come_makes_no_step_go() -> None:
    chat = chat_of("concat", 512)
    chat.sampling = Sampling(max_new_tokens=4)
    chat.answer("My name is Anna.")
    chat.sampling = Sampling(max_new_tokens=4096)
    roomy, *_ = chat.placed_prompt("so")
    assert roomy is chat.memory


def test_where_no_room_can_be_made_the_reply_is_shorter() -> None:
    chat = chat_of("gist", 160)
    chat.sampling = Sampling(max_new_tokens=2)
    chat.answer("x" * 80)
    chat.sampling = Sampling(max_new_tokens=80)
    assert chat.memory.offset.item() + 20 < 160
    chat.answer("y")
    with pytest.raises(InputError, match="no room for a reply"):
        chat.answer("y" * 60)


@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_undo_brings_back_what_made_way(rule: str) -> None:
    chat = chat_of(rule, 256)
    for number in range(4):
        chat.answer(f"turn {number}")
    before = chat.memory
    chat.answer("long " * 20)
    assert chat.memory.offset.item() < before.offset.item() + 100
    chat.undo()
    assert same(chat.memory, before)
    for number in range(8):
        chat.answer(f"turn {number}")
    assert len(chat._earlier) <= (1 if rule == "concat" else UNDO), "of memories that grow, one is kept"
    chat.undo(2)
    assert len(chat.memory.steps[0]) == 10
    loaded = Conversation(chat.model, chat.tokenizer, chat.memory, chat.sampling)
    if rule == "concat":
        assert loaded.memory.live < 10
        loaded.undo(loaded.memory.live)
        assert loaded.memory.entries[0] == 0
        with pytest.raises(InputError, match=r"0 at most.*made way"):
            loaded.undo()


def test_a_memory_that_holds_something_has_begun() -> None:
    for rule in ("concat", "merge", "full"):
        model = tiny_model(rule, base=tiny_base(max_position_embeddings=64))
        left = model.make_room(compress_all(model, ROW), 62)
        assert left.offset.item() == 0
        assert left.begun == (left.entries[0] > 0,) == (rule == "merge",)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "full"])
def test_five_thousand_turns(rule: str) -> None:
    chat, most = chat_of(rule, 256), 0
    for number in range(5000):
        chat.answer(f"turn {number}")
        most = max(most, chat.memory.width)
        assert all(x.isfinite().all() for x in (*chat.memory.keys, *chat.memory.values))
    assert chat.memory.offset.item() <= 256
    assert len(chat.memory.steps[0]) == 5000
    assert most <= 256
