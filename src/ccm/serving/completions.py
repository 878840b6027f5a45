"""``/v1/chat/completions``: stateless for clients. Of the messages that come, the longest beginning that is in memory
already is found, and only what follows it is read."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterable, Iterator
from itertools import chain
from typing import Any

from ccm.serving.items import read_messages
from ccm.serving.kept import KeptTurn
from ccm.serving.prefixes import Prefix
from ccm.serving.requests import ChatCompletion
from ccm.serving.responses import MEMORY
from ccm.serving.service import ServedConversation, Service, new_id, refusing

Chunk = dict[str, Any]


class Completions:
    """The operation of the API."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def create(self, owner: bytes, body: ChatCompletion) -> Generator[Chunk, None, None]:
        """The chunks of a completion; the last one is the whole, as a client gets it that does not stream.

        Raises:
            RequestError: before the first chunk, when the request cannot be answered.
        """
        self._service.check_model(body.model)
        body.check()
        said = read_messages(message.model_dump(exclude_none=True) for message in body.messages)
        said.check_asked()
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        most = body.max_completion_tokens or body.max_tokens
        sampling = self._service.sampling(body, most, seed=body.seed, stops=stops)
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or () if body.tool_choice != "none"]
        system = "\n\n".join(said.system)
        prefix = Prefix.find(self._service.store, owner, system, tools, said.exchanges)
        asked, heard = said.asked, said.exchanges[prefix.known :]
        talk = self._service.begin(
            owner, None, prefix.turn, system=system, tools=tools, sampling=sampling, endless=True, heard=len(heard)
        )
        talk.hear(heard, each=True)
        with refusing():
            names = [tool["function"]["name"] for tool in tools]
            pieces = talk.say(asked, names, required=body.tool_choice == "required")
            first = next(pieces, "")
        for chunk in self._chunks(body, talk, chain([first] if first else [], pieces)):
            if chunk.get("object") == "chat.completion":  # the whole, before the client hears that it is done
                prefix.add((asked, talk.reply))
                keeps = self._service.keep_text
                turn = KeptTurn(chunk["id"], None, chunk if keeps else {}, asked if keeps else [], "", chunk["created"])
                self._service.keep(owner, talk, turn, prefix)
                yield from self._ending(body, chunk)
            yield chunk

    def _chunks(self, body: ChatCompletion, talk: ServedConversation, pieces: Iterable[str]) -> Iterator[Chunk]:
        """The chunks of the reply as it comes, then the whole."""
        about = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": self._service.backend.name}
        chunk = {**about, "object": "chat.completion.chunk"}
        yield {**chunk, "choices": [_delta({"role": "assistant", "content": ""})]}
        for piece in pieces:
            yield {**chunk, "choices": [_delta({"content": piece})]}
        message: dict[str, Any] = {"role": "assistant", "content": talk.text, "refusal": None}
        if talk.calls:
            calls = [
                {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in talk.calls
            ]
            message |= {"content": talk.text or None, "tool_calls": calls}
            yield {**chunk, "choices": [_delta({"tool_calls": [{"index": i, **one} for i, one in enumerate(calls)]})]}
        finish = "tool_calls" if talk.calls else "stop" if talk.ended else "length"
        usage = {
            "prompt_tokens": talk.usage.asked,
            "completion_tokens": talk.usage.replied,
            "total_tokens": talk.usage.asked + talk.usage.replied,
            "prompt_tokens_details": {"cached_tokens": talk.usage.cached},
        }
        choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
        whole = {"object": "chat.completion", "choices": [choice], "usage": usage, MEMORY: talk.usage.memory}
        yield {**about, **whole}

    @staticmethod
    def _ending(body: ChatCompletion, whole: Chunk) -> Iterator[Chunk]:
        """The last chunks of a stream."""
        chunk = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        yield {**chunk, "choices": [_delta({}, whole["choices"][0]["finish_reason"])]}
        if body.stream_options and body.stream_options.include_usage:
            yield {**chunk, "choices": [], "usage": whole["usage"], MEMORY: whole[MEMORY]}


def as_chunk(chunk: Chunk) -> str:
    """A chunk as a line of a stream; nothing for the whole, which no stream has."""
    return "" if chunk.get("object") == "chat.completion" else f"data: {json.dumps(chunk)}\n\n"


def _delta(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
