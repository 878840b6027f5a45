"""Every data set from small files as its publisher has them, and what goes wrong on the way."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from ccm.core.errors import ConfigError, DataError
from ccm.data import dailydialog
from ccm.data.sources import prepare as module
from ccm.data.sources.catalogue import SOURCES
from ccm.data.sources.counts import COUNTS
from ccm.data.sources.prepare import RECORD, prepare

TALK = "Say , Jim , how about a tea ? __eou__ Sure ! __eou__ Fine . __eou__\n"
SPLITS = ("train", "validation", "test")


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def rows(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def dailydialog_zip(folder: Path) -> None:
    inner = {
        f"EMNLP_dataset/{split}.zip": zipped({f"{split}/dialogues_{split}.txt": TALK.encode()}) for split in SPLITS
    }
    junk = {"__MACOSX/EMNLP_dataset/._dialogues_train.txt": b"x", "EMNLP_dataset/dialogues_text.txt": TALK.encode()}
    write(folder / "I17-1099.Datasets.zip", zipped({**inner, **junk}))


def dailydialog_parquet(folder: Path) -> None:
    turns = [[" Say , Jim ,\nhow about a tea ? ", "Sure !", "Fine ."]]
    rows(folder / "full/train/0000.parquet", utterances=turns)
    rows(folder / "validation.parquet", dialog=turns)
    rows(folder / "data/test-00000-of-00001-2407eb32.parquet", dialog=turns)


def dailydialog_gzipped(folder: Path) -> None:
    for split in SPLITS:
        write(folder / f"dialogues_{split}.txt.gz", gzip.compress(TALK.encode()))
    write(folder / "dialogues_train_noleak.txt.gz", b"not taken")


def soda(folder: Path) -> None:
    rows(folder / "train.parquet", dialogue=[["Hi.", "Hello.", "Bye."]] * 3)
    rows(folder / "valid.parquet", dialogue=[["Hi.", "Hello.", "Bye."]])


LINE = json.dumps({"task": "t", "input": "a", "output": "b", "options": ["b", "c"]}) + "\n"


def metaicl(folder: Path) -> None:
    write(folder / "config/hr_to_lr.json", json.dumps({"train": ["piqa", "emo"], "test": ["sick"]}))
    write(folder / "data/piqa/piqa_16384_100_train.jsonl", LINE)
    for part in ("16_100_test", "16_100_train", "16_13_train"):
        write(folder / f"data/sick/sick_{part}.jsonl", LINE)
        write(folder / f"data/other/other_{part}.jsonl", LINE)


def metaicl_tar(folder: Path) -> None:
    metaicl(folder / "in")
    folder.joinpath("in").rename(folder / ".in")  # what is hidden is not looked at
    with tarfile.open(folder / "tasks.tar.xz", "w:xz") as archive:
        archive.add(folder / ".in" / "data", "hr_to_lr_test")
    with tarfile.open(folder / "config.tar.xz", "w:xz") as archive:
        archive.add(folder / ".in" / "config", "config")


def lamp(folder: Path) -> None:
    questions = [{"id": "1", "input": "x", "profile": [{"text": "a", "category": "b"}]}] * 2
    golds = {"task": "LaMP_2", "golds": [{"id": "1", "output": "b"}]}
    for split in ("train", "dev"):
        write(folder / f"LaMP_2/{split}/{split}_questions.json", json.dumps(questions))
        write(folder / f"LaMP_2/{split}/{split}_outputs.json", json.dumps(golds))
    write(folder / "LaMP_2/new/dev/dev_questions.json", "another task")


def pg19(folder: Path) -> None:
    write(folder / "train/1.txt", "A book.")
    write(folder / "validation/2.txt.gz", gzip.compress(b"Another book."))
    write(folder / "test/3.txt", "A last book.")
    write(folder / "metadata.csv", "3,Title,1900,http")


def redpajama(folder: Path) -> None:
    page = json.dumps({"raw_content": "text", "url": "u"}) + "\n"
    write(folder / "sample/documents/2023-06/0000/en_head.json.gz", gzip.compress(page.encode() * 2))
    write(folder / "sample/documents/2023-06/0001/en_head.json.gz", gzip.compress(page.encode()))


def lmsys(folder: Path) -> None:
    said = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]]
    rows(folder / "data/train-00000-of-00002-ab.parquet", conversation=said * 2, language=["English"] * 2)
    rows(folder / "data/train-00001-of-00002-cd.parquet", conversation=said, language=["English"])
    write(folder / ".cache/huggingface/other.parquet", "hidden")


def locomo(folder: Path) -> None:
    write(folder / "data/locomo10.json", json.dumps([{"qa": [{"question": "?"}] * 3, "conversation": {}}] * 2))


def longmemeval(folder: Path) -> None:
    write(folder / "longmemeval_s_cleaned.json", json.dumps([{"question_id": "1"}] * 2))
    write(folder / "longmemeval_oracle", json.dumps([{"question_id": "1"}]))
    write(folder / "longmemeval_m_cleaned.json", "not taken")


DAILY = {f"dialogues, {split}": 1 for split in SPLITS}
CASES: list[tuple[str, Callable[[Path], None], dict[str, int], set[str]]] = [
    *(
        ("dailydialog", made, DAILY, {f"dialogues_{split}.txt" for split in SPLITS})
        for made in (dailydialog_zip, dailydialog_parquet, dailydialog_gzipped)
    ),
    ("soda", soda, {"dialogues, train": 3, "dialogues, validation": 1}, {"train.parquet", "valid.parquet"}),
    *(
        ("metaicl", made, {"tasks to train on": 1, "tasks to test on": 1}, {"hr_to_lr.json", "piqa", "sick", "other"})
        for made in (metaicl, metaicl_tar)
    ),
    ("lamp", lamp, {"LaMP_2, dev": 2, "LaMP_2, train": 2}, {"LaMP_2"}),
    ("pg19", pg19, {"books, train": 1, "books, validation": 1, "books, test": 1}, set(SPLITS)),
    ("redpajama", redpajama, {"pages": 3}, {"2023-06-0000-en_head.jsonl.gz", "2023-06-0001-en_head.jsonl.gz"}),
    ("lmsys", lmsys, {"conversations": 3}, {"train-00000-of-00002-ab.parquet", "train-00001-of-00002-cd.parquet"}),
    ("locomo", locomo, {"conversations": 2, "questions": 6}, {"locomo10.json"}),
    (
        "longmemeval",
        longmemeval,
        {"questions, oracle": 1, "questions, s_cleaned": 2},
        {"longmemeval_s_cleaned.json", "longmemeval_oracle.json"},
    ),
]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (tmp_path / "given").mkdir()
    return tmp_path / "given"


@pytest.mark.parametrize(("name", "make", "counts", "there"), CASES, ids=[made.__name__ for _, made, _, _ in CASES])
def test_local_files_become_the_folder_that_is_read(
    tmp_path: Path, given: Path, name: str, make: Callable[[Path], None], counts: dict[str, int], there: set[str]
) -> None:
    make(given)
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    done = prepare(name, tmp_path / "out", given)
    assert done.fresh
    assert done.record.counts == counts
    assert {path.name for path in (tmp_path / "out").iterdir()} == {RECORD, *there}
    assert {path: path.read_bytes() for path in given.rglob("*") if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"given", "out"}


def test_every_data_set_is_tried_here_and_counted() -> None:
    assert {name for name, *_ in CASES} == SOURCES.keys() == COUNTS.keys()


def test_dialogues_from_parquet_read_as_the_publishers_lines(tmp_path: Path, given: Path) -> None:
    dailydialog_parquet(given)
    prepare("dailydialog", tmp_path / "out", given)
    for split in SPLITS:
        (dialogue,) = dailydialog.read(tmp_path / "out", split)
        assert dialogue.turns == ("Say, Jim, how about a tea?", "Sure!", "Fine.")


def test_a_second_time_only_looks(tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soda(given)
    first = prepare("soda", tmp_path / "out", given)
    monkeypatch.setattr(module, "_make", None)
    again = prepare("soda", tmp_path / "out")
    assert not again.fresh
    assert again.record == first.record


def test_what_is_missing_is_made_again_and_what_else_is_there_stays(tmp_path: Path, given: Path) -> None:
    soda(given)
    prepare("soda", tmp_path / "out", given)
    (tmp_path / "out/valid.parquet").unlink()
    (tmp_path / "out/notes.md").write_text("mine")
    (given / "train.parquet").unlink()
    done = prepare("soda", tmp_path / "out", given)
    assert done.record.counts == {"dialogues, train": 3, "dialogues, validation": 1}
    assert (tmp_path / "out/notes.md").read_text() == "mine"


def test_a_part_alone_and_another_one_later(tmp_path: Path, given: Path) -> None:
    pg19(given)
    assert prepare("pg19", tmp_path / "out", given, ["test/*"]).record.counts == {"books, test": 1}
    assert not prepare("pg19", tmp_path / "out", given, ["test/*"]).fresh
    both = prepare("pg19", tmp_path / "out", given, ["validation/*"])
    assert both.record.counts == {"books, validation": 1, "books, test": 1}
    assert not prepare("pg19", tmp_path / "out", given, ["test/*"]).fresh
    assert len(prepare("pg19", tmp_path / "out", given).record.counts) == 3
    assert not prepare("pg19", tmp_path / "out", given, ["test/*"]).fresh


def test_other_counts_than_published_are_told(tmp_path: Path, given: Path) -> None:
    locomo(given)
    done = prepare("locomo", tmp_path / "out", given)
    assert done.lines() == [("conversations", 2, "published: 10"), ("questions", 6, "published: 1,986")]
    assert done.record.notes == ["locomo10.json is not the file that was published: its sha256 is another."]


def test_a_split_that_is_missing_is_told(tmp_path: Path, given: Path) -> None:
    write(given / "dialogues_train.txt", TALK * 11_118)
    assert prepare("dailydialog", tmp_path / "out", given).lines() == [
        ("dialogues, train", 11_118, "as published"),
        ("dialogues, validation", 0, "published: 1,000"),
        ("dialogues, test", 0, "published: 1,000"),
    ]


@pytest.mark.parametrize(
    ("name", "make", "files", "lacks"),
    [
        ("dailydialog", None, ["dialogues_train.txt"], ["dialogues_validation.txt", "dialogues_test.txt"]),
        ("soda", soda, [], []),
        ("metaicl", metaicl, [], ["emo"]),
        ("metaicl", None, ["emo/emo_16_100_test.jsonl"], ["hr_to_lr.json"]),
        ("lamp", lamp, [], ["LaMP_1", "LaMP_3", "LaMP_4", "LaMP_5", "LaMP_7"]),
        (
            "lamp",
            lamp,
            ["LaMP_1/dev_questions.json", "LaMP_3/dev_outputs.json", "LaMP_4/x", "LaMP_5/x", "LaMP_7/x"],
            [
                "LaMP_4", "LaMP_5", "LaMP_7", "LaMP_1/train_questions.json", "LaMP_1/train_outputs.json",
                "LaMP_1/dev_outputs.json", "LaMP_3/train_questions.json", "LaMP_3/train_outputs.json",
                "LaMP_3/dev_questions.json",
            ],
        ),
        ("pg19", None, ["test/1.txt"], ["train", "validation"]),
        ("longmemeval", None, ["longmemeval_s.json"], ["longmemeval_oracle.json"]),
    ],
)  # fmt: skip
def test_all_that_is_missing_is_named_at_once(
    tmp_path: Path, given: Path, name: str, make: Callable[[Path], None] | None, files: list[str], lacks: list[str]
) -> None:
    if make:
        make(given)
    for file in files:
        write(given / file, {"dailydialog": TALK, "metaicl": LINE, "pg19": "A book."}.get(name, "[]"))
    assert prepare(name, tmp_path / "out", given).record.missing == lacks
    assert prepare(name, tmp_path / "out").record.missing == lacks


def test_what_was_missing_may_be_brought_later(tmp_path: Path, given: Path) -> None:
    write(given / "dialogues_train.txt", TALK)
    prepare("dailydialog", tmp_path / "out", given)
    later = tmp_path / "later"
    for split in ("validation", "test"):
        write(later / f"dialogues_{split}.txt", TALK)
    done = prepare("dailydialog", tmp_path / "out", later)
    assert (done.record.counts, done.record.missing) == (DAILY, [])
    assert not prepare("dailydialog", tmp_path / "out", later).fresh


def test_an_error_names_a_file_by_its_path_in_the_folder(tmp_path: Path, given: Path) -> None:
    write(given / "deep/sick/sick_16_100_test.jsonl", LINE[:-9])
    with pytest.raises(DataError, match="^sick/sick_16_100_test.jsonl, line 1: no object with 'input'"):
        prepare("metaicl", tmp_path / "out", given)


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("dailydialog", "dialogues_text.zip", b"PK, but not whole", "cannot be opened"),
        (
            "dailydialog",
            "train.zip",
            zipped({"../dialogues_train.txt": b""}),
            r"is refused: '\.\./dialogues_train.txt'",
        ),
        ("dailydialog", "train.zip", zipped({"/dialogues_train.txt": b""}), "would lie outside"),
        ("dailydialog", "train.zip", zipped({"a/..\\..\\x.txt": b""}), "would lie outside"),
        ("dailydialog", "dialogues_train.txt.gz", gzip.compress(TALK.encode(), mtime=0)[:-9], "cannot be read"),
        ("dailydialog", "train.parquet", b"none", "cannot be read"),
        ("metaicl", "sick/sick_16_100_test.jsonl", LINE[:-9], "line 1: no object with 'input'"),
        ("soda", "train.parquet", b"none", "cannot be read"),
        ("lmsys", "train.parquet", b"none", "cannot be read"),
        ("pg19", "train/1.txt", b"\xff", "is not UTF-8 text"),
        ("redpajama", "a.jsonl", '{"raw_content"', "no object with 'raw_content'"),
        ("locomo", "locomo10.json", "[{", "cannot be read"),
        ("longmemeval", "longmemeval_s.json", "{}", "holds no JSON list"),
        ("soda", "other.txt", "", "holds nothing of SODA. These files are wanted:\n  train.parquet from https://"),
    ],
)
def test_after_a_failure_nothing_is_left(
    tmp_path: Path, given: Path, name: str, file: str, content: bytes | str, message: str
) -> None:
    write(given / file, content)
    with pytest.raises(DataError, match=message):
        prepare(name, tmp_path / "out", given)
    assert {path.name for path in tmp_path.iterdir()} == {"given"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.REGTYPE])
def test_a_tar_that_would_write_elsewhere_is_refused(tmp_path: Path, given: Path, kind: bytes) -> None:
    with tarfile.open(given / "tasks.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("sick/x" if kind == tarfile.SYMTYPE else "../x")
        member.type, member.linkname = kind, "../../x"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"tasks.tar.gz is refused"):
        prepare("metaicl", tmp_path / "out", given)
    assert {path.name for path in tmp_path.iterdir()} == {"given"}


def test_a_failure_leaves_an_earlier_folder_as_it_was(tmp_path: Path, given: Path) -> None:
    soda(given)
    prepare("soda", tmp_path / "out", given)
    (tmp_path / "out/valid.parquet").write_bytes(b"damaged")
    (given / "valid.parquet").write_bytes(b"damaged, too")
    with pytest.raises(DataError, match="cannot be read"):
        prepare("soda", tmp_path / "out", given)
    assert (tmp_path / "out/valid.parquet").read_bytes() == b"damaged"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {RECORD, "train.parquet", "valid.parquet"}


def test_two_files_for_one_place_are_named(tmp_path: Path, given: Path) -> None:
    write(given / "a/locomo10.json", "[]")
    write(given / "b/locomo10.json", "[{}]")
    with pytest.raises(DataError, match=r"would both become locomo10.json; leave one"):
        prepare("locomo", tmp_path / "out", given)


def test_a_download_that_breaks_off_is_gone_on_with(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(files: Any, folder: Path, wanted: Any, report: Any) -> list[str]:
        folder.mkdir(parents=True)
        soda(folder)
        (folder / "valid.parquet").rename(folder / "valid.parquet.part")
        raise LocalEntryNotFoundError("Check your connection.")

    def succeeds(files: Any, folder: Path, wanted: Any, report: Any) -> list[str]:
        (folder / "valid.parquet.part").rename(folder / "valid.parquet")
        return ["other.parquet"]

    monkeypatch.setattr(module, "download", fails)
    with pytest.raises(DataError) as failure:
        prepare("soda", tmp_path / "out")
    message = str(failure.value)
    assert message.startswith("SODA could not be downloaded: Check your connection.\n")
    assert "\n  valid.parquet from https://huggingface.co/datasets/allenai/soda/resolve/" in message
    assert message.endswith("prepare soda with given=DIR")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "download", succeeds)
    done = prepare("soda", tmp_path / "out")
    assert done.record.counts == {"dialogues, train": 3, "dialogues, validation": 1}
    assert "The publisher lists 1 files that are not there: other.parquet." in done.record.notes
    assert {path.name for path in tmp_path.iterdir()} == {"given", "out"}


def test_a_gated_data_set_tells_the_reason_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*args: Any) -> None:
        error = GatedRepoError.__new__(GatedRepoError)
        error.args = ("401 Client Error.\n\nAccess to dataset lmsys/lmsys-chat-1m is restricted.",)
        raise error

    monkeypatch.setattr(module, "download", refuses)
    with pytest.raises(DataError, match="401 Client Error. Access to dataset .* is restricted") as failure:
        prepare("lmsys", tmp_path / "out")
    assert "First accept its terms at https://huggingface.co/datasets/lmsys/lmsys-chat-1m" in str(failure.value)
    assert "hf auth login" in str(failure.value)


def test_folders_and_names_that_do_not_fit_are_named(tmp_path: Path, given: Path) -> None:
    with pytest.raises(ConfigError, match="There is no data set 'sodda'. Did you mean soda?"):
        prepare("sodda", tmp_path / "out", given)
    with pytest.raises(DataError, match=r"There is no folder .*elsewhere"):
        prepare("soda", tmp_path / "out", tmp_path / "elsewhere")
    soda(given)
    with pytest.raises(ConfigError, match=r"given holds something else already"):
        prepare("soda", given, given)
    prepare("soda", tmp_path / "out", given)
    with pytest.raises(ConfigError, match=r"out holds soda, not locomo"):
        prepare("locomo", tmp_path / "out", given)
    (tmp_path / "out" / RECORD).write_text("{}")
    with pytest.raises(DataError, match="remove the folder"):
        prepare("soda", tmp_path / "out", given)
