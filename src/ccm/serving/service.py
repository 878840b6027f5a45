"""What both APIs do: go on from a memory, take in what came, reply, and keep the turn."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ccm.chat.conversation import Conversation
from ccm.chat.exchanges import Exchange
from ccm.core.errors import CCMError, MemoryFileError, PositionError
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.backend import Backend
from ccm.serving.calls import ToolCall, calls_in
from ccm.serving.errors import RequestError
from ccm.serving.kept import ChangedError, KeptTurn
from ccm.serving.logs import log_event
from ccm.serving.memories import Heard, KeptMemory, Memories
from ccm.serving.packing import Packed
from ccm.serving.prefixes import Prefix
from ccm.serving.requests import ChatCompletion, CreateResponse
from ccm.serving.sealing import Seal
from ccm.serving.store import QuotaError, Store
from ccm.serving.tables import StoreError
from ccm.serving.transcripts import Passage, Transcript

LONGEST = 512  # tokens of a reply, unless a request says otherwise


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, and what its memory holds.

    Attributes:
        asked: tokens of the whole text before the reply, head included.
        cached: those of them that were in memory already.
        replied: tokens of the reply.
        entries: entries of the memory after it, without the head, which is raw and kept once for all.
        nbytes: their size.
        full_nbytes: size that full context would have, without the head.
    """

    asked: int
    cached: int
    replied: int
    entries: int
    nbytes: int
    full_nbytes: int

    @property
    def memory(self) -> dict[str, int]:
        """What clients read under our own name."""
        return {"entries": self.entries, "bytes": self.nbytes, "full_context_bytes": self.full_nbytes}


class ServedConversation:
    """A conversation that a request goes on with.

    Args:
        conversation: after the memory that the request names.
        after: this memory as it is kept; None where the request brought it, or there is none.
        cached: tokens that were in memory already, of the head, too.

    Attributes:
        after: this memory.
        complete: whether all that was before is kept.
        reply: what the model wrote, whole.
        text: of it, without calls.
        calls: of tools.
        ended: whether the reply ended by itself, not at the largest number of tokens.
        heard: the memory after each exchange of the past that is kept by itself.
    """

    def __init__(self, backend: Backend, conversation: Conversation, after: KeptMemory | None, cached: int) -> None:
        self._backend, self._conversation, self.after = backend, conversation, after
        self.complete = after is not None or not conversation.memory.begun[0]
        self.reply, self.text, self.calls, self.ended = "", "", list[ToolCall](), True
        self.heard, self._last = list[Packed](), after.memory if after else None
        self._exchanges: list[Exchange] = []
        self._cached = cached

    def hear(self, exchanges: Sequence[Exchange], *, each: bool) -> None:
        """Take exchanges of the past in; ``each``: the memory after each of them is to be kept."""
        for said, reply in exchanges:
            with refusing():
                self._conversation.hear(said, reply)
            self._exchanges.append((said, reply))
            if each:
                self.heard.append(self.packed)
                self._last = self.memory

    def say(
        self, asked: Sequence[Mapping[str, Any]], tools: Collection[str] = (), *, required: bool = False
    ) -> Iterator[str]:
        """The pieces of the reply's text; once they have ended, the memory holds it.

        Where tools of those names may be called, the text comes in one piece, without calls, once the reply is whole.

        Raises:
            RequestError: when a call is ``required``, and the model wrote none.
        """
        pieces = self._conversation.say(asked)
        if tools:
            self.text, self.calls = calls_in("".join(pieces), tools)
            if required and not self.calls:
                raise RequestError(
                    "tool_choice is required, and the model wrote no call; ask again, or take auto.",
                    status=422,
                    code="no_tool_call",
                    param="tool_choice",
                )
        else:
            yield from pieces
        last = self._conversation.last
        assert last is not None
        self.reply, self.ended = last.reply, last.ended
        self._exchanges.append(([dict(message) for message in asked], last.reply))
        if not tools:
            self.text = last.reply
        elif self.text:
            yield self.text

    @property
    def usage(self) -> Usage:
        """After the reply, or without one."""
        last, past = self._conversation.last, self._conversation.past
        head, prompt = len(self._conversation.memory.heads[0]), last.prompt_tokens if last else 0
        return Usage(
            asked=head + past.tokens - (last.step_tokens if last else 0) + prompt,
            cached=self._cached,
            replied=last.reply_tokens if last else 0,
            entries=past.entries,
            nbytes=past.nbytes,
            full_nbytes=past.tokens * past.entry_nbytes,
        )

    @property
    def passages(self) -> list[Passage]:
        """The exchanges that the request brought, the last with the reply."""
        steps = zip(self._exchanges, self._conversation.read, self._conversation.rooms, strict=True)
        return [Passage(said, reply, ids, room) for (said, reply), ids, room in steps]

    def transcript(self, passages: Sequence[Passage]) -> Transcript:
        """Exchanges of the conversation, under its system message and tools."""
        turns = self._conversation.turns
        return Transcript(turns.system, turns.tools, passages)

    @property
    def memory(self) -> Memory:
        """The memory now."""
        return self._conversation.memory

    @property
    def packed(self) -> Packed:
        """The memory now, as it is kept after the last that was."""
        return self._backend.pack(self.memory, self._last)


@dataclass(frozen=True)
class Service:
    """The model, what is kept, and the seal of what clients keep.

    Attributes:
        backend: the model.
        store: what is kept.
        seal: of compaction items.
        keep_text: whether texts are kept beside memories.
        most_steps: of a conversation.
        room: bytes of the memories that are at hand without the store.
        started: Unix time.
    """

    backend: Backend
    store: Store
    seal: Seal
    keep_text: bool = True
    most_steps: int = 10_000
    room: int = 0
    started: float = field(default_factory=time.time)

    @cached_property
    def memories(self) -> Memories:
        """The memories of the turns that are kept."""
        return Memories(self.backend, self.store, self.room)

    def check_model(self, name: str) -> None:
        """Refuse another model than that of the server.

        Raises:
            RequestError: naming both.
        """
        if name != self.backend.name:
            raise RequestError(
                f"There is no model {name!r} here; this server has {self.backend.name!r}.",
                status=404,
                code="model_not_found",
                param="model",
            )

    @staticmethod
    def sampling(body: CreateResponse | ChatCompletion, most: int | None, **more: Any) -> Sampling:
        """How the tokens of a reply to a request are chosen: greedily, and :data:`LONGEST` at most, unless it says.

        Raises:
            RequestError: when a value is not allowed.
        """
        with refusing():
            top_p = 1.0 if body.top_p is None else body.top_p
            return Sampling(body.temperature or 0.0, top_p=top_p, max_new_tokens=most or LONGEST, **more)

    def begin(
        self,
        owner: bytes,
        sealed: bytes | None,
        previous: KeptTurn | None,
        *,
        system: str,
        tools: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        endless: bool,
        heard: int,
    ) -> ServedConversation:
        """A conversation after the turn before, or after the memory of a compaction item.

        Args:
            owner: who asks.
            sealed: the memory of a compaction item.
            previous: the turn before.
            system: the system message.
            tools: definitions of tools.
            sampling: how the reply is chosen.
            endless: whether the oldest steps make way where the model's positions end.
            heard: how many exchanges of the past the request brings.

        Raises:
            RequestError: when what came cannot be taken.
        """
        with refusing():
            memory = after = None
            if sealed is not None:
                memory = self.backend.unpack([sealed])
            elif previous is not None:
                after = self.memories.get(owner, previous.id)
                memory = after.memory
            begun = self.backend.begin(memory, system=system, tools=tools, sampling=sampling, endless=endless)
        steps = len(begun.memory.steps[0]) + heard + 1
        if steps > self.most_steps:
            raise RequestError(
                f"This conversation would have {steps} steps, and this server takes {self.most_steps}. Begin anew.",
                code="conversation_too_long",
            )
        if memory is None:
            return ServedConversation(self.backend, begun, None, 0)
        head = len(memory.heads[0]) if memory.heads[0].ids == begun.memory.heads[0].ids else 0
        return ServedConversation(self.backend, begun, after, memory.tokens[0] + head)

    def keep(self, owner: bytes, talk: ServedConversation, turn: KeptTurn, prefix: Prefix | None) -> None:
        """Keep a turn and its memory, before the client hears that it is done.

        Args:
            owner: whose they are.
            talk: what they are of.
            turn: that of the reply.
            prefix: of a conversation that came whole, with the reply: then a turn is kept of each exchange that was
                heard, too, so that it is found by the exchanges up to it.

        Raises:
            StoreError: where the store cannot be written.
            RequestError: 507 where the quota is too small, 409 where the turn before was changed or deleted.
        """
        passages, known = talk.passages, self.keep_text and talk.complete
        steps = [(turn, talk.packed, passages)]
        if prefix is not None:
            *earlier, last = prefix.digests[prefix.known + 1 :]
            before, heard = prefix.turn.id if prefix.turn else None, []
            for digest, packed, passage in zip(earlier, talk.heard, passages[:-1], strict=True):
                asked = [*passage.said] if self.keep_text else []
                one = KeptTurn(new_id("heard"), before, {}, asked, "", turn.created, digest)
                heard.append((one, packed, [passage]))
                before = one.id
            steps = [*heard, (replace(turn, previous=before, chain=last), talk.packed, passages[-1:])]
        kept = [Heard(one, packed, talk.transcript(group) if known else None) for one, packed, group in steps]
        try:
            gone = self.memories.add(owner, kept, talk.after, talk.memory)
        except QuotaError as error:
            raise RequestError(f"The turn cannot be kept: {error}", status=507, code="storage_full") from error
        except ChangedError as error:
            raise RequestError(str(error), status=409, code="conversation_changed") from error
        if gone:
            told = "The quota of a key is used up: turns that it used longest ago are deleted"
            log_event("quota", told, key=owner.hex()[:8], deleted=gone)


def new_id(kind: str) -> str:
    """An id that nobody guesses: 128 random bits."""
    return f"{kind}_{secrets.token_hex(16)}"


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error of the library into one of the request."""
    try:
        yield
    except (RequestError, MemoryFileError, StoreError):  # what is kept is the server's own
        raise
    except ChangedError as error:
        raise RequestError(str(error), status=409, code="conversation_changed") from error
    except PositionError as error:
        raise RequestError(
            "This conversation has more text than the model has positions for. Send less at a time, begin anew, or ask "
            "/v1/responses with truncation: auto, under which the oldest turns make way.",
            code="context_length_exceeded",
        ) from error
    except CCMError as error:
        raise RequestError(str(error)) from error
