"""Files, texts and rows, gzipped or not; what cannot be read is named."""

from __future__ import annotations

import gzip
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ccm.core.errors import ConfigError, DataError
from ccm.data import reading
from ccm.data.reading import find_files, read_item, read_items, read_rows, read_text, read_values

ITEMS: list[Any] = [{"a": "é, [x] {"}, {}, {"b": [1, {"c": None}]}, {"long": "\u4f60" * 40}, {"d": "end ]"}]
ROWS = [{"text": "Größe", "number": 1}, {"text": "two", "number": 2}]


def test_files_are_found_by_the_ending_of_their_names_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("deep/c.txt", "b.txt.gz", "a.txt", "a.md", "d.gz"):
        (tmp_path / name).write_text("text")
    found = find_files(tmp_path, (".txt", ".txt.gz"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["a.txt", "b.txt.gz", "deep/c.txt"]
    assert find_files(tmp_path / "a.md", (".txt",)) == [tmp_path / "a.md"]  # what is named is meant
    with pytest.raises(DataError, match=r"holds none of \*.parquet, \*.json"):
        find_files(tmp_path, (".parquet", ".json"))
    with pytest.raises(DataError, match="no file or folder .*nowhere; name the one"):
        find_files(tmp_path / "nowhere", (".txt",))


def test_what_a_folder_holds_beside_its_data_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("A.TXT", "b.txt.GZ", "c.md", ".d.txt", ".cache/e.txt", ".DS_Store", ".ccm-data.json"):
        (tmp_path / name).write_text("text")
    (tmp_path / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert [path.name for path in find_files(tmp_path, (".txt", ".txt.gz"))] == ["A.TXT", "b.txt.GZ"]
    (told,) = caplog.messages
    assert (
        f"{tmp_path}: not read are ['.cache/e.txt', '.d.txt', 'broken.txt', 'c.md', 'linked']; read are *.txt" in told
    )
    assert [path.name for path in find_files(tmp_path, (".json", ".md"))] == ["c.md"]
    assert ".ccm-data.json" not in caplog.text  # ours


def test_a_text_is_the_same_gzipped_with_a_mark_and_with_windows_line_ends(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_bytes("\ufeffGröße\r\nend".encode())
    packed.write_bytes(gzip.compress("\ufeffGröße\nend".encode()))
    assert read_text(plain) == read_text(packed) == "Größe\nend"


def test_a_text_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(b"text" * 100)[:-9])
    with pytest.raises(DataError, match=r"a.txt.gz cannot be read: .*; it may not be whole"):
        read_text(packed)
    packed.write_bytes(b"no gzip")
    with pytest.raises(DataError, match=r"a.txt.gz cannot be read: .*; it may not be whole"):
        read_text(packed)
    (tmp_path / "b.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(DataError, match=r"b.txt is not UTF-8 text \(line 1, byte 3\)"):
        read_text(tmp_path / "b.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize("read", [read_values, lambda path: read_rows(path, ["a"]), read_items])
def test_the_place_of_a_byte_that_is_not_utf_8_is_that_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, read: Callable[[Path], Iterable[object]]
) -> None:
    """However little of it is decoded at a time."""
    monkeypatch.setattr(reading, "CHUNK", 1 << 10)
    filler = "[" + '{"a": "\u00e9"},\n' * 1000 if read is read_items else '{"a": "\u00e9"}\n' * 20_000
    raw = filler.encode() + b'{"a": "\xe9"}\n'
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    with pytest.raises(DataError, match=rf"not UTF-8 text \(line {filler.count(chr(10)) + 1}, byte 8\)"):
        deque(read(tmp_path / name), maxlen=0)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_unicode_is_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("Hello.", encoding=encoding)
    with pytest.raises(
        DataError, match=r"a\.txt (is UTF-16 text|holds null characters, as UTF-16).*; save it as UTF-8"
    ):
        read_text(tmp_path / "a.txt")


def write_rows(path: Path) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.json.gz"])
def test_rows_are_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    path = write_rows(tmp_path / name)
    assert [*read_rows(path, ["number", "text"])] == ROWS
    assert [*read_rows(path, ["number"])] == [{"number": 1}, {"number": 2}]
    with pytest.raises(DataError, match="'other'"):
        [*read_rows(path, ["number", "other"])]


def test_rows_are_read_one_by_one(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write("{oops")
    rows = read_rows(path, ["number"])
    assert [next(rows), next(rows)] == [{"number": 1}, {"number": 2}]
    with pytest.raises(DataError, match=r"a.jsonl, line 3: no object with 'number' \(.*; the file may not be whole"):
        next(rows)


def test_a_damaged_parquet_file_is_named_and_pyarrow_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read: .*; it may not be whole"):
        [*read_rows(path, ["text"])]
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        ConfigError, match=r"a\.parquet, a Parquet file, needs pyarrow, .*\[data\].* Or give JSON lines"
    ):
        [*read_rows(path, ["text"])]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_every_item_is_read_and_found_again_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, mark: bytes, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
    path = tmp_path / "list.json"
    text = json.dumps(ITEMS, **layout).replace("\n", "\r\n")
    path.write_bytes(mark + text.encode())
    found = [*read_items(path)]
    assert [item for _, item in found] == ITEMS
    assert [read_item(path, place) for place, _ in found] == ITEMS
    (tmp_path / "list.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert [*read_items(tmp_path / "list.json.gz")] == found


def test_an_empty_list_has_no_items(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(" [\n]\n")
    assert [*read_items(tmp_path / "list.json")] == []


@pytest.mark.parametrize("text", ["[", '[{"a": 1}', '[{"a": 1}, {"b', '[{"a": 1}, x]'])
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"list.json cannot be read: .*; it may not be whole"):
        [*read_items(path)]


def test_an_absent_or_changed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    with pytest.raises(DataError, match=r"There is no file .*list.json"):
        [*read_items(path)]
    path.write_text(json.dumps(ITEMS))
    (_, (place, _), *_) = read_items(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        read_item(path, place)


@pytest.mark.parametrize("text", ['[{"a": 1}] [', '[{"a": 1}]\n[{"b": 2}]', "[] x"])
def test_what_follows_a_list_is_no_end(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"list.json goes on after its list"):
        [*read_items(tmp_path / "list.json")]


def test_the_values_of_a_file_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('\n{"a":\n 1}\n\n{oops\n2 [3]\n')
    (one, two, three, four) = read_values(path)
    assert (one, three, four) == (("line 2", {"a": 1}), ("line 6", 2), ("line 6", [3]))
    assert (two[0], str(two[1])) == (
        "line 5",
        "not JSON: Expecting property name enclosed in double quotes at column 2",
    )
    path.write_text("[1,\n[2]]")
    assert [*read_values(path)] == [("item 1", 1), ("item 2", [2])]


@pytest.mark.parametrize("text", ["", '{"a": 1}', "text"])
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=r"list.json holds no JSON list"):
        [*read_items(tmp_path / "list.json")]
