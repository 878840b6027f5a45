"""The store: what is kept once, what goes, and what a damaged one says."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccm.core.errors import ConfigError, MemoryFileError
from ccm.serving import sql
from ccm.serving.store import FILE, KeptTurn, Part, QuotaError, Store

ANNA, BOB = b"a" * 32, b"b" * 32


def opened(folder: Path | None = None, origin: str = "model", **changes: Any) -> Store:
    return Store(folder, origin, **{"seconds": 1e6, "quota": 2**20, **changes})


def turn(name: str, previous: str | None = None, chain: bytes | None = None) -> KeptTurn:
    return KeptTurn(name, previous, {"id": name}, [], "", 1.0, chain)


def part(data: bytes, before: int | None = None, *, whole: bool = False, text: str | None = "{}") -> Part:
    return Part(before, 1, whole or before is None, text, data)


def data_of(store: Store, owner: bytes, number: int) -> list[bytes | None]:
    return [one.data for one in store.chain(owner, number)]


def test_a_memory_is_the_parts_of_its_turns_in_order(tmp_path: Path) -> None:
    store = opened(tmp_path)
    first = store.add(ANNA, turn("one"), part(b"1"))
    second = store.add(ANNA, turn("two", "one"), part(b"22", first))
    branch = store.add(ANNA, turn("other", "one"), part(b"333", first))
    store.close()
    store = opened(tmp_path)
    assert data_of(store, ANNA, second) == [b"1", b"22"]
    assert data_of(store, ANNA, branch) == [b"1", b"333"]
    assert store.get(ANNA, "two") == KeptTurn("two", "one", {"id": "two"}, [], "", 1.0, None, second)
    store.close()


def test_a_long_chain_costs_what_its_parts_cost() -> None:
    store, last = opened(quota=2**30), None
    for number in range(300):
        last = store.add(ANNA, turn(str(number), str(number - 1) if number else None), part(b"x" * 1000, last))
    (held,) = store._base.execute("SELECT sum(length(data)) FROM parts").fetchone()
    assert held == 300 * 1000
    assert last is not None
    assert len(data_of(store, ANNA, last)) == 300


@pytest.mark.parametrize(("statement", "values"), [(sql.CHAIN, (1, ANNA, True)), (sql.TREE, (1,))])
def test_data_is_not_sorted_on_the_disk(statement: str, values: tuple[object, ...]) -> None:
    plan = opened()._base.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
    assert plan
    assert not any("TEMP B-TREE" in row[-1] for row in plan)


def test_a_part_goes_with_the_last_turn_that_holds_it() -> None:
    store = opened()
    first = store.add(ANNA, turn("one"), part(b"1"))
    second = store.add(ANNA, turn("two", "one"), part(b"22", first))
    assert store.delete(ANNA, "one") == (["one"], 1)
    assert data_of(store, ANNA, second) == [b"1", b"22"]
    assert store.delete(ANNA, "two") == (["two"], 0)
    assert store._base.execute("SELECT count(*) FROM parts").fetchone() == (0,)


def test_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(ANNA, turn("one"), part(b"a secret of anna"))
    store.delete(ANNA, "one")
    assert b"a secret" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    store.close()


def test_turns_after_a_gap_are_found(tmp_path: Path) -> None:
    store, last = opened(), None
    for name, before in (("one", None), ("two", "one"), ("three", "two")):
        last = store.add(ANNA, turn(name, before), part(name.encode(), last))
    assert store.delete(ANNA, "two") == (["two"], 1)
    assert store.delete(ANNA, "one", cascade=True) == (["one", "three"], 0)
    assert store._base.execute("SELECT count(*) FROM parts").fetchone() == (0,)


def test_one_owner_neither_gets_finds_nor_deletes_what_is_of_another() -> None:
    store = opened()
    last = store.add(ANNA, turn("one", chain=b"c"), part(b"1"))
    assert store.get(BOB, "one") is None
    assert store.find(BOB, [b"c"]) is None
    assert store.delete(BOB, "one") == ([], 0)
    with pytest.raises(MemoryFileError):
        data_of(store, BOB, last)
    with pytest.raises(sqlite3.IntegrityError):
        store.add(BOB, turn("his"), part(b"2", last))
    found = store.find(ANNA, [b"b", b"c", b"d"])
    assert found is not None
    assert found.id == "one"


def test_what_was_not_used_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ccm.serving.store.time.time", lambda: now[0])
    store = opened(seconds=100)
    store.add(ANNA, turn("one"), part(b"1"))
    now[0] += 90
    assert store.get(ANNA, "one") is not None
    now[0] += 90
    assert store.get(ANNA, "one") is not None, "it was used in between"
    now[0] += 101
    assert store.get(ANNA, "one") is None
    store.add(ANNA, turn("two"), part(b"2"))
    store.expire()
    assert store._base.execute("SELECT count(*) FROM parts").fetchone() == (1,)


def test_beyond_the_quota_the_least_recently_used_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("ccm.serving.store.time.time", lambda: now[0])
    store = opened(quota=2500)
    for name in ("one", "two"):
        now[0] += 100
        store.add(ANNA, turn(name), part(b"x" * 1000))
    now[0] += 100
    store.get(ANNA, "one")
    store.add(BOB, turn("his"), part(b"x" * 1000))
    store.add(ANNA, turn("three"), part(b"x" * 1000))
    assert [store.get(ANNA, name) is not None for name in ("one", "two", "three")] == [True, False, True]
    assert store.get(BOB, "his") is not None


def test_a_conversation_beyond_the_quota_is_refused_and_loses_nothing() -> None:
    store, last = opened(quota=2500), None
    for number in range(2):
        last = store.add(ANNA, turn(str(number), str(number - 1) if number else None), part(b"x" * 1000, last))
    with pytest.raises(QuotaError, match="quota of a key is 2500"):
        store.add(ANNA, turn("2", "1"), part(b"x" * 1000, last))
    assert [store.get(ANNA, str(number)) is not None for number in range(3)] == [True, True, False]


def test_a_part_that_was_changed_is_never_served(tmp_path: Path) -> None:
    store = opened(tmp_path)
    last = store.add(ANNA, turn("one"), part(b"whole"))
    store.close()
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("UPDATE parts SET data = ?", (b"torn!",))
    base.commit()
    base.close()
    store = opened(tmp_path)
    with pytest.raises(MemoryFileError, match="damaged"):
        data_of(store, ANNA, last)
    store.close()


def test_a_damaged_part_is_never_served_after_its_turn_was_deleted(tmp_path: Path) -> None:
    store = opened(tmp_path)
    first = store.add(ANNA, turn("one"), part(b"whole"))
    last = store.add(ANNA, turn("two", "one"), part(b"2", first))
    store._base.execute("UPDATE parts SET data = ? WHERE id = ?", (b"torn!", first))
    store.delete(ANNA, "one")
    with pytest.raises(MemoryFileError, match="damaged"):
        data_of(store, ANNA, last)
    store.close()


def test_what_was_deleted_before_a_kill_is_overwritten_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "killed")
    store.add(ANNA, turn("one"), part(b"a secret of anna"))
    with monkeypatch.context() as killed:
        killed.setattr(Store, "_overwrite", lambda self: None)
        store.delete(ANNA, "one")
    shutil.copytree(tmp_path / "killed", tmp_path / "left")  # as a process leaves it that was killed before
    store.close()
    store = opened(tmp_path / "left")
    assert b"a secret" not in b"".join(path.read_bytes() for path in (tmp_path / "left").iterdir())
    store.close()


def test_a_turn_that_is_hidden_keeps_its_own_exchange_alone() -> None:
    store = opened()
    said = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    answer = {"output": [{"type": "message"}, {"type": "compaction", "encrypted_content": "a memory"}]}
    store.add(ANNA, replace(turn("two", chain=b"c"), asked=said, answer=answer), part(b"1"))
    store.change([], hidden=["two"])
    held = store.get(ANNA, "two")
    assert held is not None
    assert (held.asked, held.answer, held.chain) == (said[2:], {"output": [{"type": "message"}]}, None)


def test_what_is_kept_can_be_read_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    store.add(ANNA, turn("one"), part(b"1"))
    monkeypatch.setattr("ccm.serving.store._USED", -1.0)
    store._base.execute("PRAGMA query_only = ON")  # as where the disk is full
    assert store.get(ANNA, "one") is not None


def test_memories_that_hold_a_damaged_part_are_told_and_do_not_count_as_used() -> None:
    store = opened()
    first = store.add(ANNA, turn("one"), part(b"1"))
    second = store.add(ANNA, turn("two", "one"), part(b"2", first))
    store.add(ANNA, turn("three", "two"), part(b"3", second, whole=True))
    store._base.execute("UPDATE parts SET data = x'00' WHERE id = ?", (first,))
    store._base.execute("UPDATE turns SET used = used - 1000")
    before = [row["used"] for row in store.rows()]
    assert store.damaged() == ["one", "two"]
    assert [row["used"] for row in store.rows()] == before


def test_a_torn_file_is_told(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(ANNA, turn("one"), part(b"x" * 100_000))
    store.close()
    torn = bytearray((tmp_path / FILE).read_bytes())
    at = torn.index(b"x" * 4000) // 4096 * 4096
    torn[at : at + 4] = b"\xff" * 4  # the number of the page on which the data go on
    (tmp_path / FILE).write_bytes(torn)
    store = opened(tmp_path)
    with pytest.raises(MemoryFileError, match="The store is damaged: database disk image is malformed"):
        store.damaged()
    store.close()


def test_a_store_of_another_model_or_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(ConfigError, match="another model"):
        opened(tmp_path, "other")
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("PRAGMA user_version = 9")
    base.close()
    with pytest.raises(ConfigError, match="version 9"):
        opened(tmp_path)


def test_a_store_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened"):
        opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be opened"):
        opened(tmp_path / "file")


def test_one_process_has_a_store(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ccm.serving.store import Store\n"
        "store = Store(Path(sys.argv[1]), 'model', seconds=9, quota=9)\nprint('open', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    with pytest.raises(ConfigError, match="another process has it"):
        opened(tmp_path)
    other.communicate("\n")
    opened(tmp_path).close()


def test_what_cannot_be_written_leaves_all_as_it_was() -> None:
    store = opened()
    store.add(ANNA, turn("one"), part(b"1"))
    with pytest.raises(sqlite3.IntegrityError):
        store.add(ANNA, turn("one"), part(b"22"))
    assert store._base.execute("SELECT count(*) FROM parts").fetchone() == (1,)


WRITER = """
import os, sys
from pathlib import Path
from ccm.serving.store import KeptTurn, Part, Store
store, last = Store(Path(sys.argv[1]), "model", seconds=1e6, quota=2**30), None
for number in range(200):
    name = f"{sys.argv[2]}-{number}"
    part = Part(last, 1, last is None, "{}", os.urandom(20_000))
    last = store.add(b"a" * 32, KeptTurn(name, None, {"n": number}, [], "", 1.0), part)
    print(name, flush=True)
"""


@pytest.mark.slow
def test_what_was_acknowledged_is_there_after_kills_in_mid_write(tmp_path: Path) -> None:
    acknowledged: list[str] = []
    for run in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(run)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for number, line in enumerate(writer.stdout):
            acknowledged.append(line.strip())
            if number == 37 + 5 * run:  # somewhere in the middle
                break
        writer.kill()
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.wait()
    store = opened(tmp_path, quota=2**30)
    assert len(acknowledged) > 20 * 30
    for name in acknowledged:
        held = store.get(ANNA, name)
        assert held is not None
        assert len(data_of(store, ANNA, held.part)) == held.answer["n"] + 1
    store.close()
