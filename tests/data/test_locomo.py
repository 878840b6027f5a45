"""LoCoMo from a small file in the publisher's format."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data.locomo import CATEGORIES
from ccm.data.longterm import LongTask
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, open_task
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat(separator="\n", reply_separator="\nA:"))


def said(session: int, *texts: str) -> list[dict[str, Any]]:
    return [{"speaker": "AB"[i % 2], "dia_id": f"D{session}:{i + 1}", "text": text} for i, text in enumerate(texts)]


def conversation(qa: list[dict[str, Any]]) -> dict[str, Any]:
    sessions = {f"session_{i}": said(i, f"one {i}", f"two {i}", f"three {i}") for i in (1, 2, 3)}
    sessions["session_10"] = [{**said(10, "look")[0], "blip_caption": "a red boat", "img_url": ["http://"]}]
    dates = {f"session_{i}_date_time": f"{i} May" for i in (1, 2, 3, 4, 10)}  # there is no session 4
    talk = {"speaker_a": "A", "speaker_b": "B", **dict(reversed(sessions.items())), **dates}
    return {"sample_id": "conv-1", "conversation": talk, "qa": qa}


def asked(number: int, answer: Any = "red", evidence: tuple[str, ...] = ("D2:2",), **more: Any) -> dict[str, Any]:
    return {"question": "Which?", "answer": answer, "evidence": list(evidence), "category": number, **more}


def write(folder: Path, *qa: dict[str, Any]) -> Path:
    (folder / "locomo10.json").write_text(json.dumps([conversation([*qa])]))
    return folder


def opened(path: Path, turns: Turns, **options: Any) -> LongTask:
    task = open_task(TaskSettings("locomo", str(path), options=options), turns)
    assert isinstance(task, LongTask)
    return task


def texts(question: Question, turns: Turns) -> list[str]:
    return [turns.decode([*ids]) for ids in (*question.steps, question.query)]


def test_a_turn_is_a_step_and_the_date_is_said_at_the_first(tmp_path: Path, turns: Turns) -> None:
    task = opened(write(tmp_path, asked(4, evidence=("D10:1",))), turns)
    (question,) = task.questions(100)
    *steps, query = texts(question, turns)
    assert steps[:4] == ["[1 May]\nA: one 1", "B: two 1", "A: three 1", "[2 May]\nA: one 2"]
    assert steps[-1] == "[10 May]\nA: look [shows a red boat]"  # after session 3
    assert len(steps) == 10
    assert query == "Answer in a few words.\nQuestion: Which?\nA:"
    assert question.steps[0][0] == turns.tokenizer.bos_token_id
    assert turns.decode([*question.answers[0]]) == "red"
    assert task.noted == {"fewer than 100 turns, there are no more": 1, "all of the evidence in view": 1}


def test_a_question_comes_after_the_session_of_its_last_evidence(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, asked(1, evidence=("D1:1", "D2:1")), asked(3, evidence=()))
    task = opened(folder, turns)
    two, whole = (texts(question, turns)[:-1] for question in task.questions(2))
    assert two == ["[2 May]\nB: two 2", "A: three 2"]  # in the midst of a session, the first in view says the date
    assert whole == ["[3 May]\nA: three 3", "[10 May]\nA: look [shows a red boat]"]
    assert task.noted == {"none of the evidence in view": 1, "no evidence is named": 1}
    assert [*task.questions(3)]
    assert task.noted == {"some of the evidence in view": 1, "no evidence is named": 1}
    late, _ = opened(folder, turns, until="end").questions(2)
    assert texts(late, turns)[:-1] == whole
    none, _ = task.questions(0)
    assert len(none.steps) == 0
    assert none.query[0] == turns.tokenizer.bos_token_id
    assert late.alone().query == none.query


@pytest.mark.parametrize(
    ("evidence", "steps"),
    [(("D1:1; D2:3",), 6), (("D1:1 D2:3",), 6), (("D:1:2",), 3), (("D1:02",), 3), (("D", "D7:1", "D1:9"), 10)],
)
def test_evidence_is_read_as_it_is_written(tmp_path: Path, turns: Turns, evidence: tuple[str], steps: int) -> None:
    (question,) = opened(write(tmp_path, asked(4, evidence=evidence)), turns).questions(100)
    assert len(question.steps) == steps


def test_the_oldest_turns_are_left_out_where_they_have_no_room(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, asked(4, evidence=("D2:3", "D10:1")))
    task = opened(folder, turns)
    (whole,) = task.questions(5)
    assert task.noted == {"all of the evidence in view": 1}
    text = sum(map(len, (*whole.steps, whole.query)))
    longest = text + 32  # the tokens of a reply
    (same,) = opened(folder, turns, max_length=longest).questions(5)
    assert same.steps == whole.steps
    task = opened(folder, turns, max_length=longest - 1)
    (shorter,) = task.questions(5)
    assert texts(shorter, turns)[1:] == texts(whole, turns)[2:]
    assert texts(shorter, turns)[0].startswith("[3 May]\nA: one")
    assert task.noted == {"fewer than 5 turns, the others have no room": 1, "some of the evidence in view": 1}
    task = opened(folder, turns, max_length=text + len(whole.answers[0]))
    task.replies = replace(task.replies, most=0)
    (same,) = task.questions(5)
    assert same.steps == whole.steps
    task = opened(folder, turns, max_length=10)
    assert [*task.questions(5)] == []
    assert task.skipped == {"the query alone has no room": 1}


def test_every_category_is_judged_as_the_benchmark_does(tmp_path: Path, turns: Turns) -> None:
    rows = [asked(1, "tea, milk"), asked(2, 2022), asked(3, "Likely no; she hates boats"), asked(4, "red")]
    rows.append({"question": "Why?", "adversarial_answer": "for fun", "evidence": ["D1:1"], "category": 5})
    task = opened(write(tmp_path, *rows, asked(4, " ")), turns)
    found = [*task.questions(2)]
    assert [(q.task, q.judged) for q in found] == [
        ("multi-hop", "parts"), ("temporal", "stems"), ("open-domain", "stems"), ("single-hop", "stems"),
        ("adversarial", "phrase"),
    ]  # fmt: skip
    assert [q.references for q in found[:4]] == [["tea, milk"], ["2022"], ["Likely no"], ["red"]]
    assert "dates of the sessions" in texts(found[1], turns)[-1]
    assert "dates of the sessions" not in texts(found[0], turns)[-1]
    assert task.skipped == {"the answer is empty": 1}
    assert task.replies.figure == "answer_f1"


def test_an_adversarial_question_offers_what_was_not_mentioned(tmp_path: Path, turns: Turns) -> None:
    row = {"question": "Why?", "adversarial_answer": "for fun", "evidence": ["D1:1"], "category": 5}
    task = opened(write(tmp_path, *[row] * 8), turns)
    found = [*task.questions(2)]
    orders = {"a": "(a) Not mentioned in the conversation, or (b) for fun", "b": "(a) for fun, or (b) Not mentioned"}
    for question in found:
        letter, *phrases = question.references
        assert orders[letter] in texts(question, turns)[-1]
        assert phrases == ["not mentioned", "no information available"]
        assert turns.decode([*question.answers[0]]) == "Not mentioned in the conversation"
    assert {question.references[0] for question in found} == {"a", "b"}
    assert task.noted["adversarial, not in the perplexity"] == 8
    assert [name for name in CATEGORIES.values() if not task.averaging.counts(name)] == ["adversarial"]


def test_categories_may_be_chosen(tmp_path: Path, turns: Turns) -> None:
    folder = write(tmp_path, asked(1), asked(2), asked(4))
    found = opened(folder, turns, categories=["temporal", "single-hop"]).questions(2)
    assert [question.task for question in found] == ["temporal", "single-hop"]
    with pytest.raises(ConfigError, match="no category 'temporl'. Did you mean temporal"):
        opened(folder, turns, categories=["temporl"])


def test_the_file_may_be_gzipped_or_named_itself(tmp_path: Path, turns: Turns) -> None:
    write(tmp_path, asked(4))
    plain = tmp_path / "locomo10.json"
    (expected,) = opened(plain, turns).questions(2)
    (tmp_path / "locomo10.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert [*opened(tmp_path, turns).questions(2)] == [expected]


def test_wrong_files_and_settings_are_named(tmp_path: Path, turns: Turns) -> None:
    with pytest.raises(DataError, match="holds none of locomo10.json"):
        opened(tmp_path, turns)
    with pytest.raises(ConfigError, match=r"needs locomo10.json"):
        open_task(TaskSettings("locomo"), turns)
    with pytest.raises(ConfigError, match="There is no time step -1"):
        [*opened(write(tmp_path, asked(4)), turns).questions(-1)]
    with pytest.raises(DataError, match=r"conversation 1 is none of LoCoMo's \(KeyError\(6\)\)"):
        [*opened(write(tmp_path, asked(6)), turns).questions(1)]
    with pytest.raises(ConfigError, match="max_length is 0"):
        opened(tmp_path, turns, max_length=0)


def test_an_adapter_with_a_chat_template_reads_every_turn_as_a_message(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(WEIGHTS / "base")
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = make_turns(tokenizer, TurnFormat(template="chat"))
    (question,) = opened(write(tmp_path, asked(4, evidence=("D10:1",))), turns).questions(2)
    assert texts(question, turns) == [
        "<user>[3 May]\nA: three 3",
        "<end><user>[10 May]\nA: look [shows a red boat]",
        "<end><user>Answer in a few words.\nQuestion: Which?<end><assistant>",
    ]
    assert turns.decode([*question.answers[0]]) == "red"
