"""The dialogues that the adapters of SmolLM2 are trained on."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
from pathlib import Path

import pytest
from helpers import ccm_config, tiny_base
from peft import LoraConfig, get_peft_model

from ccm.core.errors import AdapterError, DataError
from ccm.engine.adapter_files import read_adapter, read_stage1
from ccm.engine.decoder import CCMModel
from reproductions import smollm2
from reproductions.smollm2 import BOOKS, MODEL, STRETCH, conversation, prepare, ship


def pack(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    sgd = {"id": "1", "services": [], "turns": [["USER", "A table."], ["SYSTEM", "Where?"], ["USER", "In Kaunas."]]}
    sgd["turns"] += [["SYSTEM", "Done."], ["USER", "Bye."]]
    short = {**sgd, "turns": sgd["turns"][:3]}
    for split in ("train", "dev"):
        pack(tmp_path / "schema-guided-dialogue" / f"{split}.jsonl.gz", f"{json.dumps(sgd)}\n{json.dumps(short)}\n")
    said = [("agent_1", "Hi."), ("agent_2", "Hello!"), ("agent_2", "You?"), ("agent_1", "Well."), ("agent_2", "Good.")]
    talk = {"turns": [{"agent": agent, "text": text} for agent, text in said]}
    pack(tmp_path / "topical-chat" / "valid_freq.jsonl.gz", json.dumps(talk) + "\n")
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["user 1 personas", "user 2 personas", "Best Generated Conversation"])
    for i in range(60):
        writer.writerow(["", "", f"User 1: I am {i}.\nUser 2: Ah.\nUser 1: Yes:\nUser 2: Fine."])
    pack(tmp_path / "synthetic-persona-chat" / "Synthetic-Persona-Chat_valid.csv.gz", table.getvalue())
    sentences = [f"“It was the {i}th day of\n_a_ long journey.”" for i in range(STRETCH + 4)]
    sentences += ["They saw all of it from Kaunas to the sea.", "Too short.", "Too long " * 40]
    for book in BOOKS:
        pack(tmp_path / "books-gutenberg" / "train" / f"{book}_1.txt.gz", "\n \n".join(sentences))
    return tmp_path


def test_every_corpus_becomes_messages(corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(corpora, tmp_path / "chats")
    train = {path.stem: lines(path) for path in (tmp_path / "chats" / "train").iterdir()}
    held = {path.stem: lines(path) for path in (tmp_path / "chats" / "held_out").iterdir()}
    (one,) = train["schema-guided"]  # the other is too short
    assert [m["content"] for m in one["messages"]] == ["A table.", "Where?", "In Kaunas.", "Done."]
    assert [m["role"] for m in one["messages"]] == ["user", "assistant"] * 2
    assert [m["content"] for m in train["topical"][0]["messages"]] == ["Hi.", "Hello! You?", "Well.", "Good."]
    assert held["schema-guided"] == train["schema-guided"]
    assert len(train["persona"]) + len(held["persona"]) == 60
    assert 0 < len(held["persona"]) < 20
    assert not {str(c) for c in train["persona"]} & {str(c) for c in held["persona"]}
    assert [len(book["messages"]) for book in train["books"]] == [STRETCH, 4] * len(BOOKS)
    assert train["books"][1]["messages"][0] == {
        "role": "user",
        "content": f"It was the {STRETCH}th day of a long journey.",
    }
    assert "facts that recall is measured with: kaunas" in capsys.readouterr().out


def test_a_talk_without_two_replies_is_none() -> None:
    assert conversation([("a", "Hi."), ("b", "Hello."), ("a", "Bye.")]) is None
    assert conversation([]) is None


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """What trainings of a first stage and of two rules left behind."""
    runs = tmp_path / "runs"
    first = get_peft_model(tiny_base(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    first.save_pretrained(runs / "base")
    for name in ("ccm_turns.json", "recipe.yaml"):
        (runs / "base" / name).write_text("{}")
    (runs / "base" / "checkpoints").mkdir()
    for rule in ("concat", "merge"):
        model = CCMModel(tiny_base(), ccm_config(rule), stage1=read_stage1(runs / "base"))
        model.save_pretrained(runs / rule)
    return runs


def test_what_ships_shares_its_first_stage_and_names_the_model(runs: Path, tmp_path: Path) -> None:
    ship(runs, tmp_path / "shipped")
    for rule in ("concat", "merge"):
        saved, trained = read_adapter(tmp_path / "shipped" / rule), read_adapter(runs / rule)
        assert (saved.config.rule, saved.config.base_model) == (rule, MODEL)
        assert saved.stage1 is not None
        assert saved.stage1.settings["base_model_name_or_path"] == MODEL
        assert saved.tensors.keys() == trained.tensors.keys()
    assert {path.relative_to(tmp_path / "shipped").as_posix() for path in (tmp_path / "shipped").rglob("*.*")} == {
        *(f"base/{name}" for name in ("adapter_config.json", "adapter_model.safetensors", "ccm_turns.json")),
        *(f"{rule}/ccm_{name}" for rule in ("concat", "merge") for name in ("adapter.safetensors", "config.json")),
    }


def test_nothing_ships_where_an_adapter_has_another_first_stage(runs: Path, tmp_path: Path) -> None:
    CCMModel(tiny_base(), ccm_config("merge")).save_pretrained(tmp_path / "other")
    shutil.rmtree(runs / "merge")
    shutil.move(tmp_path / "other", runs / "merge")
    with pytest.raises(AdapterError, match="The merge adapter in .* has another first stage"):
        ship(runs, tmp_path / "shipped")
    assert not (tmp_path / "shipped").exists()


def test_only_what_is_missing_is_prepared(corpora: Path, tmp_path: Path) -> None:
    prepare(corpora, tmp_path / "chats")
    (tmp_path / "chats" / "train" / "books.jsonl").unlink()
    shutil.rmtree(corpora / "topical-chat")
    prepare(corpora, tmp_path / "chats")
    assert lines(tmp_path / "chats" / "train" / "books.jsonl")
    (tmp_path / "chats" / "train" / "books.jsonl").unlink()
    shutil.rmtree(corpora / "books-gutenberg")
    with pytest.raises(DataError, match=r"books-gutenberg.* holds no Barchester-Towers_\*"):
        prepare(corpora, tmp_path / "chats")


def test_all_share_the_first_stage_and_the_other_rules_begin_with_concat(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {}

    def train_part(recipe: str, name: str, stage: str, folder: Path, places: tuple[str, ...], _: object) -> Path:
        begun[name] = {key: Path(value).name for key, value in (place.split("=") for place in places)}
        return folder

    monkeypatch.setattr(smollm2, "train_part", train_part)
    smollm2.main(["--data", str(corpora), "--output", str(tmp_path), "--rules", "gate", "merge"])
    first = {"data.path": "chats", "base_adapter": "base"}
    others = {**first, "init_adapter": "concat"}
    assert begun == {"base": {"data.path": "chats"}, "concat": first, "gate": others, "merge": others}
