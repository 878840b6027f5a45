"""Items of Open Responses, and messages of Chat Completions, as the exchanges of a memory.

items      user, function_call, function_call_output, assistant, user        as clients send them
messages   user, tool call, tool result, assistant, user                     as :mod:`ccm.chat.exchanges` takes them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from ccm.chat.exchanges import Exchanges
from ccm.chat.turns import Message
from ccm.core.errors import InputError
from ccm.serving.errors import RequestError, unsupported

_ROLES = {"developer": "system"}


@dataclass
class Incoming(Exchanges):
    """What came with a request, in order.

    Attributes:
        compaction: the sealed memory that stands before all else; None where there is none.
        place: the field of the request.
    """

    compaction: str | None = None
    place: str = "input"

    def add(self, message: Message) -> None:
        try:
            super().add(message)
        except InputError as error:
            raise RequestError(str(error), param=self.place) from error

    def check_asked(self) -> None:
        try:
            super().check_asked()
        except InputError as error:
            raise RequestError(str(error), param=self.place) from error


def read_items(given: str | Sequence[Any] | None) -> Incoming:
    """What the input of a request says, as ``model_dump`` gives its items.

    Raises:
        RequestError: when an item is out of place, or holds more than text.
    """
    said = Incoming()
    if isinstance(given, str):
        said.add({"role": "user", "content": given})
        return said
    for number, item in enumerate(given or ()):
        where = f"input[{number}]"
        kind = item["type"]
        if kind == "compaction":
            if said.compaction is not None or said.exchanges or said.asked:
                raise RequestError(
                    "A compaction item stands after others; it holds all that was before it, so send it first, and one "
                    "only.",
                    param=where,
                )
            said.compaction = item["encrypted_content"]
        elif kind == "message":
            role = _ROLES.get(item["role"], item["role"])
            said.add({"role": role, "content": _text(item["content"], where)})
        elif kind == "function_call":
            _add_call(said, item, where)
        else:  # what a function gave
            said.add({"role": "tool", "content": _text(item["output"], where), "tool_call_id": item["call_id"]})
    return said


def read_messages(messages: Iterable[dict[str, Any]]) -> Incoming:
    """What the messages of a chat completion say.

    Raises:
        RequestError: as :func:`read_items`.
    """
    said = Incoming(place="messages")
    for number, message in enumerate(messages):
        where, role = f"messages[{number}]", message["role"]
        text = _text(message.get("content") or "", where)
        if role == "assistant" and message.get("tool_calls"):
            for call in message["tool_calls"]:
                _add_call(said, {**call["function"], "call_id": call["id"]}, where)
            said.asked[-1] = {**said.asked[-1], "content": text}
            continue
        if message.get("tool_calls") or (role == "tool") != ("tool_call_id" in message):
            raise RequestError("tool_calls are of the assistant, a tool_call_id is of a tool's message.", param=where)
        beside = {"tool_call_id": message["tool_call_id"]} if role == "tool" else {}
        said.add({"role": _ROLES.get(role, role), "content": text, **beside})
    return said


def _add_call(said: Incoming, call: dict[str, Any], where: str) -> None:
    """Take a call of a tool; several in a row are one message of the assistant."""
    try:
        arguments = from_json(call["arguments"] or "{}", allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"The arguments of the call of {call['name']} are no JSON: {error}.", param=where) from error
    function = {"type": "function", "id": call["call_id"], "function": {"name": call["name"], "arguments": arguments}}
    last = said.asked[-1] if said.asked else None
    if last is not None and last["role"] == "assistant":
        said.asked[-1] = {**last, "tool_calls": [*last["tool_calls"], function]}
    else:
        said.add({"role": "assistant", "content": "", "tool_calls": [function]})


def _text(content: str | Sequence[dict[str, Any]], where: str) -> str:
    """The text of a message, whose parts follow one another."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind = part.get("type")
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise unsupported(f"{where} with a part of the type {kind}", "send text", where)
        texts.append(part["refusal"] if kind == "refusal" else part["text"])
    return "".join(texts)
