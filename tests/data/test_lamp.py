"""LaMP from small files in the publisher's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccm.builtin import WEIGHTS
from ccm.config import TurnFormat
from ccm.data.lamp import LaMPTask, kept_entries, template
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.errors import ConfigError, DataError
from ccm.loading import load_tokenizer
from ccm.turns import Turns, make_turns

ASKED = "What is the score of the following review? just answer with 1, 2, 3, 4, or 5. review: Nice boat."


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def entries(count: int, text: str = "I like number {}.") -> list[dict[str, str]]:
    return [{"id": str(i), "text": text.format(i), "score": str(1 + i % 5)} for i in range(count)]


def write(folder: Path, examples: list[tuple[str, list[dict[str, str]], str]]) -> Path:
    questions = [{"id": str(i), "input": text, "profile": profile} for i, (text, profile, _) in enumerate(examples)]
    golds = [{"id": str(i), "output": output} for i, (*_, output) in enumerate(examples)]
    (folder / "dev_questions.json").write_text(json.dumps(questions))
    (folder / "dev_outputs.json").write_text(json.dumps({"task": "LaMP_3", "golds": golds[::-1]}))
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
    question_text, review = template(3).split(ASKED)
    assert texts[2] == f". {question_text}\nInput: {review}\nOutput:"
    assert [decode(answer).strip() for answer in question.answers] == ["1", "2", "3", "4", "5"]
    assert (question.right, question.task) == (3, "LaMP-3")
    assert question.steps[0][0] == turns.tokenizer.bos_token_id


def test_fewer_entries_are_the_first_of_more(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, [(ASKED, entries(40), "4"), (ASKED, entries(35), "1")])
    few, many = (asked(opened(folder, turns), depth) for depth in (1, 4))
    assert [q.steps for q in few] == [q.steps[:1] for q in many]
    assert [len(q.steps) for q in asked(opened(folder, turns), 0)] == [0, 0]


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


def test_a_tenth_of_the_entries_may_be_too_long() -> None:
    assert kept_entries([99] * 9 + [100], 2) == [*range(9)]
    assert kept_entries([99] * 8 + [100, 100], 2) is None


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
    with pytest.raises(ConfigError, match="There is no LaMP-6"):
        opened(folder, turns, number=6)
    with pytest.raises(ConfigError, match="There is no time step 17"):
        asked(opened(folder, turns), 17)
    with pytest.raises(ConfigError, match="needs the folder"):
        open_task(TaskSettings("lamp"), turns)
