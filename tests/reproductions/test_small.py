"""The small LLaMA of the reproductions: what it learns of, and that it is built whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from ccm.models.load import load_tokenizer
from reproductions.small import BETWEEN, FILES, build, documents, write_corpus


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twenty conversations, ten tasks and a book, as the publishers' files are here."""
    open_data = tmp_path / "data" / "open"
    talks = [{"turns": [{"text": f"I saw {n} dogs , and you ?"}, {"text": "Not one ."}]} for n in range(20)]
    tasks = [{"turns": [["USER", f"A table for {n} ."], ["SYSTEM", "When ?"], ["USER", "Now ."]]} for n in range(10)]
    texts = {
        "topical-chat/valid.jsonl.gz": "\n".join(map(json.dumps, talks)),
        "schema-guided-dialogue/train.jsonl.gz": "\n".join(map(json.dumps, tasks)),
        "books-gutenberg/train/book.txt.gz": "It was a dark night. " * 2000,
    }
    for name, text in texts.items():
        path = open_data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()))
    return tmp_path / "data"


def test_the_corpus_is_whole_documents_in_random_order(data: Path, tmp_path: Path) -> None:
    texts = [*documents(data)]
    assert texts[3] == "A table for 3.\nA:When?\nA:Now."
    assert texts.count("I saw 7 dogs, and you?\nA:Not one.") == 2
    assert len(texts) == 10 + 2 * 20 + 3  # the book in three parts
    write_corpus(texts, tmp_path / "corpus")
    (file,) = (tmp_path / "corpus").iterdir()
    written = file.read_text().split(BETWEEN)
    assert sorted(written) == sorted(texts)
    assert written != texts


@pytest.mark.slow
def test_the_model_is_built_and_opens(data: Path, tmp_path: Path) -> None:
    changes = ("max_steps=2", "batch_size=2", "eval_every=0", "log_every=1")
    build(data, tmp_path / "runs", tmp_path / "model", changes)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*FILES}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.num_parameters() == pytest.approx(4.3e6, rel=0.02)
    ids = load_tokenizer(tmp_path / "model")("It was a dark night.").input_ids
    assert len(ids) < 12
