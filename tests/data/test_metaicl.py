"""MetaICL from small files in the publisher's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccm.builtin import WEIGHTS
from ccm.config import TurnFormat
from ccm.data.metaicl import MetaICLTask
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.errors import ConfigError, DataError
from ccm.loading import load_tokenizer
from ccm.turns import Turns, make_turns

COLOURS = [("grass", "green"), ("snow", "white"), ("coal", "black"), ("milk", "white"), ("leaf", "green")]
OPTIONS = ["green", "white", "black", "white"]


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def write(path: Path, rows: list[tuple[str, str]], options: list[str] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [
        json.dumps(
            {"task": path.parent.name, "input": x, "output": y, "options": OPTIONS if options is None else options}
        )
        for x, y in rows
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    task = tmp_path / "colours"
    write(task / "colours_16_100_train.jsonl", COLOURS[:3])
    write(task / "colours_16_13_train.jsonl", COLOURS[3:])
    write(task / "colours_test.jsonl", [("night", "black"), ("salt", "white")])
    return tmp_path


def opened(folder: Path, turns: Turns, **options: Any) -> MetaICLTask:
    task = open_task(TaskSettings("metaicl", str(folder), options=options), turns)
    assert isinstance(task, MetaICLTask)
    return task


def text_of(turns: Turns, ids: Any) -> str:
    return turns.tokenizer.decode(ids, skip_special_tokens=True).strip()


def asked(task: MetaICLTask, depth: int) -> list[Question]:
    return [*task.questions(depth)]


def test_demonstrations_are_the_steps_and_the_options_the_answers(folder: Path, turns: Turns) -> None:
    first, second = asked(opened(folder, turns), 2)
    assert [text_of(turns, step) for step in first.steps] == [
        "Input: grass Output: green",
        "Input: snow Output: white",
    ]
    assert first.steps[0][0] == turns.tokenizer.bos_token_id
    assert text_of(turns, first.query) == "Input: night Output:"
    assert [text_of(turns, answer) for answer in first.answers] == ["green", "white", "black"]
    assert (first.right, second.right, first.task) == (2, 1, "colours")
    assert text_of(turns, first.before) == "Output:"


def test_without_demonstrations_the_query_begins_the_text(folder: Path, turns: Turns) -> None:
    question = asked(opened(folder, turns), 0)[0]
    assert question.steps == []
    assert question.query[0] == turns.tokenizer.bos_token_id


def test_a_pool_that_is_too_small_is_filled_from_the_spare_one(folder: Path, turns: Turns) -> None:
    question = asked(opened(folder, turns), 4)[0]
    assert [text_of(turns, step)[7:12] for step in question.steps] == ["grass", "snow ", "coal ", "milk "]
    task = opened(folder, turns)
    assert len(asked(task, 16)[0].steps) == 5
    assert task.noted == {"colours: fewer than 16 demonstrations, there are no more": 2}


def test_demonstrations_without_room_are_left_out_and_counted(folder: Path, turns: Turns) -> None:
    whole = asked(opened(folder, turns), 3)[0]
    room = sum(map(len, whole.steps)) - 1 + len(whole.query) + max(map(len, whole.answers))  # but for BOS
    assert len(asked(opened(folder, turns, max_length=room), 3)[0].steps) == 3
    task = opened(folder, turns, max_length=room - 1)
    assert len(asked(task, 3)[0].steps) == 2
    assert task.skipped == {}
    assert task.noted["colours: fewer than 3 demonstrations, the others have no room"] >= 1


@pytest.mark.parametrize(
    ("row", "options", "reason"),
    [
        (("night", "blue"), OPTIONS, "colours: the answer is none of its options"),
        (("night", "black"), [], "colours: has no options"),
        (("night", "black"), ["black", " "], "colours: has an empty input or option"),
        ((" ", "black"), OPTIONS, "colours: has an empty input or option"),
        (("night " * 300, "black"), OPTIONS, "colours: longer than 256 tokens"),
    ],
)
def test_what_cannot_be_asked_is_left_out_and_counted(
    folder: Path, turns: Turns, row: tuple[str, str], options: list[str], reason: str
) -> None:
    write(folder / "colours" / "colours_test.jsonl", [row], options)
    task = opened(folder, turns)
    assert asked(task, 1) == []
    assert task.skipped == {reason: 1}


def test_the_tasks_are_those_of_the_publishers_list_and_one_without_files_is_counted(
    folder: Path, turns: Turns
) -> None:
    write(folder / "other" / "other_test.jsonl", [("night", "black")])
    (folder / "hr_to_lr.json").write_text(json.dumps({"train": ["a"], "test": ["colours", "absent"]}))
    task = opened(folder, turns)
    assert {question.task for question in asked(task, 1)} == {"colours"}
    assert task.noted == {"absent: no test file": 1}
    with pytest.raises(DataError, match="no test file of the tasks absent"):
        opened(folder, turns, tasks=["colours", "absent"])
    (folder / "hr_to_lr.json").write_text(json.dumps({"train": ["a"]}))
    with pytest.raises(DataError, match="holds no list of tasks under 'test'"):
        opened(folder, turns)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"input": "a", "output": "b", "opt', "colours_test.jsonl, line 2: not JSON"),
        ('{"input": "a", "output": 1, "options": []}', "line 2: an example has the texts"),
        ("[1]", "line 2: an example has the texts"),
        ('{"input": "a", "output": "b", "options": [1]}', "line 2: an example has the texts"),
    ],
)
def test_damaged_files_are_named_with_the_line(folder: Path, turns: Turns, line: str, said: str) -> None:
    path = folder / "colours" / "colours_test.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=said):
        asked(opened(folder, turns), 1)


def test_absent_files_and_wrong_settings_are_named(folder: Path, turns: Turns, tmp_path: Path) -> None:
    (folder / "colours" / "colours_16_13_train.jsonl").unlink()
    with pytest.raises(DataError, match=r"There is no file .*colours_16_13_train.jsonl"):
        asked(opened(folder, turns), 1)
    with pytest.raises(DataError, match="holds no task"):
        opened(tmp_path / "nothing", turns)
    with pytest.raises(ConfigError, match="needs the folder"):
        open_task(TaskSettings("metaicl"), turns)
    with pytest.raises(ConfigError, match=r"unknown keys \['maxlength'\]; Did you mean max_length"):
        opened(folder, turns, maxlength=3)
    with pytest.raises(ConfigError, match="There is no task 'metaicll'. Did you mean metaicl"):
        open_task(TaskSettings("metaicll"), turns)
