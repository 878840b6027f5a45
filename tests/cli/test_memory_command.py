"""``ccm memory``: what a server keeps, seen while it does not run."""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import ccm
from ccm import cli
from ccm.chat.conversation import Conversation
from ccm.core.units import size
from ccm.engine.decoder import as_decoder
from ccm.serving.backend import Backend
from ccm.serving.kept import PARTS, KeptTurn
from ccm.serving.memories import Heard, KeptMemory, Memories
from ccm.serving.store import Store, open_tables
from ccm.serving.tables import Transaction
from ccm.serving.transcripts import Passage, Transcript

OWNER = b"o" * 32


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A store with two turns of a conversation."""
    model, tokenizer = ccm.load("builtin")
    held, backend = Conversation(model, tokenizer), Backend(as_decoder(model, "a test"), tokenizer, "builtin")
    store, after = Store(open_tables(tmp_path / "store"), backend.origin), None
    for name, before, text in (("one", None, "My name is Anna."), ("two", "one", "I live in Oslo.")):
        reply = held.answer(text)
        turn = KeptTurn(name, before, {"said": reply}, [{"role": "user", "content": text}], "", 1e9)
        transcript = Transcript("", [], [Passage([{"role": "user", "content": text}], reply, held.read[-1])])
        packed = backend.pack(held.memory, after.memory if after else None)
        Memories(backend, store).add(OWNER, [Heard(turn, packed, transcript)], after, held.memory)
        after = KeptMemory(held.memory, name)
    store.close()
    return tmp_path / "store"


def damage(kept: Path, name: str) -> None:
    """Change the last byte of a part."""

    def work(t: Transaction) -> None:
        (row,) = t.get(PARTS, [name])
        assert row is not None
        t.update(PARTS, name, {"data": row["data"][:-1] + bytes([row["data"][-1] ^ 1])})

    with closing(open_tables(kept)) as tables:
        tables.run(work)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ccm", "memory", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return int(end.value.code or 0), told.out, told.err

    return run


def test_turns_are_listed_shown_and_deleted(kept: Path, call: Any) -> None:
    status, out, _ = call("list", "--store", kept)
    assert (status, "two" in out, OWNER.hex()[:8] in out) == (0, True, True)
    rows = [json.loads(line) for line in call("list", "--store", kept, "--json")[1].splitlines()]
    assert [(row["id"], row["previous"]) for row in rows] == [("one", None), ("two", "one")]
    (used,) = (json.loads(line) for line in call("usage", "--store", kept, "--json")[1].splitlines())
    assert used == {"key": OWNER.hex()[:8], "turns": 2, "bytes": sum(row["size"] for row in rows)}
    assert f"2 turns  {size(used['bytes'])}" in call("usage", "--store", kept)[1]
    assert json.loads(call("show", "one", "--store", kept)[1])["asked"][0]["content"] == "My name is Anna."
    assert "1 later turns hold what it said" in call("delete", "one", "--store", kept)[1]
    assert call("verify", "--store", kept)[:2] == (0, "1 of 1 memories are whole.\n")
    status, _, err = call("show", "one", "--store", kept)
    assert (status, "There is no turn 'one'" in err) == (2, True)


def test_a_damaged_memory_is_named(kept: Path, call: Any) -> None:
    damage(kept, "two")
    status, out, err = call("verify", "--store", kept)
    assert (status, out) == (1, "1 of 2 memories are whole.\n")
    assert "The memory of two is damaged" in err


def test_what_is_damaged_stays_so_until_it_is_made_again(kept: Path, tmp_path: Path, call: Any) -> None:
    damage(kept, "one")
    assert call("verify", "--store", kept)[:2] == (1, "0 of 2 memories are whole.\n")
    copy = tmp_path / "copy"
    shutil.copytree(kept, copy)
    call("delete", "one", "--store", copy)
    assert call("verify", "--store", copy)[:2] == (1, "0 of 1 memories are whole.\n")
    assert call("rebuild", "--store", kept)[:2] == (0, "1 memories were made again.\n")
    assert call("verify", "--store", kept)[:2] == (0, "2 of 2 memories are whole.\n")
    assert json.loads(call("verify", "--store", kept, "--json")[1]) == {"memories": 2, "damaged": []}
    call("export", "two", tmp_path / "a.memory", "--store", kept)
    chat = Conversation(*ccm.load("builtin"))
    chat.load(tmp_path / "a.memory")
    assert chat.answer("What is my name?") == "Your name is Anna."


def test_an_exported_memory_is_that_of_a_chat(kept: Path, tmp_path: Path, call: Any) -> None:
    file = tmp_path / "anna.memory"
    status, out, _ = call("export", "two", file, "--store", kept)
    assert (status, f"ccm chat --load {file}" in out) == (0, True)
    chat = Conversation(*ccm.load("builtin"))
    chat.load(file)
    assert chat.answer("What is my name?") == "Your name is Anna."
    status, _, err = call("export", "two", file, "--store", kept, "--rule", "gate")
    assert (status, "of another model, adapter or rule" in err) == (2, True)


def test_a_memory_of_a_chat_is_imported_and_exported_again(kept: Path, tmp_path: Path, call: Any) -> None:
    call("export", "two", tmp_path / "anna.memory", "--store", kept)
    status, out, _ = call("import", tmp_path / "anna.memory", "--store", kept)
    assert (status, out.startswith("Go on with it: previous_response_id resp_")) == (0, True)
    name = out.split()[-1]
    assert json.loads(call("show", name, "--store", kept)[1])["steps"] == [
        {"step": 1, "text": "not kept"},
        {"step": 2, "text": "not kept"},
    ]
    call("export", name, tmp_path / "again.memory", "--store", kept)
    assert (tmp_path / "again.memory").read_bytes() == (tmp_path / "anna.memory").read_bytes()
    (tmp_path / "keys").write_text("one\ntwo\n")
    status, _, err = call("import", tmp_path / "anna.memory", "--store", kept, "--key", tmp_path / "keys")
    assert (status, "holds 2 API keys" in err) == (2, True)


def test_a_step_is_shown_with_its_number_and_forgotten_by_it(kept: Path, tmp_path: Path, call: Any) -> None:
    steps = json.loads(call("show", "two", "--store", kept)[1])["steps"]
    assert [(step["step"], step["said"][0]["content"]) for step in steps] == [
        (1, "My name is Anna."),
        (2, "I live in Oslo."),
    ]
    status, out, _ = call("forget", "two", "--step", 1, "--store", kept)
    assert (status, "Made again from text without it: 1 memories" in out, "Deleted: one" in out) == (0, True, True)
    assert "may repeat what it said" in out
    call("export", "two", tmp_path / "a.memory", "--store", kept)
    chat = Conversation(*ccm.load("builtin"))
    chat.load(tmp_path / "a.memory")
    assert "Anna" not in chat.answer("What is my name?")
    status, _, err = call("forget", "two", "--step", 2, "--store", kept)
    assert (status, "no step 2; the memory of two has 1" in err) == (2, True)


def test_a_store_is_rebuilt_for_another_rule(kept: Path, tmp_path: Path, call: Any) -> None:
    status, out, _ = call("rebuild", "--store", kept, "--rule", "gate")
    assert (status, out) == (0, "2 memories were made again.\n")
    call("export", "two", tmp_path / "a.memory", "--store", kept, "--rule", "gate")
    chat = Conversation(*ccm.load("builtin", rule="gate"))
    chat.load(tmp_path / "a.memory")
    assert chat.answer("What is my name?") == "Your name is Anna."
    call("import", tmp_path / "a.memory", "--store", kept, "--rule", "gate")
    status, _, err = call("rebuild", "--store", kept)
    assert (status, "The text of 1 turns was not kept" in err, "--drop" in err) == (2, True, True)
    assert "2 memories were made again; 1 turns were deleted" in call("rebuild", "--store", kept, "--drop")[1]


def test_a_folder_without_a_store_is_refused(tmp_path: Path, call: Any) -> None:
    status, _, err = call("list", "--store", tmp_path)
    assert (status, "holds no store" in err) == (2, True)
    status, _, err = call("list", "--store", tmp_path / "nowhere")
    assert (status, "holds no store" in err) == (2, True)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "within", "told"),
    [
        (["rebuild"], "rebuild", "Memories that were made are kept; the same command goes on from there."),
        (
            ["forget", "two", "--step", 1],
            "forget",
            "Look with ccm memory show two whether the step is there, before you forget another.",
        ),
    ],
)
def test_ctrl_c_says_what_is_kept_of_a_store(
    kept: Path, call: Any, monkeypatch, arguments: list[Any], within: str, told: str
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Memories, within, stop)
    assert call(*arguments, "--store", kept) == (130, "", f"{told}\n")
    assert call("verify", "--store", kept)[0] == 0
