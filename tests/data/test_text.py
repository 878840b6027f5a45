"""Running text to train on: PG19's books and the pages of RedPajama-V2."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data, redpajama, text
from ccm.data.settings import DataSettings
from ccm.data.text import Stretches, drawn_texts
from ccm.engine.layout import IGNORE, Sample, length
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def book(name: str, words: int = 400) -> str:
    """A text whose every word tells where it stands."""
    return " ".join(f"{name}{i}" for i in range(words))


def library(folder: Path, *names: str, words: int = 400) -> Path:
    """A folder of books; every second one is gzipped."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        data = book(name, words).encode()
        (folder / f"{name}.txt{'.gz' * (i % 2)}").write_bytes(gzip.compress(data) if i % 2 else data)
    return folder


def opened(path: Path, turns: Turns, *, name: str = "pg19", seed: int = 0, **settings: Any) -> Stretches:
    short = {"max_steps": 3, "chunk_tokens": 16, "eval_samples": 0, **settings}
    data = open_data(DataSettings(name, str(path), **short), turns, seed)
    assert isinstance(data, Stretches)
    return data


def shown(turns: Turns, sample: Sample) -> str:
    """The text of a sample."""
    return turns.tokenizer.decode([token for step in (*sample.steps, sample.query) for token in step.ids])


def test_a_sample_is_a_stretch_of_a_book_in_chunks(tmp_path: Path, turns: Turns) -> None:
    data = opened(library(tmp_path, "A", "B"), turns, random_steps=False)
    books = [book("A"), book("B")]
    for sample in data.pool(0, 20):
        steps = [*sample.steps, sample.query]
        assert [len(step.ids) for step in steps] == [17, 16, 16, 16]  # BOS first
        assert all([*step.targets] == [*step.ids[1:], IGNORE] for step in steps)
        assert any(shown(turns, sample).removeprefix("<s>").strip() in whole for whole in books)
        assert length(sample) == data.longest
    assert data.deepest == 3


def test_stretches_begin_at_words_all_over_the_text_and_reach_its_end(tmp_path: Path, turns: Turns) -> None:
    data = opened(library(tmp_path, "A"), turns, random_steps=False)
    texts = [shown(turns, sample).removeprefix("<s>").strip() for sample in data.pool(0, 200)]
    begins = [int(text.split()[0][1:]) for text in texts if text[0] == "A"]
    assert len({*begins}) > 50
    assert min(begins) < 40
    assert max(begins) > 340
    assert any(text.endswith("A399") for text in texts)


def test_samples_are_a_function_of_seed_and_place(tmp_path: Path, turns: Turns) -> None:
    folder = library(tmp_path, *"ABCDE")
    data = opened(folder, turns)
    one, again = data.pool(0, 40), [opened(folder, turns).pool(place, 1)[0] for place in reversed(range(40))][::-1]
    assert one == again == [*data.pool(0, 20), *data.pool(1, 20)]
    assert one != opened(folder, turns, seed=1).pool(0, 40)
    assert len({shown(turns, sample) for sample in one}) > 30


def test_a_sample_has_a_random_number_of_steps_unless_that_is_switched_off(tmp_path: Path, turns: Turns) -> None:
    folder = library(tmp_path, "A", "B")
    assert {len(sample.steps) for sample in opened(folder, turns).pool(0, 40)} == {1, 2, 3}
    assert {len(sample.steps) for sample in opened(folder, turns, random_steps=False).pool(0, 40)} == {3}


def test_a_book_is_drawn_by_its_size_and_read_only_then(tmp_path: Path, turns: Turns) -> None:
    library(tmp_path, "A", words=900)
    (tmp_path / "B.txt").write_text(book("B", 100))
    read: Counter[str] = Counter()

    def counted(file: Path) -> Iterator[str]:
        read[file.name] += 1
        yield file.read_text()

    data = opened(tmp_path, turns)
    data = replace(data, library=replace(data.library, read=counted))
    assert not read
    data.pool(0, 320)
    assert sum(read.values()) == 320
    assert 5 < read["A.txt"] / read["B.txt"] < 20


def test_the_publishers_folders_are_train_and_validation(tmp_path: Path, turns: Turns) -> None:
    library(tmp_path / "train", "A", "B")
    library(tmp_path / "validation", "V")
    library(tmp_path / "test", "T")
    data = opened(tmp_path, turns, eval_samples=5)
    assert {path.name[0] for path in data.files} == {"A", "B"}
    held = data.held_out()
    assert len(held) == 5
    assert all("V" in shown(turns, sample) and len(sample.steps) == 3 for sample in held)
    assert held == data.held_out()


def test_of_a_plain_folder_whole_books_are_held_out_a_tenth_at_most(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    folder = library(tmp_path, *"ABCDEFGHIJKLMNOPQRST")
    data = opened(folder, turns, eval_samples=4)
    assert (len(data.files), len(data.held)) == (18, 2)
    assert not {*data.files} & {*data.held}
    assert opened(folder, turns, seed=3, eval_samples=4).held != data.held
    assert not caplog.messages
    few = opened(library(tmp_path / "few", "A", "B"), turns, eval_samples=4)
    assert few.held_out() == []
    assert (
        "pg19: 0 of 4 samples are held out to evaluate on (data.eval_samples): at most a tenth of 2 files"
        in caplog.text
    )
    other = library(tmp_path / "other", "Z")
    assert [path.name for path in opened(folder, turns, eval_path=str(other)).held] == ["Z.txt"]


def test_texts_of_less_than_two_chunks_are_passed_over_and_counted(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    library(tmp_path, "A", words=60)
    for i in range(9):
        (tmp_path / f"short{i}.txt").write_text("Too short. " * 2)
    caplog.set_level("INFO", text.__name__)
    samples = opened(tmp_path, turns, max_steps=1).pool(0, 100)
    assert all("A" in shown(turns, sample) for sample in samples)
    assert "texts of" in caplog.text


def test_short_texts_alone_are_refused_with_what_to_do(tmp_path: Path, turns: Turns) -> None:
    (tmp_path / "a.txt").write_text("Too short.")
    with pytest.raises(DataError, match=r"None of 16 texts .*a.txt has 2 chunks of 16 tokens; lower data.chunk_tokens"):
        opened(tmp_path, turns).pool(0, 1)


def test_settings_without_meaning_are_refused(tmp_path: Path, turns: Turns) -> None:
    folder = library(tmp_path, "A")
    with pytest.raises(ConfigError, match="'pg19' has no options"):
        opened(folder, turns, options={"x": 1})
    with pytest.raises(ConfigError, match="data.chunk_tokens is 16, data.max_step_tokens 8"):
        opened(folder, turns, max_step_tokens=8)
    with pytest.raises(ConfigError, match=r"'pg19' needs the folder of PG19 \(\*.txt, \*.txt.gz\)"):
        open_data(DataSettings("pg19"), turns, 0)


def test_a_longer_text_of_a_file_is_drawn_the_likelier() -> None:
    texts = ["a" * 10, "", "b" * 80, "c" * 10]
    drawn = Counter(text[0] for text in drawn_texts(texts, 4000, random.Random(0)))
    assert 300 < drawn["a"] < 500
    assert 300 < drawn["c"] < 500
    assert drawn["b"] == 4000 - drawn["a"] - drawn["c"]


# RedPajama-V2 --------------------------------------------------------------------------------------------------------


def pages(folder: Path, name: str) -> Path:
    """A file of ten pages, as the publisher has them."""
    rows = [{"url": "https://example.org", "raw_content": book(letter), "language": "en"} for letter in "ABCDEFGHIJ"]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["en_head.json.gz", "a.jsonl", "a.parquet"])
def test_pages_are_read_from_any_of_the_formats(tmp_path: Path, turns: Turns, name: str) -> None:
    pages(tmp_path, name)
    samples = opened(tmp_path, turns, name="redpajama").pool(0, 100)
    letters = {shown(turns, sample).removeprefix("<s>").strip()[0] for sample in samples}
    assert len(letters & {*"ABCDEFGHIJ"}) == 10


def test_a_file_of_pages_is_read_once_for_many_samples(
    tmp_path: Path, turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        pages(tmp_path, f"{number}.json.gz")
    data = opened(tmp_path, turns, name="redpajama")
    read = []
    monkeypatch.setattr(redpajama, "read_rows", lambda *asked, of=redpajama.read_rows: read.append(asked) or of(*asked))
    data.pool(0, 512)
    assert len(read) == 1
    data.pool(1, 512)
    assert len(read) == 2


def test_of_the_publishers_folders_the_documents_are_read(tmp_path: Path, turns: Turns) -> None:
    pages(tmp_path / "documents", "2023-06/0000/en_head.json.gz")
    (tmp_path / "quality_signals").mkdir()
    (tmp_path / "quality_signals" / "en_head.signals.json.gz").write_bytes(gzip.compress(b'{"id": 1}\n'))
    assert [path.name for path in opened(tmp_path, turns, name="redpajama").files] == ["en_head.json.gz"]


def test_a_page_without_text_is_refused(tmp_path: Path, turns: Turns) -> None:
    (tmp_path / "a.jsonl").write_text('{"raw_content": null}\n')
    with pytest.raises(DataError, match="row 1: 'raw_content' must be a text"):
        opened(tmp_path, turns, name="redpajama").pool(0, 1)


def test_half_of_a_surrogate_pair_stops_no_training(tmp_path: Path, turns: Turns) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"raw_content": "word \ud83d " * 100}) + "\n")
    assert "word ?" in shown(turns, opened(tmp_path, turns, name="redpajama").pool(0, 1)[0])
