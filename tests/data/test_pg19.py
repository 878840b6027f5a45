"""PG19 as a task: chunks of books by the latest chunks before them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ccm import cli
from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data.pg19 import PG19Task, spread
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The publisher's folders: a book to measure, and one that is not asked for."""
    for split, name in (("test", "A"), ("validation", "V")):
        (tmp_path / split).mkdir()
        text = " ".join(f"{name}{i}" for i in range(400))
        (tmp_path / split / f"{name}.txt").write_text(text, encoding="utf-8")
    return tmp_path


def opened(folder: Path, turns: Turns, **options: Any) -> PG19Task:
    task = open_task(TaskSettings("pg19", str(folder), {"chunk_tokens": 16, "deepest": 4, **options}), turns)
    assert isinstance(task, PG19Task)
    return task


def ids(question: Question) -> list[int]:
    """Of the whole question."""
    texts: list[Sequence[int]] = [*question.steps, question.query, *question.answers]
    return [token for text in texts for token in text]


def test_every_time_step_has_the_same_targets_and_the_latest_chunks_before_them(folder: Path, turns: Turns) -> None:
    task = opened(folder, turns)
    assert task.depths == [1, 2, 4]
    by_depth = {depth: [*task.questions(depth)] for depth in (0, *task.depths)}
    bos = turns.tokenizer.bos_token_id
    whole = turns.tokenizer.encode((folder / "test" / "A.txt").read_text(), add_special_tokens=False)
    for depth, questions in by_depth.items():
        assert len(questions) == 10
        for question, deepest in zip(questions, by_depth[4], strict=True):
            assert question.answers == deepest.answers
            assert question.alone().query == [bos, *deepest.query]
            assert (len(question.answers), len(question.answers[0])) == (1, 15)
            assert [len(step) for step in question.steps] == [17, 16, 16, 16][:depth]
            assert len(question.query) == (1 if depth else 2)
            first, *rest = ids(question)
            assert first == bos
            assert rest == ids(deepest)[-16 * (depth + 1) :]
            assert any(whole[i : i + len(rest)] == rest for i in range(0, len(whole), 16))


def test_targets_are_spread_over_the_book_as_far_as_there_are_chunks(folder: Path, turns: Turns) -> None:
    assert spread(range(4, 24), 5) == [7, 11, 15, 19, 23]
    assert spread(range(4, 6), 5) == [4, 5]
    assert spread(range(4, 4), 5) == []
    task = opened(folder, turns, targets=500)
    questions = [*task.questions(2)]
    assert 50 < len(questions) < 500
    assert len({tuple(question.answers[0]) for question in questions}) == len(questions)
    assert task.noted == {"books with fewer than 500 targets": 1}


def test_the_first_questions_are_of_many_books(folder: Path, turns: Turns) -> None:
    (folder / "test" / "B.txt").write_text(" ".join(f"B{i}" for i in range(400)))
    first, second, third, *_ = opened(folder, turns).questions(1)
    letters = [turns.decode([*question.answers[0]]).strip("0123456789 ")[0] for question in (first, second, third)]
    assert letters == ["A", "B", "A"]


def test_a_book_that_is_too_short_is_counted(folder: Path, turns: Turns) -> None:
    (folder / "test" / "short.txt").write_text("Too short.")
    task = opened(folder, turns)
    assert len([*task.questions(1)]) == 10
    assert task.skipped == {"books of less than 5 chunks": 1}


def test_a_split_is_chosen_and_a_plain_folder_is_read_as_it_is(folder: Path, turns: Turns) -> None:
    for asked, letter in ((opened(folder, turns, split="validation"), "V"), (opened(folder / "test", turns), "A")):
        question = next(asked.questions(1))
        assert letter in turns.decode([*question.steps[0]])


def test_what_cannot_be_measured_is_refused(folder: Path, turns: Turns) -> None:
    with pytest.raises(ConfigError, match="no time step 5; the steps are chunks, up to 4"):
        next(opened(folder, turns).questions(5))
    with pytest.raises(ConfigError, match="task.options.targets is 0; it must be at least 1"):
        opened(folder, turns, targets=0)
    with pytest.raises(ConfigError, match="'pg19' needs the folder of PG19's books; name it as task.path"):
        open_task(TaskSettings("pg19"), turns)
    (folder / "test" / "A.txt").unlink()
    with pytest.raises(DataError, match=r"holds none of \*.txt, \*.txt.gz"):
        opened(folder, turns)


def test_the_command_prints_a_perplexity_at_every_step(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "pg19", "--data", str(folder), "--chunk-tokens", "16", "--deepest", "2", "--targets", "3"]
    monkeypatch.setattr(sys, "argv", ["ccm", *words, "--rule", "concat"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0][:3] == ["step", "method", "perplexity"]
    assert [(row[0], row[1], float(row[2]) > 1) for row in rows[1:3]] == [("1", "concat", True), ("2", "concat", True)]


def test_a_split_that_is_not_there_is_an_error(folder: Path, turns: Turns) -> None:
    (folder / "validation").rename(folder / "train")
    with pytest.raises(DataError, match="has no folder 'validation', but train, test; name one of these"):
        opened(folder, turns, split="validation")
