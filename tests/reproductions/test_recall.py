"""Recall in a window, on one conversation."""

from __future__ import annotations

import pytest

from reproductions.recall import WAYS, measure, new_conversation


@pytest.mark.parametrize("way", WAYS)
def test_the_last_questions_are_judged_within_the_window(way: str) -> None:
    found = measure((64, way), rule="concat", steps=12, facts=8, dialogues=1)
    assert found.questions == 4
    assert found.right in (0, 0.25, 0.5, 0.75, 1)
    assert 32 < found.entries <= 64


def test_older_exchanges_are_compressed_or_dropped() -> None:
    held = {}
    for way in WAYS:
        talk = new_conversation(64, way, "concat")
        talk.reset()
        for _ in range(8):
            talk.answer("My name is Anna.")
        held[way] = talk.stream.held.memory
    assert held["compressed"] > 0
    assert held["dropped"] == 0
