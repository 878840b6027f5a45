"""A store in a file: what is overwritten, what a torn one says, and that one process has it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import stores
from test_turn_store import ANNA, add, data_of, opened

from ccm.core.errors import ConfigError, MemoryFileError
from ccm.serving.kept import ABOUT, PARTS, TURNS
from ccm.serving.sqlite import FILE, SQLiteTables
from ccm.serving.store import Store, open_tables


@pytest.fixture(autouse=True)
def _in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "kind", "files")


def held_in(folder: Path) -> bytes:
    """All bytes of a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_what_is_deleted_is_overwritten(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, "one", b"a secret of anna")
    store.delete(ANNA, "one")
    assert b"a secret" not in held_in(tmp_path)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}
    store.close()


def test_what_was_deleted_before_a_kill_is_overwritten_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "killed")
    add(store, "one", b"a secret of anna")
    with monkeypatch.context() as killed:
        killed.setattr(SQLiteTables, "_overwrite", lambda self: None)
        store.delete(ANNA, "one")
    shutil.copytree(tmp_path / "killed", tmp_path / "left")  # as a process leaves it that was killed before
    store.close()
    store = opened(tmp_path / "left")
    assert b"a secret" not in held_in(tmp_path / "left")
    store.close()


def test_what_is_kept_can_be_read_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = SQLiteTables(None, (TURNS, PARTS, ABOUT))
    store = Store(tables, "model")
    add(store, "one", b"1")
    monkeypatch.setattr("ccm.serving.store._USED", -1.0)
    tables._base.execute("PRAGMA query_only = ON")  # as where the disk is full
    assert store.get(ANNA, "one") is not None


def test_a_torn_file_is_told(tmp_path: Path) -> None:
    store = opened(tmp_path)
    add(store, "one", b"x" * 100_000)
    store.close()
    torn = bytearray((tmp_path / FILE).read_bytes())
    at = torn.index(b"x" * 4000) // 4096 * 4096
    torn[at : at + 4] = b"\xff" * 4  # the number of the page on which the data go on
    (tmp_path / FILE).write_bytes(torn)
    store = opened(tmp_path)
    with pytest.raises(MemoryFileError, match="The store is damaged: database disk image is malformed"):
        store.damaged()
    store.close()


def test_a_store_of_another_version_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    base = sqlite3.connect(tmp_path / FILE)
    base.execute("PRAGMA user_version = 9")
    base.close()
    with pytest.raises(ConfigError, match="version 9"):
        opened(tmp_path)


def test_a_store_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no store"):
        open_tables(tmp_path, make=False)
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened"):
        opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="name a folder"):
        opened(tmp_path / "file")


def test_one_process_has_a_store(tmp_path: Path) -> None:
    script = (
        "import sys; from ccm.serving.store import open_tables\n"
        "tables = open_tables(sys.argv[1])\nprint('open', flush=True); input()"
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


WRITER = """
import os, sys
from ccm.serving.kept import KeptTurn, Part
from ccm.serving.store import Store, open_tables
store, last = Store(open_tables(sys.argv[1]), "model", seconds=1e6, quota=2**30), None
for number in range(200):
    name = f"{sys.argv[2]}-{number}"
    part = Part(name, last, 1, last is None, "{}", os.urandom(20_000))
    store.add(b"a" * 32, [(KeptTurn(name, None, {"n": number}, [], "", 1.0), part)])
    print(name, flush=True)
    last = name
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
        assert len(data_of(store, ANNA, name)) == held.answer["n"] + 1
    store.close()
