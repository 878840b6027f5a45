"""``/v1/chat/completions``: stateless for clients. Of the messages that come, the longest beginning that is in memory
already is found by digests of its exchanges, and only what follows it is read."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from ccm.engine.sampling import Sampling
from ccm.serving.errors import RequestError
from ccm.serving.items import Exchange, read_messages
from ccm.serving.requests import ChatCompletion
from ccm.serving.responses import LONGEST, MEMORY, new_id
from ccm.serving.service import Service, Talk, refusing
from ccm.serving.store import Turn


class Completions:
    """The operation of the API."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def create(self, owner: bytes, body: ChatCompletion) -> Iterator[dict[str, Any]]:
        """The chunks of a completion; the last one is the whole, as a client gets it that does not stream.

        Raises:
            RequestError: before the first chunk, when the request cannot be answered.
        """
        if body.model != (name := self._service.backend.name):
            raise RequestError(
                f"There is no model {body.model!r} here; this server has {name!r}.",
                status=404,
                code="model_not_found",
                param="model",
            )
        said = read_messages(
            message.model_dump(exclude_none=True) | {"content": message.content or ""} for message in body.messages
        )
        said.check_asked()
        stops = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        most = body.max_completion_tokens or body.max_tokens or LONGEST
        with refusing():
            sampling = Sampling(
                temperature=body.temperature or 0.0,
                top_p=1.0 if body.top_p is None else body.top_p,
                max_new_tokens=most,
                seed=body.seed,
                stops=stops,
            )
        tools = [tool.model_dump(exclude_none=True) for tool in body.tools or () if body.tool_choice != "none"]
        system = "\n\n".join(said.system)
        chains = chain_digests(owner, json.dumps([system, tools], sort_keys=True), said.exchanges)
        found = self._service.store.find(owner, chains)
        known = 0 if found is None or found.chain is None else chains.index(found.chain) + 1
        said.exchanges = said.exchanges[known:]
        talk = self._service.begin(owner, said, found, system=system, tools=tools, sampling=sampling, endless=True)
        with refusing():
            pieces = talk.say(
                said.asked, [tool["function"]["name"] for tool in tools], required=body.tool_choice == "required"
            )
            first = next(pieces, "")
        beginning = chains[-1] if chains else _start(owner, json.dumps([system, tools], sort_keys=True))
        yield from self._chunks(owner, body, talk, [said.asked, beginning, found], first, pieces)

    def _chunks(
        self, owner: bytes, body: ChatCompletion, talk: Talk, begun: list[Any], first: str, pieces: Iterator[str]
    ) -> Iterator[dict[str, Any]]:
        asked, beginning, found = begun
        name, created = new_id("chatcmpl"), int(time.time())
        about = {"id": name, "created": created, "model": self._service.backend.name}
        chunk = {**about, "object": "chat.completion.chunk"}
        yield {**chunk, "choices": [_delta({"role": "assistant", "content": ""})]}
        for piece in chain([first] if first else [], pieces):
            yield {**chunk, "choices": [_delta({"content": piece})]}
        calls = [
            {"id": new_id("call"), "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in talk.calls
        ]
        if calls:
            yield {**chunk, "choices": [_delta({"tool_calls": [{"index": i, **one} for i, one in enumerate(calls)]})]}
        finish = "tool_calls" if calls else "stop" if talk.ended else "length"
        usage = {
            "prompt_tokens": talk.usage.asked,
            "completion_tokens": talk.usage.replied,
            "total_tokens": talk.usage.asked + talk.usage.replied,
            "prompt_tokens_details": {"cached_tokens": talk.usage.cached},
        }
        message: dict[str, Any] = {"role": "assistant", "content": talk.text, "refusal": None}
        if calls:
            message |= {"content": talk.text or None, "tool_calls": calls}
        whole = {
            **about,
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": None}],
            "usage": usage,
            MEMORY: talk.usage.memory,
        }
        digest = _next(beginning, (asked, talk.reply))
        keeps = self._service.keep_text
        turn = Turn(
            id=name,
            previous=found.id if found else None,
            answer=whole if keeps else {},
            asked=asked if keeps else [],
            system="",
            part=0,
            created=created,
            read=talk.read if keeps else [],
            chain=digest,
        )
        self._service.keep(owner, talk, turn)
        yield {**chunk, "choices": [_delta({}, finish)]}
        if body.stream_options and body.stream_options.include_usage:
            yield {**chunk, "choices": [], "usage": usage, MEMORY: talk.usage.memory}
        yield whole


def _delta(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}


def chain_digests(owner: bytes, head: str, exchanges: Sequence[Exchange]) -> list[bytes]:
    """For each exchange, a digest of it and all before it, under a head; salted by the owner."""
    found, last = [], _start(owner, head)
    for exchange in exchanges:
        found.append(last := _next(last, exchange))
    return found


def _start(owner: bytes, head: str) -> bytes:
    return hmac.digest(owner, head.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _next(last: bytes, exchange: Exchange) -> bytes:
    said, reply = exchange
    canonical = json.dumps([[*said], reply.strip()], sort_keys=True).encode()
    return hmac.digest(last, canonical, hashlib.sha256)
