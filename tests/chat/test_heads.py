"""Heads: text that stays raw before all steps, in view of all, shared by the memories under it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import (
    RULE_NAMES,
    assert_close,
    compress_all,
    compress_batch,
    make_sample,
    online_logits,
    parallel_logits,
    same,
    tiny_base,
    tiny_model,
)
from tokenizers_made import CHATML, tokenizer

from ccm import Conversation, WindowConversation
from ccm.core.config import TurnFormat
from ccm.core.errors import InputError, MemoryFileError, UnsupportedModelError
from ccm.core.tensor_files import read_file, write_file
from ccm.engine.layout import Sample
from ccm.engine.memory import KIND, Head, Memory
from ccm.engine.sampling import Sampling

ROWS = [make_sample([3, 5], 4, seed=1, head=4), make_sample([6, 1], 2, seed=2), make_sample([2, 7], 5, seed=3, head=7)]


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_batch_under_heads_of_different_lengths_equals_single_rows(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    batch, single = compress_batch(model, ROWS), [compress_all(model, row) for row in ROWS]
    stacked = Memory.stack(single)
    assert batch.entries == stacked.entries
    query = torch.tensor([[7, 8, 9]] * len(ROWS))
    with torch.no_grad():
        expected = torch.cat([model.read(memory, query[:1]) for memory in single])
        assert_close(model.read(batch, query), expected)
        assert_close(model.read(stacked, query), expected)
    for row, memory in enumerate(single):
        assert same(stacked[row], memory)
        assert memory.heads[0].ids == (*ROWS[row].head,)


@pytest.mark.covers("rule", "family")
@pytest.mark.parametrize("family", ["llama_gqa", "gemma3", "mistral", "gpt2", "exaone4"])
@pytest.mark.parametrize("rule", ["concat", "merge", "gist", "full"])
def test_parallel_equals_online_in_families_with_limited_layers(family: str, rule: str) -> None:
    model = tiny_model(rule, family=family)
    rows = [make_sample([9, 8], 6, seed=1, head=12), make_sample([2, 5], 3, seed=2, head=1)]
    for row, logits in zip(rows, parallel_logits(model, rows), strict=True):
        assert_close(online_logits(model, row), logits)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_under_full_and_none_a_model_with_a_head_is_the_stock_model(family: str) -> None:
    row = make_sample([9, 8], 6, seed=1, head=12)
    read = {"full": [*row.head, *(token for step in row.steps for token in step.ids)], "none": [*row.head]}
    for rule, before in read.items():
        model = tiny_model(rule, family=family)
        with torch.no_grad():
            stock = model.base(torch.tensor([[*before, *row.query.ids]])).logits[0, len(before) :]
        assert_close(online_logits(model, row), stock[:, : model.vocab_size])


@pytest.mark.parametrize("rule", ["concat", "merge", "full"])
def test_every_step_and_the_query_see_the_whole_head_and_none_of_it_is_held(rule: str) -> None:
    for recurrent in (True, False):
        model = tiny_model(rule, recurrent=recurrent)
        row = replace(ROWS[0], head=[5, 6, 7])
        without = compress_all(model, replace(row, head=[]))
        for place in range(3):
            other = replace(row, head=[*row.head[:place], 30, *row.head[place + 1 :]])
            memory, changed = compress_all(model, row), compress_all(model, other)
            assert memory.entries == changed.entries == without.entries
            assert (memory.keys[-1] - changed.keys[-1]).abs().max() > 1e-6
            assert (online_logits(model, row) - online_logits(model, other)).abs().max() > 1e-6


def test_a_head_is_read_once_and_shared() -> None:
    model = tiny_model("concat")
    head = model.head([5, 6, 7])
    assert model.head([5, 6, 7]) is head
    assert model.head((5, 6, 8)) is not head
    assert [len(model.head([])), len(head)] == [0, 3]
    memories = [model.empty_memory(1, [head]) for _ in range(2)]
    assert memories[0].heads[0] is memories[1].heads[0]
    assert memories[0].nbytes == 0
    for i in range(40):
        model.head([i])
    assert model.head([5, 6, 7]) is not head, "a model keeps the last ones alone"


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = tiny_model("concat")
    foreign = tiny_model("concat", base=tiny_base(seed=5)).head([5, 6])
    with pytest.raises(InputError, match="another base model"):
        model.empty_memory(1, [foreign])
    one, other = (model.empty_memory(1, [model.head(ids)]) for ids in ([5, 6], [7]))
    with pytest.raises(InputError, match="another memory"):
        model.read(one, torch.tensor([[5]]), cache=other.cache())
    one.save(tmp_path / "a.memory")
    tensors, manifest = read_file(tmp_path / "a.memory", KIND, MemoryFileError)
    write_file(tmp_path / "b.memory", KIND, tensors, {**manifest, "head": [[10**6]]})
    with pytest.raises(MemoryFileError, match="its head cannot be read"):
        model.load_memory(tmp_path / "b.memory")
    with pytest.raises(InputError, match="1 heads for 2 conversations"):
        model.empty_memory(2, [Head()])
    with pytest.raises(InputError, match="position"):
        model.head([5] * model.max_positions)
    with pytest.raises(InputError, match="1 heads for 2 conversations"):
        model.put_under(model.empty_memory(2), [Head()])


@pytest.mark.parametrize("rule", ["concat", "merge", "full"])
def test_a_memory_goes_back_under_its_head(rule: str, tmp_path: Path) -> None:
    model = tiny_model(rule)
    memory = compress_batch(model, ROWS)
    if rule != "merge":
        before = compress_batch(model, [Sample(row.steps[:1], row.query, row.head) for row in ROWS])
        back = memory.rollback()
        assert (back.entries, back.offset.tolist()) == (before.entries, before.offset.tolist())
        for row in range(len(ROWS)):
            for key, expected in zip(back[row].keys, before[row].keys, strict=True):
                assert_close(key, expected)
    memory.save(tmp_path / "a.memory")
    loaded = model.load_memory(tmp_path / "a.memory")
    assert same(loaded, memory)
    assert [head.ids for head in loaded.heads] == [(*row.head,) for row in ROWS]
    raw = (tmp_path / "a.memory").stat().st_size - memory.nbytes
    assert raw < 4096, "keys and values of the heads are not in the file"
    with pytest.raises(MemoryFileError, match="load_memory"):
        Memory.load(tmp_path / "a.memory", model.origin)


@pytest.mark.parametrize("rule", ["concat", "merge", "full"])
def test_under_another_head_keys_are_turned_by_the_difference_in_length(rule: str) -> None:
    model = tiny_model(rule)
    row = replace(ROWS[0], head=[5, 6, 7])
    memory = compress_all(model, row)
    longer, shorter = model.head([5, 6, 7, 8, 9]), model.head([5])
    moved = model.put_under(memory, [longer])
    assert moved.offset.tolist() == [memory.offset.item() + 2]
    assert moved.heads == (longer,)
    back = model.put_under(model.put_under(moved, [shorter]), [memory.heads[0]])
    for key, other in zip(back.keys, memory.keys, strict=True):
        assert_close(key, other)
    assert back.positions.equal(memory.positions)
    assert model.put_under(memory, [model.head([5, 6, 7])]).keys[0] is memory.keys[0]
    if rule == "full":  # in the first layer nothing is seen: there the turned keys are exact
        expected = compress_all(model, replace(row, head=longer.ids))
        assert_close(moved.keys[0], expected.keys[0])


def test_a_sink_gives_way_to_a_head_and_is_asked_for_where_there_is_none(tmp_path: Path) -> None:
    model = tiny_model("concat", sink=True)
    memory = compress_all(model, replace(ROWS[0], head=[]))
    moved = model.put_under(memory, [model.head([5, 6])])
    assert moved.entries[0] == memory.entries[0] - 1
    moved.save(tmp_path / "a.memory")
    assert same(model.load_memory(tmp_path / "a.memory"), moved)
    assert moved.rollback(2).entries == (0,)
    assert (
        moved.rollback().entries == compress_all(model, replace(ROWS[0], steps=ROWS[0].steps[:1], head=[5, 6])).entries
    )
    for rule in ("full", "gist"):
        raw = tiny_model(rule, sink=True)
        text = compress_all(raw, replace(ROWS[0], head=[]))
        assert raw.put_under(text, [raw.head([5, 6])]).entries == text.entries
    with pytest.raises(InputError, match="first token"):
        model.put_under(moved, [Head()])


def test_where_keys_cannot_be_turned_a_head_of_another_length_is_refused() -> None:
    model = tiny_model("concat", family="gpt2")
    memory = compress_all(model, replace(ROWS[0], head=[5, 6]))
    assert model.put_under(memory, [model.head([7, 8])]).offset.equal(memory.offset)
    with pytest.raises(UnsupportedModelError, match="rotary"):
        model.put_under(memory, [model.head([7])])


# Conversations -------------------------------------------------------------------------------------------------------


def loaded(rule: str = "concat"):
    made = tokenizer(CHATML, eos="<|im_end|>")
    base = tiny_base(vocab_size=len(made), max_position_embeddings=1024)
    return tiny_model(rule, base=base, turns=TurnFormat(template="chat")), made


@pytest.mark.parametrize("rule", ["concat", "merge", "full", "none"])
def test_a_conversation_goes_on_under_its_system_message(rule: str, tmp_path: Path) -> None:
    model, made = loaded(rule)
    chat = Conversation(model, made, system="Be kind.")
    chat.sampling = Sampling(max_new_tokens=5)
    head = tuple(made.encode("<|im_start|>system\nBe kind.<|im_end|>\n"))
    assert chat.memory.heads[0].ids == head
    chat.answer("hi")
    assert chat.memory.offset.item() == len(head) + (0 if rule == "none" else chat.last.step_tokens)
    assert chat.compare("so")["none"] == Conversation(model, made, system="Be kind.", sampling=chat.sampling).answer(
        "so"
    )
    chat.save(tmp_path / "a.memory")
    again = Conversation(model, made, sampling=chat.sampling)
    again.load(tmp_path / "a.memory")
    assert again.memory.heads[0].ids == head, "a memory goes on under the head that it was written under"
    assert again.answer("so") == chat.answer("so")
    other = Conversation(model, made, system="Be brief, please.", sampling=chat.sampling)
    other.load(tmp_path / "a.memory")
    assert other.memory.heads[0].ids == (*other.turns.head,)
    other.reset()
    assert other.memory.heads[0].ids == (*other.turns.head,)


def test_a_window_keeps_its_system_message(tmp_path: Path) -> None:
    model, made = loaded()
    chat = WindowConversation(model, made, 160, system="Be kind.")
    chat.sampling = Sampling(max_new_tokens=5)
    for text in ("hi", "how are you?", "so long", "bye", "hi", "how are you?"):
        chat.answer(text)
        assert chat.stream.held.entries.ids[0, : len(chat.turns.head)].tolist() == chat.turns.head
    assert chat.past.steps, "older exchanges were compressed"
    chat.save(tmp_path / "a.stream")
    again = WindowConversation(model, made, 160, system="Be kind.", sampling=chat.sampling)
    again.load(tmp_path / "a.stream")
    assert again.answer("so") == chat.answer("so")
    with pytest.raises(InputError, match="another system message"):
        WindowConversation(model, made, 160, system="Be brief.").load(tmp_path / "a.stream")


def test_without_turns_of_its_own_a_model_takes_a_system_message_too(tmp_path: Path) -> None:
    made = tokenizer()
    model = tiny_model("concat", base=tiny_base(vocab_size=len(made), max_position_embeddings=512))
    chat = Conversation(model, made, system="Be kind.", sampling=Sampling(max_new_tokens=4))
    chat.save(tmp_path / "a.memory")
    again = Conversation(model, made, sampling=chat.sampling)
    again.load(tmp_path / "a.memory")
    assert again.turns.prompt("hi", first=True) == chat.turns.prompt("hi", first=True), "BOS stands in the head"
    again.reset()
    assert again.turns.prompt("hi", first=True)[0] == made.bos_token_id
    assert made.decode(chat.memory.heads[0].ids) == "<s>Be kind."
    assert made.decode(chat.turns.prompt("hi", first=True)) == "\nUser:hi\nAssistant:"
