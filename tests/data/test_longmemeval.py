"""LongMemEval from a small file in the publisher's original format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data.longmemeval import read
from ccm.data.longterm import LongQuestion
from ccm.data.questions import Question
from ccm.data.tasks import Task, TaskSettings, open_task
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer

USER, ASSISTANT = "user", "assistant"


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat(separator="\nU:", reply_separator="\nA:"))


def message(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def exchanges(*texts: str, **more: Any) -> list[dict[str, Any]]:
    return [message(role, f"{text} {role[0]}", **more) for text in texts for role in (USER, ASSISTANT)]


def question(identity: str = "q1", **changes: Any) -> dict[str, Any]:
    return {
        "question_id": identity,
        "question_type": "multi-session",
        "question": "How many?",
        "answer": 3,
        "question_date": "2023/06/01 (Thu) 10:00",
        "haystack_dates": ["2023/05/03 (Wed) 10:00", "2023/05/01 (Mon) 10:00", "2023/05/02 (Tue) 10:00"],
        "haystack_session_ids": ["c", "a", "answer_b"],
        "haystack_sessions": [exchanges("c1", "c2"), exchanges("a1"), exchanges("b1", "b2")],
        "answer_session_ids": ["answer_b"],
        **changes,
    }


def write(folder: Path, *questions: Any) -> Path:
    path = folder / "longmemeval_oracle.json"
    path.write_text(json.dumps([*questions], indent=4))
    return path


def opened(path: Path, turns: Turns, **options: Any) -> Task:
    return open_task(TaskSettings("longmemeval", str(path), options=options), turns)


def texts(asked: Question, turns: Turns) -> list[str]:
    return [turns.decode([*ids]) for ids in (*asked.steps, asked.query)]


def test_what_the_user_says_with_the_reply_is_a_step_and_sessions_are_in_order(tmp_path: Path, turns: Turns) -> None:
    task = opened(write(tmp_path, question()), turns)
    (asked,) = task.questions(16)
    *steps, query = texts(asked, turns)
    assert steps == [
        "[2023/05/01 (Mon) 10:00]\na1 u\nA:a1 a",
        "U:[2023/05/02 (Tue) 10:00]\nb1 u\nA:b1 a",
        "U:b2 u\nA:b2 a",
    ]
    assert query == "U:It is 2023/06/01 (Thu) 10:00. Answer in a few words.\nQuestion: How many?\nA:"
    assert (turns.decode([*asked.answers[0]]), asked.references, asked.judged) == ("3", ("3",), "words")
    assert task.noted == {"fewer than 16 turns, there are no more": 1, "all of the evidence in view": 1}
    (late,) = opened(tmp_path / "longmemeval_oracle.json", turns, until="end").questions(1)
    assert texts(late, turns)[0] == "[2023/05/03 (Wed) 10:00]\nc2 u\nA:c2 a"


def one(tmp_path: Path, **changes: Any) -> LongQuestion:
    (asked,) = read(write(tmp_path, question(**changes)))
    return asked


def test_the_evidence_is_what_is_marked_or_else_the_sessions_named(tmp_path: Path) -> None:
    assert one(tmp_path).evidence == {1, 2}
    marked = [*exchanges("b1"), message(USER, "b2"), message(ASSISTANT, "so", has_answer=True)]
    sessions = [exchanges("c1", "c2", has_answer=False), exchanges("a1"), marked]
    assert one(tmp_path, haystack_sessions=sessions).evidence == {2}


def test_messages_that_do_not_alternate_are_all_kept(tmp_path: Path, turns: Turns) -> None:
    odd = [message(ASSISTANT, "Hello"), message(ASSISTANT, "again"), message(USER, "x"), message(USER, "y")]
    asked = one(tmp_path, haystack_sessions=[exchanges("c1"), exchanges("a1"), odd])
    told = [(turn.opens, turn.text, turn.reply) for turn in asked.turns[1:5]]
    assert told == [(True, "", "Hello"), (False, "", "again"), (False, "x", ""), (False, "y", "")]
    assert all(turn.ids(turns, first=False) for turn in asked.turns)


def test_questions_that_the_history_does_not_answer_are_counted_apart(tmp_path: Path, turns: Turns) -> None:
    path = write(tmp_path, question("q1_abs"), question("q2"))
    assert [asked.task for asked in opened(path, turns).questions(2)] == ["abstention", "multi-session"]
    assert [asked.task for asked in opened(path, turns, categories=["abstention"]).questions(2)] == ["abstention"]
    with pytest.raises(ConfigError, match="There is no category 'temporal'"):
        opened(path, turns, categories=["temporal"])


def test_a_chat_template_reads_the_sessions(tmp_path: Path, turns: Turns) -> None:
    tokenizer = load_tokenizer(WEIGHTS / "base")
    tokenizer.chat_template = "{% for m in messages %}({{ m.role[0] }}) {{ m.content }}{% endfor %}"
    (asked,) = opened(write(tmp_path, question()), make_turns(tokenizer, TurnFormat(template="chat"))).questions(2)
    assert [text.startswith("(u) ") for text in texts(asked, turns)] == [True] * 3


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"data": []}', "holds no JSON list; it may be in another format than the publisher's"),
        ("[3]", "question 1 is none of LongMemEval's .TypeError"),
        ('[{"question": "Why?"}]', "question 1 is none of LongMemEval's .KeyError"),
        ('[{"question" "Why?"}]', "cannot be read: Expecting ':' delimiter"),
    ],
)
def test_what_is_no_file_of_the_benchmark_is_named(tmp_path: Path, turns: Turns, content: str, said: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said):
        [*opened(path, turns).questions(1)]


def test_absent_files_are_named(tmp_path: Path, turns: Turns) -> None:
    with pytest.raises(DataError, match="There is no file .*none.json"):
        [*opened(tmp_path / "none.json", turns).questions(1)]
    with pytest.raises(DataError, match="cannot be read"):
        [*opened(tmp_path, turns).questions(1)]
    (tmp_path / "some.json.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="may not be whole"):
        [*opened(tmp_path / "some.json.gz", turns).questions(1)]
    with pytest.raises(ConfigError, match="needs one of LongMemEval's files"):
        open_task(TaskSettings("longmemeval"), turns)
