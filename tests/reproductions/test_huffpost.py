"""The stand-in for LaMP-2: an author's latest articles are asked for, with those before as the profile."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from ccm.chat.turns import make_turns
from ccm.core.config import TurnFormat
from ccm.data.lamp import open_task
from ccm.data.tasks import TaskSettings
from ccm.models.load import load_tokenizer
from reproductions import huffpost


def article(number: int, author: str, category: str) -> dict[str, str]:
    return {"date": "", "category": category, "authors": author, "headline": f"Title {number}", "short_description": ""}


def test_each_authors_latest_articles_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = make_turns(load_tokenizer("builtin"), TurnFormat())
    rows = [article(i, "A", ["TECH", "POLITICS"][i % 2]) for i in range(30)]
    rows += [article(i, "B", "POLITICS") for i in range(23)] + [article(i, "C", "COMEDY") for i in range(99)]
    path = tmp_path / huffpost.ARTICLES
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    monkeypatch.setattr(sys, "argv", ["huffpost", "--data", str(tmp_path), "--output", str(tmp_path / "lamp")])
    huffpost.main()
    task = open_task(TaskSettings("lamp", str(tmp_path / "lamp"), {"number": 2, "max_length": 4096}), turns)
    asked = [*task.questions(4)]
    assert len(asked) == huffpost.ASKED
    texts = [turns.decode([*question.query]) for question in asked]
    assert [f"Title {22 + i}" in text for i, text in enumerate(texts)] == [True] * huffpost.ASKED
    known = "".join(turns.decode([*step]) for question in asked for step in question.steps)
    assert not any(f"Title {number}" in known for number in range(22, 30))
    assert {task.classes[question.right] for question in asked} == {"science & technology", "politics"}
