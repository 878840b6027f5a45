"""MetaICL from small files in the publisher's format."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data
from ccm.data.metaicl import MetaICLData, MetaICLTask
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.engine.layout import IGNORE, Sample, length
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.recipe import load_recipe

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
    assert asked(opened(folder, turns), 2)[0].alone().query == question.query


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


def test_none_comes_after_the_first_demonstration_without_room(folder: Path, turns: Turns) -> None:
    rows = [("grass", "green"), ("snow " * 30, "white"), ("coal", "black")]
    write(folder / "colours" / "colours_16_100_train.jsonl", rows)
    (first, *_), _ = (question.steps for question in asked(opened(folder, turns), 3))
    (kept,), _ = (question.steps for question in asked(opened(folder, turns, max_length=50), 3))
    assert kept == first  # though the third would have had room


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
        (
            '{"input": "a", "output": "b", "opt',
            "colours_test.jsonl, line 2: no object with 'input' and 'output' and 'options'",
        ),
        ('{"input": "a", "output": 1, "options": []}', "row 2: an example has the texts"),
        ("[1]", "line 2: no object with 'input'"),
        ('{"input": "a", "output": "b", "options": [1]}', "row 2: an example has the texts"),
    ],
)
def test_damaged_files_are_named_with_the_line(folder: Path, turns: Turns, line: str, said: str) -> None:
    path = folder / "colours" / "colours_test.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(DataError, match=said):
        asked(opened(folder, turns), 1)


def test_absent_files_and_wrong_settings_are_named(folder: Path, turns: Turns, tmp_path: Path) -> None:
    (folder / "colours" / "colours_16_13_train.jsonl").unlink()
    with pytest.raises(
        DataError, match=r"holds no colours_16_13_train.jsonl; it has demonstrations of the seeds 100\."
    ):
        asked(opened(folder, turns), 1)
    with pytest.raises(DataError, match="holds no task"):
        opened(tmp_path / "nothing", turns)
    with pytest.raises(ConfigError, match="needs the folder"):
        open_task(TaskSettings("metaicl"), turns)
    with pytest.raises(ConfigError, match=r"unknown keys \['maxlength'\]. Did you mean max_length"):
        opened(folder, turns, maxlength=3)
    with pytest.raises(ConfigError, match="There is no task 'metaicll'. Did you mean metaicl"):
        open_task(TaskSettings("metaicll"), turns)


def demonstrated(question: Question, turns: Turns) -> list[str]:
    """The inputs of the demonstrations of a question."""
    return [text_of(turns, step).split()[1] for step in question.steps]


def test_the_demonstrations_are_those_of_another_seed_where_its_file_exists(folder: Path, turns: Turns) -> None:
    write(folder / "colours" / "colours_16_42_train.jsonl", [("sky", "blue")])
    assert demonstrated(asked(opened(folder, turns, demonstrations=42), 2)[0], turns) == ["sky", "milk"]
    with pytest.raises(
        DataError, match=r"no colours_16_21_train.jsonl; it has demonstrations of the seeds 13, 42, 100"
    ):
        asked(opened(folder, turns, demonstrations=21), 1)


def test_a_pool_is_never_filled_up_from_itself(folder: Path, turns: Turns) -> None:
    question = asked(opened(folder, turns, demonstrations=13), 4)[0]
    assert demonstrated(question, turns) == ["milk", "leaf", "grass", "snow"]
    with pytest.raises(ConfigError, match=r"task.options.spare is 42, as demonstrations"):
        opened(folder, turns, demonstrations=42, spare=42)


MANY = [(letter * 3, letter.upper()) for letter in "abcdefghijklmno"]


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Two training tasks: one with its file, one with few-shot pools alone, which have an example in common."""
    write(tmp_path / "beasts" / "beasts_16384_100_train.jsonl", MANY)
    write(tmp_path / "beasts" / "beasts_test.jsonl", [("yak", "YAK")])
    write(tmp_path / "colours" / "colours_16_100_train.jsonl", COLOURS[:3])
    write(tmp_path / "colours" / "colours_16_13_train.jsonl", COLOURS[2:])
    (tmp_path / "hr_to_lr.json").write_text(json.dumps({"train": ["beasts", "colours"], "test": ["other"]}))
    return tmp_path


def to_train(folder: Path, turns: Turns, **changes: Any) -> MetaICLData:
    given = {"data.path": folder, "data.eval_samples": 0, **{f"data.{key}": value for key, value in changes.items()}}
    recipe = load_recipe("metaicl", [f"{key}={value}" for key, value in given.items()])
    data = open_data(recipe.data, turns, recipe.seed)
    assert isinstance(data, MetaICLData)
    return data


def inputs(turns: Turns, sample: Sample) -> list[str]:
    """Of the demonstrations, and of the query."""
    return [text_of(turns, step.ids).split()[1] for step in (*sample.steps, sample.query)]


def test_an_example_follows_others_of_its_task_and_its_output_alone_is_learned(training: Path, turns: Turns) -> None:
    words = {"beasts": {word for word, _ in MANY}, "colours": {word for word, _ in COLOURS}}
    samples = to_train(training, turns, max_steps=3).pool(0, 60)
    for sample in samples:
        found = inputs(turns, sample)
        assert len({*found}) == 4
        assert {*found} <= words["beasts"] or {*found} <= words["colours"]
        assert sample.steps[0].ids[0] == turns.tokenizer.bos_token_id
        assert not any(step.targets for step in sample.steps)
        learned = [target for target in sample.query.targets if target != IGNORE]
        assert learned[-1] == turns.eos_id
        assert text_of(turns, sample.query.ids).endswith(f"Output: {text_of(turns, learned)}")
        assert [*sample.query.ids[-len(learned) + 1 :]] == learned[:-1]


def test_every_example_comes_once_an_epoch_and_its_demonstrations_change(training: Path, turns: Turns) -> None:
    data = to_train(training, turns, max_steps=3)
    assert len(data) == len(MANY) + len(COLOURS)
    queries = [[inputs(turns, sample)[-1] for sample in data.pool(epoch, len(data))] for epoch in range(2)]
    assert sorted(queries[0]) == sorted(queries[1]) == sorted(word for word, _ in MANY + COLOURS)
    assert queries[0] != queries[1]
    by_query = [
        {found[-1]: found[:-1] for found in map(partial(inputs, turns), data.pool(e, len(data)))} for e in (0, 1)
    ]
    assert by_query[0] != by_query[1]


def test_samples_follow_from_seed_and_place(training: Path, turns: Turns) -> None:
    data = to_train(training, turns)
    assert data.pool(0, 8)[4:] == to_train(training, turns).pool(1, 4)
    assert data.pool(0, 8) != replace(data, seed=1).pool(0, 8)


def test_a_small_task_has_as_many_demonstrations_as_there_are(training: Path, turns: Turns) -> None:
    samples = to_train(training, turns).pool(0, 20)
    assert {len(sample.steps) for sample in samples} == {len(MANY) - 1, len(COLOURS) - 1}


def test_the_number_of_demonstrations_may_be_random(training: Path, turns: Turns) -> None:
    samples = to_train(training, turns, max_steps=4, random_steps="true").pool(0, 40)
    assert {len(sample.steps) for sample in samples} == {1, 2, 3, 4}


def test_what_has_no_room_is_left_out_and_no_sample_is_longer_than_said(training: Path, turns: Turns) -> None:
    whole = to_train(training, turns, max_steps=4)
    least = max(map(length, whole.pool(0, 20)))
    assert whole.longest == 1025
    data = to_train(training, turns, **{"max_steps": 4, "options.longest": 20, "options.max_length": 40})
    lengths = [length(sample) for sample in data.pool(0, 20)]
    assert max(lengths) <= data.longest == 41 < least
    assert {len(sample.steps) for sample in data.pool(0, 20)} <= {1, 2, 3}
    assert to_train(training, turns, **{"max_steps": 1, "options.longest": 20}).longest == 41
    with pytest.raises(ConfigError, match="max_length is 511; .* at least twice data.options.longest, which is 256"):
        to_train(training, turns, **{"options.max_length": 511})


def test_the_held_out_are_never_trained_on_nor_shown(
    training: Path, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    write(training / "colours" / "colours_16384_100_train.jsonl", [(f"{word}s", "many") for word, _ in MANY])
    data = to_train(training, turns, eval_samples=64)
    held = [inputs(turns, sample) for sample in data.held_out()]
    assert [found[-1] for found in held] == ["ooo", "ooos"]  # a tenth of each, its last
    assert (
        "metaicl: 2 of 64 samples are held out to evaluate on (data.eval_samples): as many of each task" in caplog.text
    )
    shown = {word for sample in data.pool(0, len(data)) for word in inputs(turns, sample)}
    assert {word for found in held for word in found[:-1]} <= shown
    assert not shown & {"ooo", "ooos"}
    assert data.held_out() == data.held_out()
    assert [inputs(turns, s)[-1] for s in to_train(training, turns, eval_samples=1).held_out()] == ["ooo"]


def test_what_is_left_out_or_replaced_is_said(training: Path, turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    (training / "hr_to_lr.json").write_text(json.dumps({"train": ["beasts", "colours", "absent", "single"]}))
    write(training / "beasts" / "beasts_16384_100_train.jsonl", [*MANY, ("word " * 300, "x"), (" ", "x"), ("x", "")])
    write(training / "single" / "single_test.jsonl", COLOURS[:1])
    assert len(to_train(training, turns)) == len(MANY) + len(COLOURS)
    assert [record.getMessage() for record in caplog.records] == [
        "MetaICL: no training file, so trained on from the few-shot pools: 1 of 4 tasks (colours)",
        "MetaICL: no file, so not trained on: 1 of 4 tasks (absent)",
        "MetaICL: no training file, so trained on from the test file: 1 of 4 tasks (single)",
        "MetaICL: examples left out, longer than 256 tokens: 1",
        "MetaICL: examples left out, without an input or output: 2",
        "MetaICL: examples left out, the only ones of their tasks: 1",
    ]


def test_nothing_is_said_where_all_is_as_published(training: Path, turns: Turns, caplog) -> None:
    to_train(training, turns, **{"options.tasks": "[beasts]", "options.fallback": "false"})
    assert not caplog.records


def test_what_cannot_be_trained_on_is_refused(training: Path, turns: Turns) -> None:
    with pytest.raises(DataError, match="lacks TASK_16384_100_train.jsonl of colours. Leave data.options.fallback on"):
        to_train(training, turns, **{"options.fallback": "false"})
    with pytest.raises(DataError, match="has no file to train on of the tasks birds"):
        to_train(training, turns, **{"options.tasks": "[beasts, birds]"})
    with pytest.raises(ConfigError, match=r"unknown keys \['long'\]. Did you mean longest"):
        to_train(training, turns, **{"options.long": 3})
    with pytest.raises(ConfigError, match="needs the folder that holds MetaICL's tasks"):
        open_data(load_recipe("metaicl").data, turns, 0)
    with pytest.raises(ConfigError, match="leave data.eval_path out"):
        to_train(training, turns, eval_path="x")
    (training / "hr_to_lr.json").write_text(json.dumps({"train": ["none"]}))
    with pytest.raises(DataError, match="has two examples of at most 256 tokens"):
        to_train(training, turns)
    (training / "hr_to_lr.json").unlink()
    with pytest.raises(DataError, match="holds no hr_to_lr.json, the list of MetaICL's training tasks"):
        to_train(training, turns)


def test_a_recipe_with_the_authors_settings() -> None:
    recipe = load_recipe("metaicl")
    assert (recipe.max_steps, recipe.batch_size, recipe.lr, recipe.adapter.lora.r) == (2000, 128, 3e-4, 8)
    assert (recipe.adapter.rule, recipe.adapter.n_tok, recipe.data.max_steps, recipe.data.random_steps) == (
        "concat",
        8,
        16,
        False,
    )
    assert load_recipe("metaicl", stage="base").max_steps == 2000
