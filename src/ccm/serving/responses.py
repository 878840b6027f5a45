"""``/v1/responses``: Open Responses, version 2026-04-24. An id names a memory; a client sends only what is new."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from ccm.engine.sampling import Sampling
from ccm.serving.calls import ToolCall
from ccm.serving.errors import RequestError
from ccm.serving.items import Incoming, read_items
from ccm.serving.kept import KeptTurn
from ccm.serving.packing import pack
from ccm.serving.prefixes import Prefix
from ccm.serving.requests import Compact, CreateResponse
from ccm.serving.service import ServedConversation, Service, Usage, new_id, refusing

Event = dict[str, Any]
MEMORY = "ccm:memory"  # our own field
KIND = "resp"  # how the ids of responses begin


class Responses:
    """The operations of the API; each runs in a thread, one after the other where it needs the model."""

    def __init__(self, service: Service) -> None:
        self._service, self._store = service, service.store

    def create(self, owner: bytes, body: CreateResponse) -> Generator[Event, None, None]:
        """The events of a response; the last one holds all of it.

        Raises:
            RequestError: before the first event, when the request cannot be answered.
        """
        body.check()
        said, sealed, previous = self._read(owner, body)
        said.check_asked()
        system = _joined(body.instructions or "", *said.system)
        tools = [] if body.tool_choice == "none" else body.tools or []
        definitions, heard, prefix = [tool.definition for tool in tools], said.exchanges, None
        if previous is None and sealed is None:  # a client that sends all of the conversation
            prefix = Prefix.find(self._store, owner, system, definitions, heard)
            previous, heard = prefix.turn, heard[prefix.known :]
        talk = self._service.begin(
            owner,
            sealed,
            previous,
            system=system,
            tools=definitions,
            sampling=self._service.sampling(body, body.max_output_tokens),
            endless=body.truncation == "auto",
            heard=len(heard),
        )
        talk.hear(heard, each=prefix is not None and body.store is not False)
        with refusing():
            pieces = talk.say(said.asked, [tool.name for tool in tools], required=body.tool_choice == "required")
            first = next(pieces, "")  # what cannot be read is refused before the first event
        keep = partial(self._keep, owner, body, talk, said, previous, prefix)
        yield from _numbered(self._events(owner, body, talk, said, keep, chain([first] if first else [], pieces)))

    def _events(
        self,
        owner: bytes,
        body: CreateResponse,
        talk: ServedConversation,
        said: Incoming,
        keep: Callable[[dict[str, Any]], None],
        pieces: Iterator[str],
    ) -> Iterator[Event]:
        """The events of a reply; the response is kept before the client hears that it is done."""
        answer = self._opening(body)
        yield {"type": "response.created", "response": {**answer}}
        yield {"type": "response.in_progress", "response": {**answer}}
        first = next(pieces, "")
        output = [_message()] if first or not talk.calls else []
        if output:
            yield from _text_events(output[0], chain([first] if first else [], pieces))
        output += map(_function_call, talk.calls)
        status = "completed" if talk.ended else "incomplete"
        for item in output:
            item["status"] = "completed"
        output[-1]["status"] = status
        if body.context_management and talk.usage.asked >= body.context_management[0].compact_threshold:
            output.append(self._compaction(owner, talk, said))
        answer |= {
            "status": status,
            "completed_at": int(time.time()),
            "output": output,
            "usage": _usage(talk.usage),
            MEMORY: talk.usage.memory,
            "incomplete_details": None if talk.ended else {"reason": "max_output_tokens"},
        }
        if answer["store"]:
            keep(answer)
        for index, item in enumerate(output):
            yield from _closing_events(index, item)
        yield {"type": f"response.{status}", "response": answer}

    def compact(self, owner: bytes, body: Compact) -> dict[str, Any]:
        """A memory of what came, as one item that the client keeps.

        Raises:
            RequestError: when what came cannot be taken, or the item would be too large.
        """
        said, sealed, previous = self._read(owner, body)
        if not (said.asked or said.exchanges or sealed or previous):
            raise RequestError("There is nothing to compact; give input, or previous_response_id.", param="input")
        if said.asked:
            said.exchanges.append((said.asked, ""))
        system = _joined(body.instructions or "", *said.system)
        talk = self._service.begin(
            owner,
            sealed,
            previous,
            system=system,
            tools=[],
            sampling=Sampling(),
            endless=True,
            heard=len(said.exchanges),
        )
        talk.hear(said.exchanges, each=False)
        return {
            "id": new_id(KIND),
            "object": "response.compaction",
            "created_at": int(time.time()),
            "output": [self._compaction(owner, talk, said)],
            "usage": _usage(talk.usage),
            MEMORY: talk.usage.memory,
        }

    def retrieve(self, owner: bytes, name: str) -> dict[str, Any]:
        """A response that was kept.

        Raises:
            RequestError: when there is none of that id.
        """
        return self._with_text(owner, name).answer

    def input_items(self, owner: bytes, name: str) -> list[Any]:
        """The items that came with a response that was kept.

        Raises:
            RequestError: when there is none of that id.
        """
        return self._with_text(owner, name).asked

    def _with_text(self, owner: bytes, name: str) -> KeptTurn:
        turn = self._kept(owner, name)
        if not turn.answer:
            raise RequestError(
                "This server keeps memories and no text: a response can be gone on from, and not be retrieved.",
                status=404,
                code="text_not_kept",
            )
        return turn

    def delete(self, owner: bytes, name: str, *, cascade: bool) -> dict[str, Any]:
        """Delete a response with its memory, and with ``cascade`` all that follow it."""
        self._kept(owner, name)
        with refusing():
            gone, left = self._service.memories.delete(owner, name, cascade=cascade)
        return {
            "id": name,
            "object": "response",
            "deleted": True,
            "ccm:deleted": gone,
            "ccm:still_held_by": len(left),  # later responses, whose memories hold what this one said
        }

    def _read(self, owner: bytes, body: CreateResponse | Compact) -> tuple[Incoming, bytes | None, KeptTurn | None]:
        """What came, the memory of a compaction item, and the turn before; system messages of before are among it."""
        self._service.check_model(body.model)
        given = body.model_dump(mode="json", exclude_none=True).get("input")
        said, sealed, previous = read_items(given), None, None
        if body.previous_response_id is not None:
            if said.compaction is not None:
                raise RequestError("A compaction item holds all that was before; leave previous_response_id out.")
            previous = self._kept(owner, body.previous_response_id, code="previous_response_not_found")
            said.system.insert(0, previous.system)
        if said.compaction is not None:
            system, sealed = self._service.seal.unseal(said.compaction, owner)
            said.system.insert(0, system)
        return said, sealed, previous

    def _kept(self, owner: bytes, name: str, code: str = "not_found") -> KeptTurn:
        turn = self._store.get(owner, name)
        if turn is None or not name.startswith(KIND):  # chat completions have no ids to go on from
            raise RequestError(
                f"There is no response {name!r}: it was never kept, was deleted, or has expired.",
                status=404,
                code=code,
                param="previous_response_id" if code != "not_found" else None,
            )
        return turn

    def _keep(
        self,
        owner: bytes,
        body: CreateResponse,
        talk: ServedConversation,
        said: Incoming,
        previous: KeptTurn | None,
        prefix: Prefix | None,
        answer: dict[str, Any],
    ) -> None:
        """Keep a response; it is found by its exchanges, too, where all of them came with it."""
        keeps = self._service.keep_text
        if prefix is not None:
            prefix.add((said.asked, talk.reply))
        turn = KeptTurn(
            id=answer["id"],
            previous=previous.id if previous else None,
            answer=answer if keeps else {},
            asked=_input_items(body) if keeps else [],
            system=_joined(*said.system),
            created=answer["created_at"],
        )
        self._service.keep(owner, talk, turn, prefix)

    def _compaction(self, owner: bytes, talk: ServedConversation, said: Incoming) -> dict[str, Any]:
        sealed = self._service.seal.seal(pack(talk.memory), owner, _joined(*said.system))
        return {"type": "compaction", "id": new_id("cmp"), "encrypted_content": sealed}

    def _opening(self, body: CreateResponse) -> dict[str, Any]:
        """A response before anything of it is there."""
        return {
            "id": new_id(KIND),
            "object": "response",
            "created_at": int(time.time()),
            "completed_at": None,
            "status": "in_progress",
            "incomplete_details": None,
            "model": self._service.backend.name,
            "previous_response_id": body.previous_response_id,
            "instructions": body.instructions,
            "output": [],
            "error": None,
            "tools": [
                {"description": None, "parameters": None, "strict": None} | tool.model_dump(exclude_none=True)
                for tool in body.tools or ()
            ],
            "tool_choice": body.tool_choice or "auto",
            "truncation": body.truncation or "disabled",
            "parallel_tool_calls": True,
            "text": {"format": {"type": "text"}},
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "top_logprobs": 0,
            "temperature": body.temperature or 0.0,
            "reasoning": None,
            "usage": None,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": None,
            "store": body.store is not False,
            "background": False,
            "service_tier": "default",
            "metadata": body.metadata.root if body.metadata else {},
            "safety_identifier": body.safety_identifier.root if body.safety_identifier else None,
            "prompt_cache_key": body.prompt_cache_key.root if body.prompt_cache_key else None,
        }


def _message() -> dict[str, Any]:
    return {"type": "message", "id": new_id("msg"), "status": "in_progress", "role": "assistant", "content": []}


def _function_call(call: ToolCall) -> dict[str, Any]:
    return {
        "type": "function_call",
        "id": new_id("fc"),
        "call_id": new_id("call"),
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def _text_events(message: dict[str, Any], pieces: Iterable[str]) -> Iterator[Event]:
    """A message that begins, and its text, which is filled in as it comes."""
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    yield {"type": "response.output_item.added", "output_index": 0, "item": {**message}}
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    text = ""
    for piece in pieces:
        text += piece
        yield {"type": "response.output_text.delta", **place, "delta": piece, "logprobs": []}
    message["content"] = [_part(text.strip())]


def _closing_events(index: int, item: dict[str, Any]) -> Iterator[Event]:
    """The events that close a finished item. Items other than messages are announced here first."""
    if item["type"] == "message":
        place, part = {"item_id": item["id"], "output_index": index, "content_index": 0}, item["content"][0]
        yield {"type": "response.output_text.done", **place, "text": part["text"], "logprobs": []}
        yield {"type": "response.content_part.done", **place, "part": part}
    else:
        began = {"status": "in_progress", "arguments": ""} if item["type"] == "function_call" else {}
        yield {"type": "response.output_item.added", "output_index": index, "item": {**item, **began}}
    if item["type"] == "function_call":
        place = {"item_id": item["id"], "output_index": index}
        yield {"type": "response.function_call_arguments.delta", **place, "delta": item["arguments"]}
        yield {"type": "response.function_call_arguments.done", **place, "arguments": item["arguments"]}
    yield {"type": "response.output_item.done", "output_index": index, "item": item}


def _joined(*texts: str) -> str:
    """System messages as one."""
    return "\n\n".join(filter(None, texts))


def _numbered(events: Iterator[Event]) -> Iterator[Event]:
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.asked,
        "output_tokens": usage.replied,
        "total_tokens": usage.asked + usage.replied,
        "input_tokens_details": {"cached_tokens": usage.cached},
        "output_tokens_details": {"reasoning_tokens": 0},
    }


def _input_items(body: CreateResponse) -> list[Any]:
    """The items of a request, each with an id, as they are retrieved."""
    given = body.model_dump(mode="json", exclude_none=True).get("input") or []
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    return [_kept_item(item) for item in given]


def _kept_item(item: dict[str, Any]) -> dict[str, Any]:
    content = item.get("content")
    if isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        item = {**item, "content": [{"type": kind, "text": content, **({"annotations": []} if kind[0] == "o" else {})}]}
    return {"status": "completed", **item, "id": item.get("id") or new_id("item")}


def as_event(event: Event) -> str:
    """An event as a line of a stream."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n"
