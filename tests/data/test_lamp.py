"""LaMP from small files in the publisher's format."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data
from ccm.data.lamp import TEMPLATES, LaMPData, LaMPTask, kept_entries
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.engine.layout import IGNORE, Sample, length
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer
from ccm.training.recipe import load_recipe

ASKED = "What is the score of the following review? just answer with 1, 2, 3, 4, or 5. review: Nice boat."


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def entries(count: int, text: str = "I like number {}.") -> list[dict[str, str]]:
    return [{"id": str(i), "text": text.format(i), "score": str(1 + i % 5)} for i in range(count)]


def write(folder: Path, examples: list[tuple[str, list[dict[str, str]], str]], split: str = "dev") -> Path:
    questions = [{"id": str(i), "input": text, "profile": profile} for i, (text, profile, _) in enumerate(examples)]
    golds = [{"id": str(i), "output": output} for i, (*_, output) in enumerate(examples)]
    (folder / f"{split}_questions.json").write_text(json.dumps(questions))
    (folder / f"{split}_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds[::-1]}))
    return folder


def opened(folder: Path, turns: Turns, **options: Any) -> LaMPTask:
    task = open_task(TaskSettings("lamp", str(folder), options={"number": 3, **options}), turns)
    assert isinstance(task, LaMPTask)
    return task


def asked(task: LaMPTask, depth: int) -> list[Question]:
    return [*task.questions(depth)]


def test_entries_are_the_steps_and_the_classes_the_answers(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, [(ASKED, entries(40), "4")])
    (question,) = asked(opened(folder, turns), 2)
    decode = turns.tokenizer.decode
    texts = [decode(ids, skip_special_tokens=True) for ids in (*question.steps, question.query)]
    assert texts[0].startswith("Instruction: ")
    assert texts[0].endswith('."\n')
    assert texts[1].startswith("\n, and ")
    question_text, review = TEMPLATES[3].split(ASKED)
    assert texts[2] == f". {question_text}\nInput: {review}\nOutput:"
    assert [decode(answer).strip() for answer in question.answers] == ["1", "2", "3", "4", "5"]
    assert (question.right, question.task) == (3, "LaMP-3")
    assert question.steps[0][0] == turns.tokenizer.bos_token_id


def test_fewer_entries_are_the_first_of_more(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, [(ASKED, entries(40), "4"), (ASKED, entries(35), "1")])
    few, many = (asked(opened(folder, turns), depth) for depth in (1, 4))
    assert [q.steps for q in few] == [q.steps[:1] for q in many]
    none = asked(opened(folder, turns), 0)
    assert [len(q.steps) for q in none] == [0, 0]
    assert [q.alone().query for q in many] == [q.query for q in none]


def test_the_entries_follow_from_the_seed(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, [(ASKED, entries(40), "4"), (ASKED, entries(35), "1")])
    task = opened(folder, turns)
    authors = [question.steps for question in asked(task, 4)]
    assert [question.steps for question in asked(task, 4)] == authors
    assert [question.steps for question in asked(opened(folder, turns, seed=1337), 4)] == authors
    assert [question.steps for question in asked(opened(folder, turns, seed=1), 4)] != authors
    with pytest.raises(ConfigError, match="seed is -1"):
        opened(folder, turns, seed=-1)


def test_entries_that_do_not_fit_are_dropped_from_the_end_and_counted(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, [(ASKED, entries(40), "4")])
    (whole,) = asked(opened(folder, turns), 4)
    longest = sum(map(len, whole.steps)) + len(whole.query) + max(map(len, whole.answers)) + 1
    assert asked(opened(folder, turns, max_length=longest), 4)[0].steps == whole.steps
    task = opened(folder, turns, max_length=longest - 1)
    assert asked(task, 4)[0].steps == whole.steps[:3]
    assert sum(task.noted.values()) == 1
    task = opened(folder, turns, max_length=20)
    assert asked(task, 4) == []
    assert task.skipped == {"the query alone has no room": 1}


@pytest.mark.parametrize(
    ("profile", "output", "reason"),
    [
        (entries(31), "4", "too few entries of the profile are short enough, or it is empty"),
        ([], "4", "too few entries of the profile are short enough, or it is empty"),
        (entries(40), "6", "the answer is none of the classes, or empty"),
        (entries(40, "long " * 200), "4", "too few entries of the profile are short enough, or it is empty"),
    ],
)
def test_what_cannot_be_asked_is_left_out_and_counted(
    tmp_path: Path, turns: Turns, profile: list[dict[str, str]], output: str, reason: str
) -> None:
    task = opened(write(tmp_path, [(ASKED, profile, output)]), turns)
    assert asked(task, 2) == []
    assert task.skipped == {reason: 1}


@pytest.mark.parametrize(
    ("short", "long", "number", "kept"),
    [
        (9, 1, 2, True),
        (8, 2, 2, False),
        (0, 0, 2, False),
        (27, 3, 2, True),
        (26, 4, 2, False),
        (32, 0, 3, True),
        (31, 0, 3, False),
        (32, 32, 3, True),  # half of them are too long
        (0, 0, 3, False),
    ],
)
def test_a_tenth_of_the_entries_may_be_too_long_and_any_of_lamp_3_where_32_stay(
    short: int, long: int, number: int, kept: bool
) -> None:
    assert kept_entries([99] * short + [100] * long, number) == ([*range(short)] if kept else None)


def test_tasks_without_classes_have_the_answer_alone(tmp_path: Path, turns: Turns) -> None:
    text = "Paraphrase the following tweet without any explanation before or after it: Fine day."
    task = opened(write(tmp_path, [(text, entries(3), "What a day!")]), turns, number=7)
    (question,) = asked(task, 2)
    assert task.measures == "perplexity"
    assert turns.tokenizer.decode(question.answers[0]).strip() == "What a day!"


def test_wrong_files_and_settings_are_named(tmp_path: Path, turns: Turns) -> None:
    with pytest.raises(DataError, match=r"There is no file .*dev_questions.json"):
        asked(opened(tmp_path, turns), 1)
    folder = write(tmp_path, [(ASKED, entries(40), "4")])
    with pytest.raises(DataError, match="has no 'category', as LaMP-2 has"):
        asked(opened(folder, turns, number=2), 1)
    with pytest.raises(DataError, match="does not hold 'Generate a headline"):
        asked(opened(write(tmp_path, [(ASKED, [{"title": "a", "text": "b"}], "c")]), turns, number=4), 1)
    (folder / "dev_outputs.json").write_text('{"golds": []}')
    with pytest.raises(DataError, match="do not belong together"):
        asked(opened(folder, turns), 1)
    (folder / "dev_outputs.json").write_text('{"golds')
    with pytest.raises(DataError, match="may not be whole"):
        asked(opened(folder, turns), 1)
    with pytest.raises(ConfigError, match="options.number is 6; allowed: 1, 2, 3, 4, 5, 7"):
        opened(folder, turns, number=6)
    with pytest.raises(ConfigError, match="There is no time step 17"):
        asked(opened(folder, turns), 17)
    with pytest.raises(ConfigError, match="needs the folder"):
        open_task(TaskSettings("lamp"), turns)


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """Eight examples of LaMP-3 to train on, told apart by the review and the entries; two to evaluate on."""
    reviews = [(f"{ASKED} Boat {i}.", entries(40, f"User {i} likes {{}}."), str(1 + i % 5)) for i in range(8)]
    write(tmp_path, reviews, "train")
    return write(tmp_path, [(ASKED, entries(31), "2"), *[(f"{ASKED} Dev {i}.", entries(40), "3") for i in range(2)]])


def to_train(folder: Path, turns: Turns, **changes: Any) -> LaMPData:
    given = {"data.path": folder, "data.options.number": 3, **{f"data.{key}": value for key, value in changes.items()}}
    data = open_data(load_recipe("lamp", [f"{key}={value}" for key, value in given.items()]).data, turns, 0)
    assert isinstance(data, LaMPData)
    return data


def texts(turns: Turns, sample: Sample) -> list[str]:
    return [turns.tokenizer.decode(step.ids, skip_special_tokens=True) for step in (*sample.steps, sample.query)]


def test_an_example_follows_entries_of_its_own_profile_and_its_answer_alone_is_learned(
    training: Path, turns: Turns
) -> None:
    for sample in to_train(training, turns, max_steps=4).pool(0, 8):
        *read, query = texts(turns, sample)
        (user,) = re.findall(r"Boat (\d)\.", query)
        assert len({*read}) == 4
        assert all(f"User {user} likes " in text for text in read)
        learned = [target for target in sample.query.targets if target != IGNORE]
        assert turns.tokenizer.decode(learned).strip() == f"{1 + int(user) % 5}{turns.tokenizer.eos_token}"
        assert query.endswith(f"Output: {1 + int(user) % 5}")
        assert not any(step.targets for step in sample.steps)


def test_entries_that_are_too_long_are_never_drawn(training: Path, turns: Turns) -> None:
    write(training, [(ASKED, [*entries(3, "boat " * 200), *entries(37)], "4")], "train")
    data = to_train(training, turns, max_steps=4)
    drawn = {text for sample in data.pool(0, 60) for text in texts(turns, sample)[:-1]}
    assert len({text[text.index('for "') :] for text in drawn}) == 37
    assert not any("boat boat" in text for text in drawn)


def test_every_example_comes_once_an_epoch_and_its_entries_change(training: Path, turns: Turns) -> None:
    data = to_train(training, turns, max_steps=4)
    epochs = [{found[-1]: found[:-1] for found in (texts(turns, s) for s in data.pool(e, 8))} for e in range(2)]
    assert len(data) == len(epochs[0]) == 8
    assert epochs[0].keys() == epochs[1].keys()
    assert all(epochs[0][query] != epochs[1][query] for query in epochs[0])


def test_samples_follow_from_seed_and_place(training: Path, turns: Turns) -> None:
    data = to_train(training, turns)
    assert data.pool(0, 8)[4:] == to_train(training, turns).pool(1, 4)
    assert data.pool(0, 8) != replace(data, seed=1).pool(0, 8)


def test_the_number_of_entries_may_be_random(training: Path, turns: Turns) -> None:
    samples = to_train(training, turns, max_steps=3, random_steps="true").pool(0, 24)
    assert {len(sample.steps) for sample in samples} == {1, 2, 3}


def test_what_has_no_room_is_left_out_and_no_sample_is_longer_than_said(training: Path, turns: Turns) -> None:
    whole = to_train(training, turns, max_steps=4)
    most = max(map(length, whole.pool(0, 8))) - 1
    data = to_train(training, turns, **{"max_steps": 4, "options.max_length": most})
    assert max(map(length, data.pool(0, 8))) <= data.longest == most
    assert min(len(sample.steps) for sample in data.pool(0, 8)) == 3


def test_the_first_of_the_dev_split_are_held_out(training: Path, turns: Turns) -> None:
    data = to_train(training, turns, max_steps=2)
    assert [re.findall(r"Dev \d", texts(turns, sample)[-1]) for sample in data.held_out()] == [["Dev 0"], ["Dev 1"]]
    assert data.held_out() == to_train(training, turns, max_steps=2).held_out()
    assert len(to_train(training, turns, eval_samples=1).held_out()) == 1
    (training / "dev_questions.json").unlink()
    assert to_train(training, turns, eval_samples=0).held_out() == []
    with pytest.raises(DataError, match=r"There is no file .*dev_questions.json"):
        to_train(training, turns)


def test_what_is_left_out_of_a_training_is_said(training: Path, turns: Turns, caplog: pytest.LogCaptureFixture) -> None:
    good = (ASKED, entries(40), "4")
    bad = [(ASKED, entries(31), "4"), (ASKED, entries(40), "6"), (ASKED + "boat " * 1024, entries(40), "4")]
    write(training, [good, *bad, bad[0]], "train")
    assert len(to_train(training, turns)) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "LaMP-3: examples left out, too few entries of the profile are short enough, or it is empty: 2",
        "LaMP-3: examples left out, the answer is none of the classes, or empty: 1",
        "LaMP-3: examples left out, the query alone has no room: 1",
        "lamp: 2 of 64 samples are held out to evaluate on (data.eval_samples): the dev split has no more that can be "
        "used. The training itself needs none.",
    ]
    write(training, bad, "train")
    with pytest.raises(DataError, match=r"No example of LaMP-3 in .* can be trained on"):
        to_train(training, turns)


def test_a_recipe_with_the_authors_settings(training: Path, turns: Turns) -> None:
    recipe = load_recipe("lamp")
    assert (recipe.max_steps, recipe.batch_size, recipe.lr, recipe.adapter.lora.r) == (2000, 128, 3e-4, 8)
    assert (recipe.adapter.rule, recipe.adapter.n_tok, recipe.data.max_steps) == ("concat", 4, 16)
    assert {len(sample.steps) for sample in to_train(training, turns).pool(0, 8)} == {16}
    with pytest.raises(ConfigError, match="options.number is 6; allowed: 1, 2, 3, 4, 5, 7"):
        to_train(training, turns, **{"options.number": 6})
    with pytest.raises(ConfigError, match="needs the folder that holds train_questions.json"):
        open_data(recipe.data, turns, recipe.seed)
