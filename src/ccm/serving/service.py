"""What both APIs do: go on from a memory, take in what came, reply, and keep the turn."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from ccm.chat.conversation import Conversation
from ccm.core.errors import CCMError
from ccm.engine.memory import Memory
from ccm.engine.sampling import Sampling
from ccm.serving.backend import Backend
from ccm.serving.calls import Call, calls_in
from ccm.serving.errors import RequestError
from ccm.serving.items import Exchange, Said
from ccm.serving.packing import pack
from ccm.serving.sealing import Seal
from ccm.serving.store import Store, Turn


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, and what its memory holds.

    Attributes:
        asked: tokens of the whole text before the reply, head included.
        cached: those of them that were in memory already.
        replied: tokens of the reply.
        entries: entries of the memory after it.
        nbytes: their size.
        full_nbytes: size that full context would have.
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


class Talk:
    """A conversation that a request goes on with.

    Args:
        conversation: after the memory that the request names.
        before: the part of the store that holds this memory; None where it is none of the store.

    Attributes:
        before: this part.
        begun: the memory that it began with.
        reply: what the model wrote, whole.
        text: of it, without calls.
        calls: of tools.
        ended: whether the reply ended by itself, not at the largest number of tokens.
        heard: the memory after each exchange of the past.
    """

    def __init__(self, conversation: Conversation, before: int | None) -> None:
        self._conversation, self.before, self.begun = conversation, before, conversation.memory
        self.reply, self.text, self.calls, self.ended = "", "", list[Call](), True
        self.heard: list[Memory] = []
        self._cached, self._prompt = conversation.memory.tokens[0], 0

    def hear(self, exchanges: Sequence[Exchange]) -> None:
        """Take exchanges of the past in."""
        for said, reply in exchanges:
            self._conversation.hear(said, reply)
            self.heard.append(self._conversation.memory)

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
        if not tools:
            self.text = last.reply
        elif self.text:
            yield self.text

    @property
    def usage(self) -> Usage:
        """After the reply, or without one."""
        last, past = self._conversation.last, self._conversation.past
        head, replied = len(self._conversation.memory.heads[0]), last.reply_tokens if last else 0
        return Usage(
            asked=head + past.tokens - replied,
            cached=self._cached + (head if self._cached else 0),
            replied=replied,
            entries=past.entries,
            nbytes=past.nbytes,
            full_nbytes=(head + past.tokens) * past.entry_nbytes,
        )

    @property
    def read(self) -> list[list[int]]:
        """Token ids of the steps that the request brought."""
        return self._conversation.read

    @property
    def memory(self) -> Memory:
        """The memory now."""
        return self._conversation.memory


def _begins(memory: Memory, earlier: Memory) -> bool:
    """Whether a memory is another one with further columns."""
    pairs = zip((*memory.keys, *memory.values), (*earlier.keys, *earlier.values), strict=True)
    return memory.width >= earlier.width and all(torch.equal(x[:, :, : earlier.width], y) for x, y in pairs)


@dataclass(frozen=True)
class Service:
    """The model, what is kept, and the seal of what clients keep."""

    backend: Backend
    store: Store
    seal: Seal
    keep_text: bool = True
    started: float = field(default_factory=time.time)

    def begin(
        self,
        owner: bytes,
        said: Said,
        previous: Turn | None,
        *,
        system: str,
        tools: Sequence[Mapping[str, Any]],
        sampling: Sampling,
        endless: bool,
    ) -> Talk:
        """A conversation after the turn before, or the compaction item, with the exchanges that came.

        Raises:
            RequestError: when what came cannot be taken.
        """
        with refusing():
            memory, before = None, None
            if said.compaction is not None:
                memory = self.backend.unpack([self.seal.open(said.compaction, owner)])
            elif previous is not None:
                memory, before = self.backend.unpack(self.store.parts(previous.part)), previous.part
            begun = self.backend.begin(memory, system=system, tools=tools, sampling=sampling, endless=endless)
            talk = Talk(begun, before)
            talk.hear(said.exchanges)
        return talk

    def keep(self, owner: bytes, talk: Talk, turns: Sequence[Turn]) -> None:
        """Keep turns and their memories, before the client hears that it is done.

        Args:
            owner: whose they are.
            talk: what they are of.
            turns: the last is that of the reply, those before it are of the exchanges that were heard last.

        Raises:
            RequestError: 507 where the store cannot be written.
        """
        before, begun = talk.before, talk.begun
        memories = [*talk.heard, talk.memory]
        try:
            for turn, memory in zip(turns, memories[-len(turns) :], strict=True):
                follows = self.backend.adds and before is not None and _begins(memory, begun)
                try:
                    if follows:
                        part = self.store.add(owner, turn, pack(memory, begun.width), before)
                    else:
                        part = self.store.add(owner, turn, pack(memory), None)
                except sqlite3.IntegrityError:  # what it follows was deleted meanwhile
                    part = self.store.add(owner, turn, pack(memory), None)
                before, begun = part, memory
        except sqlite3.Error as error:
            raise RequestError(f"The turn cannot be kept: {error}.", status=507, code="storage_full") from error


@contextmanager
def refusing() -> Iterator[None]:
    """Turn an error of the library into one of the request."""
    try:
        yield
    except RequestError:
        raise
    except CCMError as error:
        raise RequestError(str(error)) from error
