"""JSON lists are read item by item, whatever stands between and within the items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccm.data import json_lists
from ccm.data.json_lists import read_item, read_list
from ccm.errors import DataError

ITEMS: list[Any] = [{"a": "é, [x] {"}, {}, {"b": [1, {"c": None}]}, {"long": "\u4f60" * 40}, {"d": "end ]"}]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"separators": (",", ":")}, {"ensure_ascii": False}])
def test_every_item_is_read_and_found_again_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr(json_lists, "CHUNK", chunk)
    path = tmp_path / "list.json"
    text = json.dumps(ITEMS, **layout).replace("\n", "\r\n")
    path.write_bytes(text.encode())
    found = [*read_list(path)]
    assert [item for _, item in found] == ITEMS
    assert [read_item(path, place) for place, _ in found] == ITEMS


def test_an_empty_list_has_no_items(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(" [\n]\n")
    assert [*read_list(tmp_path / "list.json")] == []


@pytest.mark.parametrize("text", ["", "[", '[{"a": 1}', '[{"a": 1}, {"b', '[{"a": 1}, x]'])
def test_a_file_that_is_not_whole_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(DataError, match=r"list.json cannot be read: .*; it may not be whole"):
        [*read_list(path)]


def test_an_absent_or_changed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    with pytest.raises(DataError, match=r"There is no file .*list.json"):
        [*read_list(path)]
    path.write_text(json.dumps(ITEMS))
    (_, (place, _), *_) = read_list(path)
    path.write_text("[]")
    with pytest.raises(DataError, match="cannot be read"):
        read_item(path, place)
