"""The store: what is kept once, what goes, and what a damaged one says."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stores import place

from ccm.core.errors import ConfigError, MemoryFileError
from ccm.serving.kept import PARTS, TURNS, ChangedError, KeptTurn, Part
from ccm.serving.store import QuotaError, Store, open_tables
from ccm.serving.tables import StoreUnavailableError, Transaction

pytestmark = pytest.mark.usefixtures("every_store")
ANNA, BOB = b"a" * 32, b"b" * 32


def opened(folder: Path | None = None, origin: str = "model", **changes: Any) -> Store:
    return Store(open_tables(place(folder)), origin, **{"seconds": 1e6, "quota": 2**20, **changes})


def turn(name: str, previous: str | None = None, chain: bytes | None = None) -> KeptTurn:
    return KeptTurn(name, previous, {"id": name}, [], "", 1.0, chain)


def add(
    store: Store,
    name: str,
    data: bytes,
    after: str | None = None,
    *,
    owner: bytes = ANNA,
    whole: bool = False,
    text: str | None = "{}",
    chain: bytes | None = None,
) -> None:
    """Keep a turn with its part."""
    part = Part(name, after, 1, whole or after is None, text, data)
    store.add(owner, [(turn(name, after, chain), part)])


def data_of(store: Store, owner: bytes, name: str) -> list[bytes | None]:
    return [one.data for one in store.chain(owner, name)]


def parts(store: Store) -> dict[str, int]:
    """Ids of all parts, and their sizes."""
    return {name: row["size"] for name, row in store._rows(PARTS, ("size",))}


def used_at(t: Transaction, name: str, when: float) -> None:
    t.update(TURNS, name, {"used": when})


def damage(store: Store, name: str) -> None:
    store.tables.run(lambda t: t.update(PARTS, name, {"data": b"torn!"}))


def test_a_memory_is_the_parts_of_its_turns_in_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, "one", b"1")
    add(store, "two", b"22", "one")
    add(store, "other", b"333", "one")
    store.close()
    store = opened(tmp_path)
    assert data_of(store, ANNA, "two") == [b"1", b"22"]
    assert data_of(store, ANNA, "other") == [b"1", b"333"]
    assert store.get(ANNA, "two") == KeptTurn("two", "one", {"id": "two"}, [], "", 1.0)
    store.close()


def test_a_long_chain_costs_what_its_parts_cost() -> None:
    store = opened(quota=2**30)
    for number in range(300):
        add(store, str(number), b"x" * 998, str(number - 1) if number else None)
    assert sum(parts(store).values()) == 300 * 1000
    assert len(data_of(store, ANNA, "299")) == 300
    assert [one.id for one in store.chain(ANNA, "299", whole=True)] == [str(number) for number in range(300)]


def test_a_part_goes_with_the_last_turn_that_holds_it() -> None:
    store = opened()
    add(store, "one", b"1")
    add(store, "two", b"22", "one")
    assert store.delete(ANNA, "one") == (["one"], ["two"])
    assert data_of(store, ANNA, "two") == [b"1", b"22"]
    assert store.delete(ANNA, "two") == (["two"], [])
    assert parts(store) == {}


def test_turns_after_a_gap_are_found(tmp_path: Path) -> None:
    store = opened()
    for name, before in (("one", None), ("two", "one"), ("three", "two")):
        add(store, name, name.encode(), before)
    assert store.delete(ANNA, "two") == (["two"], ["three"])
    assert store.delete(ANNA, "one", cascade=True) == (["one", "three"], [])
    assert parts(store) == {}


def test_one_owner_neither_gets_finds_nor_deletes_what_is_of_another() -> None:
    store = opened()
    add(store, "one", b"1", chain=b"c")
    assert store.get(BOB, "one") is None
    assert store.find(BOB, [b"c"]) is None
    assert store.delete(BOB, "one") == ([], [])
    with pytest.raises(ChangedError):
        data_of(store, BOB, "one")
    with pytest.raises(ChangedError):
        add(store, "his", b"2", "one", owner=BOB)
    found = store.find(ANNA, [b"b", b"c", b"d"])
    assert found is not None
    assert found.id == "one"


def test_what_was_not_used_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ccm.serving.store.time.time", lambda: now[0])
    store = opened(seconds=100)
    add(store, "one", b"1")
    now[0] += 90
    assert store.get(ANNA, "one") is not None
    now[0] += 90
    assert store.get(ANNA, "one") is not None, "it was used in between"
    now[0] += 101
    assert store.get(ANNA, "one") is None
    add(store, "two", b"2")
    store.expire()
    assert [*parts(store)] == ["two"]


def test_beyond_the_quota_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ccm.serving.store.time.time", lambda: now[0])
    store = opened(quota=2500)
    for name in ("one", "two"):
        now[0] += 100
        add(store, name, b"x" * 1000)
    now[0] += 100
    store.get(ANNA, "one")
    add(store, "his", b"x" * 1000, owner=BOB)
    add(store, "three", b"x" * 1000)
    assert [store.get(ANNA, name) is not None for name in ("one", "two", "three")] == [True, False, True]
    assert store.get(BOB, "his") is not None


def test_a_conversation_beyond_the_quota_is_refused_and_loses_nothing() -> None:
    store = opened(quota=2500)
    add(store, "0", b"x" * 1000)
    add(store, "1", b"x" * 1000, "0")
    with pytest.raises(QuotaError, match="quota of a key is 2500"):
        add(store, "2", b"x" * 1000, "1")
    assert [store.get(ANNA, str(number)) is not None for number in range(3)] == [True, True, False]


def test_a_damaged_part_is_never_served_nor_after_its_turn_was_deleted(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, "one", b"whole")
    add(store, "two", b"2", "one")
    damage(store, "one")
    with pytest.raises(MemoryFileError, match="The memory of one is damaged"):
        data_of(store, ANNA, "two")
    store.delete(ANNA, "one")
    with pytest.raises(MemoryFileError, match="damaged"):
        data_of(store, ANNA, "two")
    store.close()


def test_a_turn_that_is_hidden_keeps_its_own_exchange_alone() -> None:
    store = opened()
    said = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    answer = {"output": [{"type": "message"}, {"type": "compaction", "encrypted_content": "a memory"}]}
    two = replace(turn("two", chain=b"c"), asked=said, answer=answer)
    store.add(ANNA, [(two, Part("two", None, 1, True, "{}", b"1"))])
    store.change([], hidden=["two"])
    held = store.get(ANNA, "two")
    assert held is not None
    assert (held.asked, held.answer, held.chain) == (said[2:], {"output": [{"type": "message"}]}, None)
    assert store.find(ANNA, [b"c"]) is None


def test_memories_that_hold_a_damaged_part_are_told_and_do_not_count_as_used() -> None:
    store = opened()
    add(store, "one", b"1")
    add(store, "two", b"2", "one")
    add(store, "three", b"3", "two", whole=True)
    damage(store, "one")
    for name in ("one", "two", "three"):
        store.tables.run(partial(used_at, name=name, when=1.0))
    before = [row["used"] for row in store.rows()]
    assert store.damaged() == ["one", "two"]
    assert [row["used"] for row in store.rows()] == before


def test_turns_are_kept_together_or_not_at_all() -> None:
    store = opened()
    one, two = Part("one", None, 1, True, "{}", b"1"), Part("two", "absent", 1, False, "{}", b"2")
    with pytest.raises(ChangedError):
        store.add(ANNA, [(turn("one"), one), (turn("two", "one"), two)])
    assert (parts(store), [*store.rows()], store.find(ANNA, [b"c"])) == ({}, [], None)
    store.add(ANNA, [(turn("one"), one), (turn("two", "one"), replace(two, before="one"))])
    assert data_of(store, ANNA, "two") == [b"1", b"2"]


def test_a_store_of_another_model_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match="another model"):
        opened(tmp_path, "other")


def test_no_server_goes_on_with_a_store_that_another_model_has_taken(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, "one", b"1")
    taken = Store(store.tables, None)

    def stop(text: str) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taken.adopt("other", stop)
    for work in (lambda: add(store, "two", b"2", "one"), lambda: store.get(ANNA, "one"), store.check):
        with pytest.raises(StoreUnavailableError, match="given to another model"):
            work()
    with pytest.raises(ConfigError, match="ccm memory rebuild"):
        Store(store.tables, "other")
    Store(store.tables, None).adopt("other", str.upper)
    taken = Store(store.tables, "other")
    assert (taken.part("one").data, taken.get(ANNA, "one") is None) == (None, False)


def test_ids_are_found_from_the_first_or_the_last_on() -> None:
    store = opened()
    for number in range(5):
        add(store, str(number), b"1", chain=b"c")
        store.tables.run(partial(used_at, name=str(number), when=float(number)))

    def work(t: Transaction) -> list[list[str]]:
        t.delete(TURNS, "4")
        t.delete(TURNS, "0")
        return [t.find(TURNS, "owner", [ANNA], until=until, most=most)[0] for until in (9, 2) for most in (2, -2, -9)]

    assert store.tables.run(work) == [["1", "2"], ["2", "3"], ["1", "2", "3"], ["1", "2"], ["1", "2"], ["1", "2"]]


def test_of_many_conversations_that_begin_alike_the_latest_alone_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    store, first, read = opened(), Store._first, list[int]()
    for number in range(40):
        add(store, f"{number:02}", b"1", chain=b"c")
    monkeypatch.setattr(Store, "_first", lambda self, t, who, ids: read.append(len(ids)) or first(self, t, who, ids))
    found = store.find(ANNA, [b"c", b"d"])
    assert found is not None
    assert found.id == "39"
    assert sum(read) < 10
