"""Calls of tools in what a model wrote.

<tool_call>{"name": ..., "arguments": {...}}</tool_call>      as Hermes, Qwen and SmolLM3 write them, any number
{"name": ..., "parameters": {...}}                            as Llama 3 does, the whole reply
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)


class ToolCall(NamedTuple):
    """A call of a tool: its name, and its arguments as JSON."""

    name: str
    arguments: str


def calls_in(reply: str, tools: Collection[str]) -> tuple[str, list[ToolCall]]:
    """Split a reply into text and calls of the named tools. Anything else stays text."""
    if not tools:
        return reply, []
    if (whole := _call(reply.strip(), tools)) is not None:
        return "", [whole]
    calls: list[ToolCall] = []

    def take(found: re.Match[str]) -> str:
        call = _call(found.group(1), tools)
        calls.extend([call] if call else [])
        return "" if call else found.group(0)

    text = _TAGGED.sub(take, reply)
    return (text.strip(), calls) if calls else (reply, [])


def _call(text: str, tools: Collection[str]) -> ToolCall | None:
    try:
        said: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.get("name") not in tools:
        return None
    arguments = said.get("arguments", said.get("parameters", {}))
    return ToolCall(said["name"], arguments if isinstance(arguments, str) else json.dumps(arguments))
