"""What several verbs know of models and data."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.cli.commands.notes import is_running_text


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.txt", True), ("A.TXT", True), ("a.Txt.GZ", True), ("a.jsonl", False), ("a.txt.json", False), ("txt", False)],
)
def test_running_text_is_told_by_the_ending_of_a_file_in_small_letters_or_capitals(
    tmp_path: Path, name: str, text: bool
) -> None:
    (tmp_path / name).touch()
    for path in (tmp_path, tmp_path / name):
        assert is_running_text("custom", str(path)) is text


def test_running_text_is_told_by_the_name_of_other_data() -> None:
    assert [is_running_text(name, None) for name in ("pg19", "redpajama", "custom", "soda")] == [
        True,
        True,
        False,
        False,
    ]
