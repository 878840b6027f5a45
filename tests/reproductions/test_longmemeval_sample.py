"""The sample of LongMemEval, as the task reads it."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from ccm.data.longmemeval import read
from reproductions import longmemeval


def test_the_sample_is_read_as_the_benchmark_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = [
        {"date": "2023/05/30", "role": "user", "content": "My cat is Luna."},
        {"date": "2023/05/30", "role": "assistant", "content": "A fine name."},
        {"date": "2023/05/29", "role": "user", "content": "Good morning!"},
        {"date": "2023/05/29", "role": "assistant", "content": "Hello."},
    ]
    asked = {"id": "q1", "question": "What is my cat's name?", "answer": "Luna"}
    item = {"id": "a", "question_type": "single-session-user", "conversation": said, "questions": [asked]}
    path = tmp_path / longmemeval.SAMPLE
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps({"data": [item]}).encode()))
    output = tmp_path / "new" / "sample.json"
    monkeypatch.setattr(sys, "argv", ["longmemeval", "--data", str(tmp_path), "--output", str(output)])
    longmemeval.main()
    (question,) = read(output)
    assert [(turn.text, turn.reply, turn.session) for turn in question.turns] == [
        ("Good morning!", "Hello.", 0),
        ("My cat is Luna.", "A fine name.", 1),
    ]
    assert "2023/05/30" in question.query
    assert question.answer == "Luna"
    assert question.evidence == {0, 1}
