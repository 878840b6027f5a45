"""Calls of tools in what a model wrote."""

from __future__ import annotations

import pytest

from ccm.serving.calls import ToolCall, calls_in

CALL = '{"name": "weather", "arguments": {"town": "Oslo"}}'
MADE = ToolCall("weather", '{"town": "Oslo"}')


@pytest.mark.parametrize(
    ("reply", "text", "calls"),
    [
        ("It rains.", "It rains.", []),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", [MADE]),
        (f"Let me see. <tool_call>{CALL}</tool_call><tool_call>{CALL}</tool_call>", "Let me see.", [MADE, MADE]),
        (CALL, "", [MADE]),
        (CALL.replace("arguments", "parameters"), "", [MADE]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ("<tool_call>weather!</tool_call>", "<tool_call>weather!</tool_call>", []),
        ('{"name": "weather"}', "", [ToolCall("weather", "{}")]),
        ("[1]", "[1]", []),
    ],
)
def test_calls_are_found_and_all_else_stays_text(reply: str, text: str, calls: list[ToolCall]) -> None:
    assert calls_in(reply, ["weather"]) == (text, calls)


def test_without_tools_nothing_is_a_call() -> None:
    assert calls_in(CALL, []) == (CALL, [])
