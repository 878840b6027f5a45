"""LMSYS-Chat-1M: which conversations are used, how far, and in which language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, DataError
from ccm.data import open_data
from ccm.data.examples import Examples
from ccm.data.kinds import Chat
from ccm.data.settings import DataSettings
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def turns() -> Turns:
    return make_turns(load_tokenizer(WEIGHTS / "base"), TurnFormat())


def row(*texts: str, language: str = "English") -> dict[str, Any]:
    """A conversation as the publisher has it."""
    said = [{"content": text, "role": ("user", "assistant")[i % 2]} for i, text in enumerate(texts)]
    return {"conversation_id": "x", "model": "m", "conversation": said, "turn": len(said) // 2, "language": language}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows]), path)
    else:
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def opened(path: Path, turns: Turns, **settings: Any) -> Examples:
    data = open_data(DataSettings("lmsys", str(path), **settings), turns, 0)
    assert isinstance(data, Examples)
    return data


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "a.jsonl"])
def test_a_conversation_is_a_chat_whose_replies_are_targets(tmp_path: Path, turns: Turns, name: str) -> None:
    write(tmp_path / name, row("Hi.", "Hello.", "Bye.", "So long."))
    data = opened(tmp_path, turns)
    assert [*data.examples] == [Chat((("Hi.", "Hello."), ("Bye.", "So long.")))]
    sample = data.pool(0, 1)[0]
    assert turns.tokenizer.decode(sample.steps[0].ids) == "<s>Hi.\nAssistant:Hello."


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        (("a.", "b.", "c.", "d.", "e."), 2),  # no reply to the last
        (("a.", "b.", "c.", "d.", "word " * 60, "f.", "g.", "h."), 2),  # too long from the third on
        (("a.", "b.", "c.", "d.", "e.", " ", "g.", "h."), 2),
        (("a.", "b."), 0),
        (("a.", "b.", "c.", ""), 0),
        (("word " * 60, "b.", "c.", "d.", "e.", "f."), 0),
        ((), 0),
    ],
)
def test_a_conversation_is_used_up_to_what_cannot_be(
    tmp_path: Path, turns: Turns, caplog: pytest.LogCaptureFixture, texts: tuple[str, ...], kept: int
) -> None:
    write(tmp_path / "a.jsonl", row("One.", "Two.", "Three.", "Four."), row(*texts))
    used = [*opened(tmp_path, turns, max_step_tokens=32).examples]
    said = tuple(zip(texts[: 2 * kept : 2], texts[1 : 2 * kept : 2], strict=True))
    assert used[1:] == ([Chat(said)] if kept else [])
    cut = int(0 < kept < len(texts[1::2]))
    assert f"{1 + bool(kept)} conversations, {cut} of them up to a turn of more than 32 tokens" in caplog.text
    assert f"or none; {int(not kept)} more have fewer than two turns" in caplog.text


def test_long_conversations_are_cut_into_stretches(tmp_path: Path, turns: Turns) -> None:
    write(tmp_path / "a.jsonl", row(*(f"{i}." for i in range(20))))
    assert [example.length for example in opened(tmp_path, turns, max_steps=3).examples] == [2, 2, 3]


def test_a_language_is_chosen_and_no_more_than_asked_for(tmp_path: Path, turns: Turns) -> None:
    rows = [row(f"{i}.", "b.", "c.", "d.", language=("English", "German")[i % 2]) for i in range(6)]
    write(tmp_path / "a.jsonl", *rows)
    german = opened(tmp_path, turns, options={"language": "German", "most": 2}).examples
    assert [example.turns[0][0] for example in german] == ["1.", "3."]
    assert len(opened(tmp_path, turns).examples) == 6
    with pytest.raises(DataError, match="no conversation in Czech of two turns"):
        opened(tmp_path, turns, options={"language": "Czech"})


def test_whole_conversations_are_held_out_or_others_are_named(tmp_path: Path, turns: Turns) -> None:
    write(tmp_path / "a.jsonl", *(row(f"{i}.", "b.", "c.", "d.") for i in range(20)))
    (tmp_path / ".ccm-data.json").write_text("{}")  # of what was prepared
    data = opened(tmp_path, turns)
    assert (len(data), len(data.held_out())) == (18, 2)
    other = write(tmp_path / "b.json", row("x.", "b.", "c.", "d."))
    data = opened(tmp_path / "a.jsonl", turns, eval_path=str(other))
    assert (len(data), [example.turns[0][0] for example in data.held]) == (20, ["x."])


@pytest.mark.parametrize(
    "conversation",
    [
        "text",
        ["text"],
        [{"role": "user"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    ],
)
def test_what_is_no_conversation_is_refused_by_row(tmp_path: Path, turns: Turns, conversation: Any) -> None:
    write(tmp_path / "a.jsonl", row("a.", "b."), {**row(), "conversation": conversation})
    with pytest.raises(DataError, match=r"a.jsonl, row 2: 'conversation' must be a list of messages"):
        opened(tmp_path, turns)


def test_settings_without_meaning_are_refused(turns: Turns, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the folder of LMSYS-Chat-1M's files"):
        open_data(DataSettings("lmsys"), turns, 0)
    with pytest.raises(ConfigError, match="data.options.most is -1"):
        opened(tmp_path, turns, options={"most": -1})
