"""Memories of turns: made from text again, rebuilt for another model, and rid of a step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import assert_close
from serving_app import service
from stores import place

import ccm
from ccm.chat.conversation import Conversation
from ccm.core.errors import InputError, MemoryFileError
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.backend import Backend
from ccm.serving.kept import ChangedError, KeptTurn
from ccm.serving.memories import Heard, KeptMemory, Memories, RecentMemories
from ccm.serving.store import LANDMARK, NEWEST, Store, open_tables
from ccm.serving.transcripts import Passage, Transcript

pytestmark = pytest.mark.usefixtures("every_store")
ANNA = b"a" * 32
LINES = [(f"I have {number} cats.", f"That is {number}!") for number in range(1, 41)]


@cache
def backend(rule: str = "concat", *, recurrent: bool = True) -> Backend:
    model, tokenizer = ccm.load("builtin", rule=rule, recurrent=recurrent)
    return Backend(as_decoder(model, "a test"), tokenizer, "builtin")


def conversation(model: Backend, lines: Iterable[tuple[str, str]], system: str = "") -> Conversation:
    """One that heard the lines."""
    held = Conversation(model.model, model.tokenizer, system=system)
    for said, reply in lines:
        held.hear(said, reply)
    return held


class Kept:
    """A store with conversations whose turns were heard."""

    def __init__(self, model: Backend, folder: Path | None = None, *, text: bool = True, system: str = "") -> None:
        self.model, self.text, self.system = model, text, system
        self.store = Store(open_tables(place(folder)), model.origin)
        self.memories = Memories(model, self.store)
        self.names: dict[str, KeptMemory] = {}

    def hear(self, name: str, previous: str | None, *lines: tuple[str, str], chain: bytes | None = None) -> None:
        """Keep a turn of some exchanges after another one."""
        held = conversation(self.model, [], self.system)
        after = self.names.get(previous or "")
        if after is not None:
            held.go_on(after.memory)
        for said, reply in lines:
            held.hear(said, reply)
        pairs = zip(lines, held.read, strict=True)
        read = [Passage([{"role": "user", "content": said}], reply, ids) for (said, reply), ids in pairs]
        transcript = Transcript(self.system, [], read) if self.text else None
        turn = KeptTurn(name, previous, {"id": name}, [{"role": "user", "content": name}], "", 1.0, chain)
        self.keep(turn, held.memory, transcript)

    def keep(self, turn: KeptTurn, memory: Memory, transcript: Transcript | None) -> None:
        """Keep a turn after the one that it names."""
        after = self.names.get(turn.previous or "")
        packed = self.model.pack(memory, None if after is None else after.memory)
        self.memories.add(ANNA, [Heard(turn, packed, transcript)], after, memory)
        self.names[turn.id] = KeptMemory(memory, turn.id)

    def now(self, name: str) -> Memory:
        """The memory after a turn."""
        turn = self.store.get(ANNA, name)
        assert turn is not None
        return self.memories.get(ANNA, turn.id).memory


def chain_of(kept: Kept, count: int) -> None:
    for number, line in enumerate(LINES[:count]):
        kept.hear(str(number), str(number - 1) if number else None, line)


def assert_same(one: Memory, other: Memory) -> None:
    """Equal up to rounding, with the same records."""
    assert one.steps == other.steps
    assert one.offset.equal(other.offset)
    for x, y in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        assert_close(x, y)


def with_data(kept: Kept) -> list[int]:
    parts = kept.store.following("0")
    return [number for number, (_, part) in enumerate(parts) if part.data is not None]


@pytest.mark.covers
def test_under_rules_that_fold_the_newest_memories_are_kept_and_older_ones_made_from_text() -> None:
    kept = Kept(backend("gate"))
    chain_of(kept, 40)
    assert with_data(kept) == [0, LANDMARK, *range(40 - NEWEST, 40)]
    for name in ("3", "20", "31", "39"):
        assert_same(kept.now(name), kept.names[name].memory)
    kept.hear("branch", "20", LINES[30])
    held = conversation(kept.model, [*LINES[:21], LINES[30]])
    assert_same(kept.now("branch"), held.memory)


@pytest.mark.covers
def test_memories_are_made_again_as_they_were_where_the_oldest_steps_made_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CCMModel, "max_positions", 150)
    kept = Kept(backend("gate"))
    held = Conversation(kept.model.model, kept.model.tokenizer, sampling=Sampling(max_new_tokens=8))
    for number, (line, _) in enumerate(LINES[:20]):
        reply = held.answer(line)
        passage = Passage([{"role": "user", "content": line}], reply, held.read[-1], held.rooms[-1])
        turn = KeptTurn(str(number), str(number - 1) if number else None, {}, [], "", 1.0)
        kept.keep(turn, held.memory, Transcript("", [], [passage]))
    assert held.memory.steps[0][0].positions == 0, "the first step made way"
    for name in ("9", "11"):
        assert int(name) not in with_data(kept)
        assert_same(kept.now(name), kept.names[name].memory)


def test_without_text_every_memory_is_kept() -> None:
    kept = Kept(backend("gate"), text=False)
    chain_of(kept, 20)
    assert with_data(kept) == [*range(20)]


def test_under_rules_that_only_add_a_step_is_kept_once() -> None:
    kept = Kept(backend())
    chain_of(kept, 20)
    assert with_data(kept) == [*range(20)]
    sizes = [len(part.data or b"") for _, part in kept.store.following("0")]
    assert max(sizes[1:]) < 1.2 * min(sizes[1:])
    assert torch.equal(kept.now("19").keys[0], kept.names["19"].memory.keys[0])


def test_what_a_deleted_turn_said_is_gone_and_later_memories_stay() -> None:
    kept = Kept(backend("gate"))
    chain_of(kept, 20)
    assert 9 not in with_data(kept)
    for name in ("5", "8"):
        assert kept.memories.delete(ANNA, name, cascade=False) == (
            [name],
            [str(number) for number in range(int(name) + 1, 20)],
        )
    texts = [part.text for _, part in kept.store.following("0")]
    assert not any("I have 6 cats." in (text or "") or "I have 9 cats." in (text or "") for text in texts)
    for name in ("4", "6", "7", "9", "10", "19"):
        assert_same(kept.now(name), kept.names[name].memory)
    before = "9"
    for number in range(NEWEST):
        kept.hear(f"branch {number}", before, LINES[20 + number])
        before = f"branch {number}"
    assert_same(kept.now("9"), kept.names["9"].memory)
    assert_same(kept.now("6"), kept.names["6"].memory)


@pytest.mark.covers("rule", "every_store")
@pytest.mark.parametrize("rule", ["concat", "gate"])
def test_a_store_is_rebuilt_for_another_rule_and_goes_on_where_that_was_stopped(rule: str, tmp_path: Path) -> None:
    kept = Kept(backend("gate" if rule == "concat" else "concat"), tmp_path, system="Be kind.")
    chain_of(kept, 6)
    kept.hear("branch", "2", LINES[8], LINES[9])
    kept.memories.delete(ANNA, "4", cascade=False)
    kept.store.close()
    store = Store(open_tables(place(tmp_path)), None)
    assert next(Memories(backend(rule), store).rebuild()) == (0, 7)
    store.close()
    kept.store = Store(open_tables(place(tmp_path)), backend(rule).origin)  # a server may go on meanwhile
    kept.memories, kept.model = Memories(backend(rule), kept.store), backend(rule)
    assert_same(kept.now("3"), conversation(kept.model, LINES[:4], "Be kind.").memory)
    assert [*kept.memories.rebuild()][-1] == (7, 7)
    assert [*kept.memories.rebuild()][-1] == (0, 0)
    assert len(with_data(kept)) == 7
    assert_same(kept.now("3"), conversation(kept.model, LINES[:4], "Be kind.").memory)
    assert_same(kept.now("5"), conversation(kept.model, [*LINES[:4], LINES[5]], "Be kind.").memory)
    assert_same(kept.now("branch"), conversation(kept.model, [*LINES[:3], *LINES[8:10]], "Be kind.").memory)
    kept.store.close()


@pytest.mark.covers
def test_what_is_rebuilt_or_forgotten_is_as_small_as_before() -> None:
    kept = Kept(backend("gate"))
    chain_of(kept, 40)
    small = with_data(kept)
    assert [*kept.memories.rebuild()] == [(0, 0)]
    kept.memories.forget(ANNA, "39", 20)
    assert len(with_data(kept)) <= len(small) + 1
    assert_same(kept.now("39"), conversation(kept.model, [*LINES[:19], *LINES[20:]]).memory)
    kept.store.adopt(kept.model.origin, str)
    assert len([*kept.memories.rebuild()]) < 15
    assert len(with_data(kept)) <= len(small) + 1


def test_turns_whose_text_was_not_kept_are_told() -> None:
    kept = Kept(backend())
    kept.hear("one", None, LINES[0])
    kept.text = False
    kept.hear("lost", None, LINES[0])
    kept.text = True
    kept.hear("after", "lost", LINES[1])
    assert sorted(kept.store.textless()) == ["after", "lost"]
    kept.store.adopt("another", str)
    with pytest.raises(MemoryFileError, match="text of this memory was not kept"):
        kept.memories._replay(None, kept.store.chain(ANNA, "lost")[0])


def test_where_steps_are_read_in_isolation_a_step_is_taken_out_without_text() -> None:
    kept = Kept(backend(recurrent=False), text=False)
    chain_of(kept, 5)
    kept.hear("branch", "2", LINES[9])
    done = kept.memories.forget(ANNA, "4", 2)
    assert done.exact
    assert (sorted(done.changed), done.deleted) == (["2", "3", "4", "branch"], ["1"])
    left = [LINES[0], *LINES[2:5]]
    assert_same(kept.now("4"), conversation(kept.model, left).memory)
    assert_same(kept.now("branch"), conversation(kept.model, [LINES[0], LINES[2], LINES[9]]).memory)
    assert_same(kept.now("0"), kept.names["0"].memory)
    assert kept.store.get(ANNA, "1") is None
    sizes = [len(part.data or b"") for _, part in kept.store.following("0")]
    assert max(sizes[2:]) < 1.2 * min(sizes[2:]), "entries are still kept once"


@pytest.mark.covers("rule", "system", "every_store", cases=3)
@pytest.mark.parametrize(("rule", "step", "system"), [("concat", 2, ""), ("gate", 3, "Be kind."), ("concat", 1, "")])
def test_elsewhere_memories_are_made_without_the_step(rule: str, step: int, system: str) -> None:
    kept = Kept(backend(rule), system=system)
    chain_of(kept, 5)
    kept.hear("branch", "3", LINES[9])
    done = kept.memories.forget(ANNA, "4", step)
    assert not done.exact
    assert done.deleted == [str(step - 1)]
    left = [line for number, line in enumerate(LINES[:5], 1) if number != step]
    assert_same(kept.now("4"), conversation(kept.model, left, system).memory)
    assert_same(kept.now("branch"), conversation(kept.model, [*left[:3], LINES[9]], system).memory)
    texts = "".join(part.text or "" for _, part in kept.store.following("0"))
    assert LINES[step - 1][0] not in texts


def test_the_first_step_is_made_without_it_even_where_others_can_be_taken_out() -> None:
    kept = Kept(backend(recurrent=False))
    chain_of(kept, 3)
    assert not kept.memories.forget(ANNA, "2", 1).exact
    assert_same(kept.now("2"), conversation(kept.model, LINES[1:3]).memory)


def test_a_head_knows_distances_so_that_no_step_is_taken_out_behind_one() -> None:
    kept = Kept(backend(recurrent=False), system="Be kind.")
    chain_of(kept, 3)
    assert not kept.memories.forget(ANNA, "2", 2).exact
    assert_same(kept.now("2"), conversation(kept.model, [LINES[0], LINES[2]], "Be kind.").memory)


def test_where_a_later_turn_stands_under_a_head_all_memories_are_made_without_the_step() -> None:
    kept = Kept(backend(recurrent=False))
    chain_of(kept, 3)
    kept.system = "Be kind."
    kept.hear("headed", "2", LINES[3])
    assert not kept.memories.forget(ANNA, "headed", 2).exact
    assert_same(kept.now("2"), conversation(kept.model, [LINES[0], LINES[2]]).memory)
    assert len(kept.now("headed").steps[0]) == 3


def test_of_a_turn_with_several_steps_one_is_forgotten_and_its_text_goes() -> None:
    kept = Kept(backend())
    kept.hear("one", None, *LINES[:3])
    kept.hear("two", "one", LINES[3])
    done = kept.memories.forget(ANNA, "two", 2)
    assert (done.changed, done.deleted) == (["one", "two"], [])
    assert_same(kept.now("two"), conversation(kept.model, [LINES[0], *LINES[2:4]]).memory)
    turn = kept.store.get(ANNA, "one")
    assert turn is not None
    assert (turn.answer, turn.asked) == ({}, [])
    assert kept.memories.forget(ANNA, "two", 2).changed == ["one", "two"], "the next step has its number now"
    assert_same(kept.now("two"), conversation(kept.model, [LINES[0], LINES[3]]).memory)


def test_messages_that_hold_what_is_forgotten_find_no_turn_after_it() -> None:
    kept = Kept(backend())
    for number, line in enumerate(LINES[:3]):
        kept.hear(str(number), str(number - 1) if number else None, line, chain=bytes([number]))
    assert kept.memories.forget(ANNA, "2", 2).deleted == ["1"]
    found = kept.store.find(ANNA, [b"\x00", b"\x01", b"\x02"])
    assert found is not None
    assert found.id == "0"


def test_what_cannot_be_forgotten_is_refused_and_nothing_changes() -> None:
    kept = Kept(backend(), text=False)
    chain_of(kept, 3)
    with pytest.raises(InputError, match="no step 4; the memory of 2 has 3"):
        kept.memories.forget(ANNA, "2", 4)
    with pytest.raises(InputError, match="were not kept"):
        kept.memories.forget(ANNA, "2", 2)
    assert_same(kept.now("2"), kept.names["2"].memory)


def test_memories_that_were_used_last_are_at_hand_within_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(backend("gate"))
    kept.hear("a", None, LINES[0])
    size = kept.now("a").nbytes
    read: list[str] = []
    chain = kept.store.chain
    monkeypatch.setattr(
        kept.store, "chain", lambda owner, name, **more: read.append(name) or chain(owner, name, **more)
    )
    kept.memories = Memories(kept.model, kept.store, 2 * size)
    for name in ("b", "c", "d"):
        kept.hear(name, None, LINES[0])
    for name in ("d", "c", "d", "b", "a"):
        assert_same(kept.now(name), kept.names[name].memory)
    assert read == ["b", "a"], "two fit"
    kept.hear("after", "a", LINES[1])
    kept.now("after")
    assert read == ["b", "a"]
    kept.now("a")
    assert read == ["b", "a", "a"], "a conversation that has gone on is at hand where it is now"


def test_a_memory_at_hand_of_which_a_step_was_forgotten_elsewhere_is_read_again() -> None:
    kept = Kept(backend("gate"))
    kept.memories = Memories(kept.model, kept.store, 10**9)
    kept.hear("one", None, LINES[0])
    kept.hear("two", "one", LINES[1])
    kept.hear("three", "two", LINES[2])
    before = kept.now("three")
    Memories(kept.model, kept.store).forget(ANNA, "three", 2)
    assert len(kept.now("three").steps[0]) == len(before.steps[0]) - 1 == 2
    with pytest.raises(ChangedError, match="forgotten meanwhile"):
        kept.hear("four", "three", LINES[3])
    kept.names["three"] = kept.memories.get(ANNA, "three")
    kept.hear("four", "three", LINES[3])
    assert len(kept.now("four").steps[0]) == 3


def test_a_memory_at_hand_that_was_deleted_is_not_given() -> None:
    kept = Kept(backend("gate"))
    kept.memories = Memories(kept.model, kept.store, 10**9)
    kept.hear("one", None, LINES[0])
    kept.now("one")
    kept.store.delete(ANNA, "one")
    with pytest.raises(ChangedError, match="deleted"):
        kept.memories.get(ANNA, "one")
    kept.hear("two", None, LINES[0])
    kept.memories.delete(ANNA, "two", cascade=False)
    assert kept.memories._recent.get(ANNA, "two") is None


def test_of_a_long_past_that_is_taken_in_each_turn_takes_what_it_adds() -> None:
    served = service()
    for each, count in ((True, 6), (False, 0)):
        options = {"system": "", "tools": [], "sampling": Sampling(), "endless": True, "heard": 6}
        talk = served.begin(ANNA, None, None, **options)
        talk.hear([([{"role": "user", "content": said}], reply) for said, reply in [*LINES[:3]] * 2], each=each)
        assert [(one.steps, one.whole) for one in talk.heard] == [(1, not i) for i in range(count)]


def test_memories_at_hand_count_their_heads_once() -> None:
    model = backend("gate")
    systems = ["Be kind. " * 20, "Be short. " * 20]
    held = [KeptMemory(conversation(model, LINES[:1], system).memory, str(i)) for i, system in enumerate(systems * 2)]
    entries = held[0].memory.nbytes
    (long, short) = (sum(x.nbytes for x in (*h.keys, *h.values)) for h in (one.memory.heads[0] for one in held[:2]))
    recent = RecentMemories(4 * entries + long + short)
    for one in held:
        recent.put(ANNA, one)
    assert recent.taken == 4 * entries + long + short
    recent.drop(ANNA, "0")
    assert recent.taken == 3 * entries + long + short
    recent.drop(ANNA, "2")
    assert recent.taken == 2 * entries + short
    recent = RecentMemories(2 * entries + short)
    for one in held:
        recent.put(ANNA, one)
    assert [recent.get(ANNA, str(i)) is not None for i in range(4)] == [False, False, False, True]


def test_a_turn_is_deleted_with_care_for_memories_that_were_let_go_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept(backend("gate"))
    chain_of(kept, NEWEST + 2)
    in_need, asked = kept.store.in_need, []

    def late(name: str) -> list[tuple[bytes, str]]:
        found = in_need(name)
        if not asked:
            for number in (NEWEST + 2, NEWEST + 3):
                kept.hear(str(number), str(number - 1), LINES[number])
        asked.append(name)
        return found

    monkeypatch.setattr(kept.store, "in_need", late)
    kept.memories.delete(ANNA, "2", cascade=False)
    assert (len(asked), len(kept.now("3").steps[0])) == (2, 4)
