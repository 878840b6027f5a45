"""A store in Redis: what servers that share it see of one another, and what a lost connection does."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import stores
from redis import exceptions
from redis.connection import UnixDomainSocketConnection
from serving_app import ask, client, service
from test_memories import Kept, backend
from test_turn_store import ANNA, add, data_of, parts

from ccm.core.errors import ConfigError
from ccm.serving.kept import ERASED, PARTS, TURNS, ChangedError, KeptTurn, Part
from ccm.serving.redis import RedisTables
from ccm.serving.store import NEWEST, Store, open_tables
from ccm.serving.tables import StoreError, StoreUnavailableError, Transaction

KEEPING = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@pytest.fixture
def replicas() -> tuple[Store, Store]:
    """Two servers with one store."""
    url = stores.new_redis()
    return Store(open_tables(url), "model", quota=10_000), Store(open_tables(url), "model", quota=10_000)


def test_two_that_go_on_from_one_turn_both_succeed(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    add(one, "here", b"2", "first")
    add(other, "there", b"3", "first")
    for store in replicas:
        assert data_of(store, ANNA, "here") == [b"1", b"2"]
        assert data_of(store, ANNA, "there") == [b"1", b"3"]


def test_many_writers_at_a_time_lose_nothing() -> None:
    url = stores.new_redis()
    add(Store(open_tables(url), "model"), "root", b"0")
    failed: list[BaseException] = []

    def write(number: int) -> None:
        try:
            store, last = Store(open_tables(url), "model"), "root"
            for step in range(20):
                add(store, f"{number}-{step}", bytes([step]), last)
                if step % 3 == 2:
                    store.delete(ANNA, last)
                last = f"{number}-{step}"
        except BaseException as error:
            failed.append(error)
            raise

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failed == []
    store = Store(open_tables(url), "model")
    for number in range(4):
        assert len(data_of(store, ANNA, f"{number}-19")) == 21
    held = sum(parts(store).values()) + sum(row["size"] for _, row in store._rows(TURNS, ("size",)))
    assert store.tables.run(lambda t: t.held(ANNA)) == held


def test_a_transaction_is_done_again_where_another_wrote_what_it_had_read(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    seen: list[list[str]] = []

    def work(t: Transaction) -> None:
        seen.append(t.find(PARTS, "before", ["first"])[0])
        if len(seen) == 1:
            add(other, "second", b"2", "first")
        t.update(TURNS, "first", {"system": f"{len(seen[-1])} follow"})

    one.tables.run(work)
    assert seen == [[], ["second"]]
    found = one.get(ANNA, "first")
    assert found is not None
    assert found.system == "1 follow"


def test_what_is_only_listed_is_not_read_again_where_another_writes(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    asked = list[list[str]]()

    def work(t: Transaction) -> None:
        asked.append(t.find(TURNS, "owner", [ANNA], watch=False)[0])
        add(other, f"other{len(asked)}", b"2")

    one.tables.run(work)
    assert asked == [["first"]]


def test_two_that_make_room_of_the_same_turns_do_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    url = stores.new_redis()
    one, other = (Store(open_tables(url), "model", quota=3_000) for _ in range(2))
    for number in range(8):
        add(one, f"old{number}", bytes(300))
    tried, run = list[int](), one.tables.run

    def told(work: Any, **options: Any) -> Any:
        def counted(t: Transaction) -> Any:
            tried.append(1)
            done = work(t)
            if len(tried) == 1:  # another makes room of the same turns meanwhile
                add(other, "other", bytes(300))
            return done

        return run(counted, **options)

    monkeypatch.setattr(one.tables, "run", told)
    add(one, "mine", bytes(300))
    assert one.get(ANNA, "mine") is not None
    assert other.get(ANNA, "other") is not None
    assert one.held()[ANNA] == sum(row["size"] for row in one.rows()), "no turn made way twice"


def test_what_was_deleted_meanwhile_does_not_come_back(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    runs = []

    def work(t: Transaction) -> None:
        there = t.get(TURNS, ["first"], ("owner",)) != [None]
        runs.append(there)
        if there:
            other.delete(ANNA, "first")
            t.update(TURNS, "first", {"used": 5.0})

    one.tables.run(work)
    assert runs == [True, False]
    assert ([*one.rows()], parts(one)) == ([], {})


def test_what_is_read_while_another_writes_is_read_again(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    runs = []

    def work(t: Transaction) -> None:
        runs.append(t.get(TURNS, ["first"], ("owner",)) != [None])
        if len(runs) == 1:
            other.delete(ANNA, "first")
        if t.get(PARTS, ["first"], ("owner",)) != [None] or not runs[-1]:
            return
        raise ChangedError("a turn without its part was never there")

    one.tables.run(work)
    assert runs == [True, False]


def test_a_turn_whose_beginning_another_deleted_is_not_kept(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    add(one, "first", b"1")
    other.delete(ANNA, "first")
    with pytest.raises(ChangedError):
        add(one, "second", b"2", "first")
    assert ([*one.rows()], parts(one)) == ([], {})
    for name, before in (("third", None), ("fourth", "third"), ("fifth", "fourth")):
        add(one, name, b"3", before)
    other.delete(ANNA, "fourth")
    with pytest.raises(ChangedError):
        add(one, "sixth", b"6", "fourth")  # its part is there still: deleting what follows the third would miss it


def test_what_is_written_is_seen_within_its_transaction(replicas: tuple[Store, Store]) -> None:
    row = {"owner": ANNA, "previous": "a", "chain": None, "created": 1.0, "used": 2.0, "size": 3}
    texts = {"system": "s", "asked": "[]", "answer": "{}"}

    def work(t: Transaction) -> None:
        t.insert(TURNS, "b", row | texts)
        t.insert(TURNS, "c", row | texts | {"created": 0.5, "chain": b"c"})
        assert t.find(TURNS, "previous", ["a", "z"]) == [["c", "b"], []]
        t.update(TURNS, "b", {"previous": None, "used": 1.0})
        assert t.find(TURNS, "previous", ["a"]) == [["c"]]
        assert t.find(TURNS, "owner", [ANNA]) == [["b", "c"]]
        assert t.find(TURNS, "owner", [ANNA], until=1.5) == [["b"]]
        assert t.find(TURNS, "owner", [ANNA], most=1) == [["b"]]
        assert t.find(TURNS, "owner", [ANNA], most=-1) == [["c"]]
        t.delete(TURNS, "c")
        assert t.get(TURNS, ["b", "c"], ("previous", "system")) == [{"previous": None, "system": "s"}, None]
        assert t.find(TURNS, "chain", [b"c"]) == [[]]

    for store in (replicas[0], Store(open_tables(None), "model")):
        store.tables.run(work)
        assert store.tables.run(lambda t: t.get(TURNS, ["b"])) == [row | texts | {"previous": None, "used": 1.0}]


def test_a_step_is_forgotten_in_what_another_server_kept_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "kind", "redis")
    kept = Kept(backend("gate"))
    kept.hear("one", None, ("My name is Anna.", "Nice."))
    kept.hear("two", "one", ("I live in Oslo.", "Good."))
    change, tried = kept.store.change, []

    def slow(*given: Any, **more: Any) -> None:
        tried.append(1)
        if len(tried) == 1:
            kept.hear("three", "two", ("I have a cat.", "Fine."))
        change(*given, **more)

    monkeypatch.setattr(kept.store, "change", slow)
    assert sorted(kept.memories.forget(ANNA, "two", 1).changed) == ["three", "two"]
    assert len(tried) == 2
    alone = Kept(backend("gate"))
    alone.hear("two", None, ("I live in Oslo.", "Good."))
    alone.hear("three", "two", ("I have a cat.", "Fine."))
    assert kept.now("three").steps == alone.now("three").steps


def test_two_that_forget_the_same_step_forget_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "kind", "redis")
    kept = Kept(backend("gate"))
    kept.hear("one", None, ("My name is Anna.", "Nice."), ("I live in Oslo.", "Good."), ("I have a cat.", "Fine."))
    change = kept.store.change

    def slow(*given: Any, **more: Any) -> None:
        monkeypatch.setattr(kept.store, "change", change)
        kept.memories.forget(ANNA, "one", 1)
        change(*given, **more)

    monkeypatch.setattr(kept.store, "change", slow)
    with pytest.raises(ChangedError, match="other numbers now"):
        kept.memories.forget(ANNA, "one", 1)
    assert len(kept.now("one").steps[0]) == 2


def test_a_memory_that_is_made_again_brings_no_text_back_that_another_server_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "kind", "redis")
    kept = Kept(backend("gate"))
    for number in range(NEWEST + 3):
        kept.hear(str(number), str(number - 1) if number else None, (f"I have {number} cats.", "Good."))
    replay = kept.model.replay

    def slow(*given: Any) -> Any:
        made = replay(*given)
        kept.store.delete(ANNA, "2")
        return made

    assert kept.store.in_need("1") == [(ANNA, "2")]
    monkeypatch.setattr(kept.model, "replay", slow)
    kept.memories.delete(ANNA, "1", cascade=False)
    assert kept.store.part("2").text == ERASED


def test_a_store_that_cannot_be_had_is_told_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"redis://127\.0\.0\.1:1/3 cannot be opened.*Start Redis") as told:
        open_tables("redis://user:secret@127.0.0.1:1/3")
    assert "secret" not in str(told.value)
    for part in ("127.0.0.1:port", "[::1", "127.0.0.1?unknown=1", "127.0.0.1/abc", ":sec/ret@127.0.0.1"):
        with pytest.raises(ConfigError, match="cannot be opened: its address is not understood") as told:
            open_tables(f"redis://{part}")
        assert "sec" not in str(told.value)
    with pytest.raises(ConfigError, match="no address valkey://.*redis://"):
        open_tables("valkey://:secret@127.0.0.1:1")
    url = stores.new_redis()
    tables = RedisTables(url)
    tables._base.set("ccm:version", 9)
    with pytest.raises(ConfigError, match="version 9"):
        open_tables(url)


def test_a_redis_without_a_store_is_left_as_it_is_by_those_who_make_none() -> None:
    url = stores.new_redis()
    tables = open_tables(url, make=False)
    with pytest.raises(ConfigError, match="holds no store"):
        Store(tables, None)
    assert isinstance(tables, RedisTables)
    assert tables._base.keys() == []


def test_a_connection_that_is_lost_gives_503_and_loses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redis = stores.start_redis(tmp_path, *KEEPING)
    one = service()
    served = service(tables=open_tables(f"unix://{tmp_path / 'socket'}"))
    web = client(served)
    first = ask(web, "My name is Anna.")
    redis.kill()
    redis.wait()
    body = {"model": "builtin", "input": "Hi.", "previous_response_id": first["id"]}
    for answer in (web.post("/v1/responses", json=body), web.get(f"/v1/responses/{first['id']}")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
    assert (web.get("/ready").status_code, web.get("/health").status_code) == (503, 200)
    assert "cannot be reached" in web.get("/ready").text
    (tmp_path / "socket").unlink()
    redis = stores.start_redis(tmp_path, *KEEPING)
    assert web.get("/ready").text == "ok\n"
    assert "Anna" in str(ask(web, "What is my name?", first["id"])["output"])
    told = [record.message for record in caplog.records if getattr(record, "event", "") == "store"]
    assert told == [f"The store unix://{tmp_path / 'socket'} {how}" for how in ("cannot be reached", "answers again")]
    redis.kill()
    redis.wait()
    one.store.close()


def test_what_was_written_as_its_answer_was_lost_is_not_written_again(
    replicas: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, send = replicas[0], UnixDomainSocketConnection.send_packed_command

    def lose(self: UnixDomainSocketConnection, command: list[bytes], check_health: bool = True) -> None:
        send(self, command, check_health)
        if b"HINCRBY" in b"".join(command):
            self.can_read(5)
            raise exceptions.ConnectionError("lost")

    with monkeypatch.context() as patch:
        patch.setattr(UnixDomainSocketConnection, "send_packed_command", lose)
        with pytest.raises(StoreUnavailableError):
            add(store, "one", b"1")
    held = sum(parts(store).values()) + sum(row["size"] for _, row in store._rows(TURNS, ("size",)))
    assert store.tables.run(lambda t: t.held(ANNA)) == held > 0


def test_what_was_not_used_expires_while_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    url = stores.new_redis()
    one, other = Store(open_tables(url), "model", seconds=100), Store(open_tables(url), "model")
    add(one, "old", b"1")
    now, drop, count = time.time(), Store._drop, itertools.count()

    def slow(*given: Any) -> int:
        add(other, f"new {next(count)}", b"2")
        return drop(*given)

    monkeypatch.setattr(Store, "_drop", slow)
    monkeypatch.setattr("ccm.serving.store.time.time", lambda: now + 200)
    one.expire()
    assert [*parts(one)] == ["new 0"]


def test_no_id_of_a_client_is_the_key_of_an_index(replicas: tuple[Store, Store]) -> None:
    store = replicas[0]
    add(store, "one", b"1")
    add(store, "two", b"2", "one")
    assert isinstance(store.tables, RedisTables)
    keys = store.tables._base.keys("ccm:turns:*")
    assert sorted(keys) == [b"ccm:turns:one", b"ccm:turns:two"]


def test_a_redis_that_hangs_holds_up_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccm.serving.redis._SECONDS", 0.2)
    monkeypatch.setattr("ccm.serving.redis._PAUSE", 60.0)
    redis = stores.start_redis(tmp_path, *KEEPING)
    store = Store(open_tables(f"unix://{tmp_path / 'socket'}"), "model")
    add(store, "one", b"1")
    redis.send_signal(signal.SIGSTOP)
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.get(ANNA, "one")
    monkeypatch.setattr(store.tables, "_base", None)
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        store.get(ANNA, "one")
    redis.kill()
    redis.wait()


def test_what_may_lose_turns_is_told(tmp_path: Path) -> None:
    redis = stores.start_redis(tmp_path, *KEEPING)
    tables = RedisTables(f"unix://{tmp_path / 'socket'}")
    assert tables.warnings() == []
    for name, value, said in (
        ("appendfsync", "everysec", "appendfsync always"),
        ("maxmemory-policy", "allkeys-lru", "noeviction"),
        ("appendonly", "no", "appendonly yes and appendfsync always"),
    ):
        tables._base.config_set("maxmemory", 2**30)
        tables._base.config_set(name, value)
        assert any(said in warning for warning in tables.warnings()), name
    redis.kill()
    redis.wait()


def test_a_full_redis_is_told_and_loses_nothing(tmp_path: Path) -> None:
    redis = stores.start_redis(tmp_path, *KEEPING)
    store = Store(open_tables(f"unix://{tmp_path / 'socket'}"), "model")
    add(store, "one", b"1")
    assert isinstance(store.tables, RedisTables)
    store.tables._base.config_set("maxmemory", 1)
    with pytest.raises(StoreError, match="maxmemory"):
        add(store, "two", b"2", "one")
    for again in (store, Store(open_tables(f"unix://{tmp_path / 'socket'}"), "model")):
        assert data_of(again, ANNA, "one") == [b"1"]
    redis.kill()
    redis.wait()


def test_a_redis_that_became_a_copy_of_another_is_told_as_one_that_cannot_be_reached(tmp_path: Path) -> None:
    redis = stores.start_redis(tmp_path, *KEEPING)
    store = Store(open_tables(f"unix://{tmp_path / 'socket'}"), "model")
    assert isinstance(store.tables, RedisTables)
    store.tables._base.replicaof("127.0.0.1", 1)
    with pytest.raises(StoreUnavailableError):
        add(store, "one", b"1")
    redis.kill()
    redis.wait()


def test_transactions_that_never_come_through_end(replicas: tuple[Store, Store]) -> None:
    one, other = replicas
    one.add(ANNA, [(KeptTurn("first", None, {}, [], "", 1.0), Part("first", None, 1, True, "{}", b"1"))])

    def work(t: Transaction) -> None:
        t.get(TURNS, ["first"])
        other.tables.run(lambda t: t.update(TURNS, "first", {"system": "new"}))
        t.update(TURNS, "first", {"system": "old"})

    with pytest.raises(StoreUnavailableError, match="again and again"):
        one.tables.run(work)
