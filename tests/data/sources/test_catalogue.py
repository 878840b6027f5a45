"""The catalogue: its rows agree with the commands, the recipes and the rules of names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccm import cli
from ccm.core.errors import DataError
from ccm.data.sources.catalogue import SOURCES, File
from ccm.training.recipe import load_recipe


@pytest.mark.parametrize("name", SOURCES)
def test_a_row_says_what_a_user_must_know(name: str) -> None:
    row = SOURCES[name]
    assert row.about
    assert row.licence
    assert row.layout
    assert row.address
    assert row.home.startswith("http")
    assert row.paper.startswith("https://")
    assert row.files
    assert all(file.url.startswith("https://") for file in row.files)
    for file in row.files:
        assert (file.sha256 is None) == (file.size is None)
        assert file.lists or row.target(file.path) or any(Path(file.path).match(pattern) for pattern in row.archives)


@pytest.mark.parametrize("name", SOURCES)
def test_the_commands_that_use_it_exist(name: str) -> None:
    for command in SOURCES[name].used_by:
        verb, what, *_ = command.split()
        if verb == "train":
            assert load_recipe(what, [], None).data.name in {*SOURCES, "mixture"}
        else:
            assert what in {given.name or given.callback.__name__ for given in cli.evaluate.app.registered_commands}


@pytest.mark.parametrize(
    ("name", "path", "place"),
    [
        ("dailydialog", "EMNLP_dataset/train/dialogues_train.txt", "dialogues_train.txt"),
        ("dailydialog", "dialogues_text.txt", None),
        ("dailydialog", "dialogues_train_noleak.txt.gz", None),
        ("metaicl", "data/sick/sick_16_13_train.jsonl", "sick/sick_16_13_train.jsonl"),
        ("metaicl", "data/sick/other_16_13_train.jsonl", None),
        ("lamp", "LaMP-2/dev_outputs.json", "LaMP_2/dev_outputs.json"),
        ("lamp", "LaMP_2/new/dev/dev_outputs.json", None),
        ("lamp", "LaMP_2/test/test_questions.json", None),
        ("pg19", "deepmind-gutenberg/test/10146.txt", "test/10146.txt"),
        ("pg19", "data/test_files.txt", None),
        ("longmemeval", "longmemeval_m_cleaned.json", None),
    ],
)
def test_published_paths_have_their_place_or_none(name: str, path: str, place: str | None) -> None:
    assert SOURCES[name].target(path) == place


def test_the_lists_of_books_and_of_tasks_name_files() -> None:
    (books, *_), (tasks,) = SOURCES["pg19"].files, SOURCES["metaicl"].files
    assert books.lists
    assert tasks.lists
    (book,) = books.lists("validation/10146.txt\n")
    assert book == File(
        "validation/10146.txt", "https://storage.googleapis.com/deepmind-gutenberg/validation/10146.txt"
    )
    for wrong in ("validation/../x.txt", "<html>"):
        with pytest.raises(DataError, match="is no name of a book"):
            [*books.lists(wrong)]
    paths = [file.path for file in tasks.lists(json.dumps({"train": ["piqa"], "test": ["sick"]}))]
    assert paths[:2] == ["data/piqa/piqa_16384_100_train.jsonl", "data/sick/sick_16_100_test.jsonl"]
    assert len(paths) == 1 + 1 + 5
