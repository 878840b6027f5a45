"""A conversation with a model: it streams each reply, then compresses the exchange into the memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from ccm.chat.reply import Reply, end_ids, reply_to
from ccm.chat.turns import Said, make_turns
from ccm.core.config import check_count
from ccm.core.errors import InputError, PositionError, UnsupportedModelError
from ccm.core.processes import get_logger
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.memory import KIND, Memory, MemoryCache
from ccm.engine.sampling import Read, Sampling
from ccm.engine.t5.seq2seq import CCMEncoderDecoder

logger = get_logger(__name__)
UNDO = 32  # exchanges that can be taken back under rules that cannot roll back


@dataclass(frozen=True)
class TurnReport:
    """One exchange in numbers. Bytes count keys and values.

    Attributes:
        reply: the model's text.
        step_tokens: tokens of the exchange that the memory took in.
        memory_entries: entries that the memory now holds.
        memory_bytes: their size.
        full_context_tokens: tokens that full context would hold.
        full_context_bytes: their size.
        recent_tokens: entries of the memory that are recent text and not compressed yet.
        prompt_tokens: tokens of what was said before the reply.
        reply_tokens: tokens of the reply.
        ended: whether the reply ended by itself, not at the largest number of tokens.
    """

    reply: str
    step_tokens: int
    memory_entries: int
    memory_bytes: int
    full_context_tokens: int
    full_context_bytes: int
    recent_tokens: int = 0
    prompt_tokens: int = 0
    reply_tokens: int = 0
    ended: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConversationStats:
    """What a conversation holds of its past, in numbers.

    Attributes:
        steps: how many pieces of text were compressed, or read under rules that compress none.
        tokens: how many tokens were read; full context would hold them all.
        entries: how many entries are held.
        recent: how many of these entries are recent text and not compressed yet.
        nbytes: bytes of the keys and values of all entries.
        entry_nbytes: bytes of one entry.
        window: the largest number of entries; None where there is no limit.
    """

    steps: int
    tokens: int
    entries: int
    recent: int
    nbytes: int
    entry_nbytes: int
    window: int | None = None


class BaseConversation(ABC):
    """What conversations have in common, however they keep their past.

    Args:
        model: the model.
        tokenizer: the tokenizer of its base model.
        sampling: how replies are chosen; greedy where None.
        system: the system message, which stays in view as it is.
        tools: definitions of tools, which stay in view beside the system message.

    Attributes:
        kind: the kind of its saved files (:data:`ccm.core.tensor_files.KINDS`).
        last: the last exchange; None at the beginning and after :meth:`undo`.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        model: CCMModel | CCMEncoderDecoder,
        tokenizer: PreTrainedTokenizerBase,
        sampling: Sampling | None,
        system: str,
        tools: Sequence[Mapping[str, Any]],
    ) -> None:
        self.model, self.tokenizer = as_decoder(model, "a conversation"), tokenizer
        self.turns = make_turns(tokenizer, model.config.turns, system, tools)
        self.sampling = sampling or Sampling()
        self.last: TurnReport | None = None
        self._end_ids = end_ids(model.base, tokenizer)

    @property
    @abstractmethod
    def past(self) -> ConversationStats:
        """What the conversation holds now."""

    @abstractmethod
    def say(self, text: str) -> Generator[str, None, None]:
        """Yield the reply piece by piece. Once it is complete, the conversation remembers the exchange.

        A reply that is interrupted or not consumed to its end leaves the past as it was.

        Raises:
            InputError: at the start, when the text is no string, is empty, or holds half of a surrogate pair; at the
                end, when the past changed while the reply was generated.
        """

    def answer(self, text: str) -> str:
        """Return the whole reply; raises what :meth:`say` raises."""
        for _ in self.say(text):
            pass
        assert self.last is not None
        return self.last.reply

    @abstractmethod
    def compare(self, text: str) -> dict[str, str | None]:
        """Replies to the same text from "memory", from "full" context (None where its text is unknown or too long), and
        from "none". The past stays as it is.
        """

    @abstractmethod
    def undo(self, count: int = 1) -> None:
        """Take the last ``count`` exchanges back.

        Raises:
            InputError: when ``count`` is no whole number, or more than can be taken back; nothing changes then.
        """

    @abstractmethod
    def reset(self) -> None:
        """Begin anew."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Save what the conversation holds.

        Raises:
            MemoryFileError: when the path is a directory, a file of another kind, or cannot be written.
        """

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Go on from a saved conversation. The present one stays where the file cannot be used.

        Raises:
            MemoryFileError: when the file is absent or damaged, or belongs to another kind, model, adapter or rule.
            InputError: when it holds several conversations.
        """

    def _prompt(self, said: Said, *, first: bool) -> list[int]:
        """Token ids of what is said before a reply.

        Raises:
            InputError: when the text is none that :meth:`say` takes, or holds a mark that the model would read as the
                beginning of a turn.
        """
        prompt = self.turns.prompt(said, first=first)
        texts = [said] if isinstance(said, str) else [message["content"] for message in said]
        if mark := next((mark for mark in self.turns.marks if any(mark in text for text in texts)), None):
            raise InputError(f"The turn holds {mark!r}, with which this model's turns begin; leave it out.")
        return prompt

    def _reply(
        self, read: Read, prompt: Sequence[int], number: int, most: int
    ) -> tuple[Reply, Generator[str, None, None]]:
        """A reply of at most ``most`` tokens, and the pieces that fill it; ``number`` varies the sampling."""
        reply = Reply(self.turns, self._end_ids, most, self.sampling.stops)
        chance = self.sampling.generator(number, self.model.device)
        return reply, reply_to(prompt, read, reply, self.sampling, generator=chance)

    def _whole(self, read: Read, prompt: Sequence[int], number: int, most: int) -> str:
        """The text of a whole reply."""
        reply, pieces = self._reply(read, prompt, number, most)
        for _ in pieces:
            pass
        return reply.text

    @staticmethod
    def _check_same(now: object, begun: object) -> None:
        """Raise InputError where the past is no longer the one that the reply began with."""
        if now is not begun:
            raise InputError(
                "The conversation went on, back or elsewhere while this reply was generated; the exchange is not kept. "
                "Finish a reply, or close it, before the next call."
            )

    def _report(self, reply: Reply, step_tokens: int, prompt: Sequence[int]) -> TurnReport:
        past = self.past
        return TurnReport(
            reply=reply.text,
            step_tokens=step_tokens,
            memory_entries=past.entries,
            memory_bytes=past.nbytes,
            full_context_tokens=past.tokens,
            full_context_bytes=past.tokens * past.entry_nbytes,
            recent_tokens=past.recent,
            prompt_tokens=len(prompt),
            reply_tokens=len(reply.ids),
            ended=not reply.cut_off,
        )


class Conversation(BaseConversation):
    """A conversation whose past is a :class:`Memory`.

    Args:
        model: the model.
        tokenizer: the tokenizer of its base model.
        memory: the memory of one conversation, to go on from; an empty one where None.
        sampling: how replies are chosen; greedy where None.
        system: the system message. It stands before all exchanges and is never compressed. A memory keeps its own
            where none is given; another one is put before it by an approximation (:meth:`CCMModel.put_under`).
        tools: definitions of tools, as ``apply_chat_template`` takes them; they stand beside the system message.
        endless: whether the oldest steps make way where the model's positions end; else the next turn is refused.

    Attributes:
        read: token ids of each step that was read here, in order.
        rooms: for how many tokens room was made before each of them; 0 where none was asked for.

    Raises:
        InputError: when the memory holds several conversations.
        ConfigError: when the turn format has no place for a system message or tools.
    """

    kind = KIND

    def __init__(
        self,
        model: CCMModel | CCMEncoderDecoder,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory | None = None,
        sampling: Sampling | None = None,
        *,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
        endless: bool = True,
    ) -> None:
        super().__init__(model, tokenizer, sampling, system, tools)
        self.endless = endless
        self.memory = self._empty() if memory is None else self._placed(memory)
        self.turns.headed = bool(len(self.memory.heads[0]))
        self._earlier: deque[Memory] = deque(maxlen=UNDO)  # where the rule itself cannot roll back
        self.read: list[list[int]] = []
        self.rooms: list[int] = []

    @property
    def past(self) -> ConversationStats:
        memory = self.memory
        return ConversationStats(
            steps=len(memory.steps[0]),
            tokens=memory.tokens[0],
            entries=memory.entries[0],
            recent=0,
            nbytes=memory.nbytes,
            entry_nbytes=memory.entry_nbytes,
        )

    def say(self, said: Said) -> Generator[str, None, None]:
        """As :meth:`BaseConversation.say`; the exchange is compressed into the memory.

        Args:
            said: a text of the user, or all messages since the last reply, as ``apply_chat_template`` takes them.

        Raises:
            InputError: as there, and when the model's positions leave no room for a reply, or the memory is closed.
        """
        self._check_open()
        before, (begun, prompt, room) = self.memory, self.placed_prompt(said)
        first, cache = not begun.begun[0], self.model.close(begun).cache()
        read = self.model.reader(begun, cache)
        reply, pieces = self._reply(read, prompt, begun.tokens[0], self.most(begun, prompt))
        yield from pieces
        self._check_same(self.memory, before)
        step = self.turns.remembered(said, prompt, reply.ids, first=first)
        seen = [*prompt, *reply.said[:-1]]
        self._keep(begun, step, room, cache if step[: len(seen)] == seen else None)
        self.last = self._report(reply, len(step), prompt)

    def hear(self, said: Said, reply: str, ids: Sequence[int] | None = None, room: int | None = None) -> None:
        """Take an exchange of the past into the memory, as of a conversation that was held elsewhere.

        Args:
            said: before the reply, as of :meth:`say`; no message where nobody asked for the reply.
            reply: the text that followed.
            ids: token ids of the step that the exchange once was (:attr:`read`), to make the same step again.
            room: what was made before it (:attr:`rooms`); by the length of the exchange where None.

        Raises:
            InputError: as of :meth:`say`, and when there is neither a message nor a reply.
        """
        self._check_open()
        if not said and not reply.strip():
            raise InputError("There is nothing to hear: give what was said, or the reply to it.")
        begun, _, room = self.placed_prompt(said, len(self.turns.encode_reply(reply)), room)
        step = self.turns.exchange(said, reply, first=not begun.begun[0]).ids if ids is None else ids
        self._keep(begun, [*step], room)
        self.last = None

    def _check_open(self) -> None:
        if self.memory.closed:
            raise InputError("This memory was closed; its context takes no more turns. Load the open memory, or reset.")

    def _keep(self, begun: Memory, step: list[int], room: int, cache: MemoryCache | None = None) -> None:
        """Compress a step after the memory that was begun with; ``cache`` holds what was read of the step."""
        before, ids = self.memory, torch.tensor([step], device=self.model.device)
        with torch.no_grad():
            memory = self.model.compress(begun, ids, cache=cache)
        if begun is not before or not self.model.rule.reversible:
            if self.model.rule.reversible:
                self._earlier.clear()  # a memory that grows is large: the one before steps made way last is kept
            self._earlier.append(before)
        self.read.append(step)
        self.rooms.append(room)
        self.memory = memory

    def undo(self, count: int = 1) -> None:
        made = len(self.memory.steps[0])
        if not 1 <= check_count(count, "count") <= made:
            have = f"there are {made}; allowed are 1 to {made}" if made else "there is no exchange to take back"
            raise InputError(f"Cannot take {count} exchanges back: {have}.")
        left = made - count
        held = next((one for one in self._earlier if len(one.steps[0]) >= left), self.memory)
        over = len(held.steps[0]) - left
        if over and (not self.model.rule.reversible or over > held.live):
            kept = made - min((len(one.steps[0]) for one in self._earlier), default=made)
            kept = max(kept, held.live) if self.model.rule.reversible else kept
            raise InputError(
                f"Cannot take {count} exchanges back, {kept} at most: under the rule {self.model.config.rule!r} the "
                f"last {UNDO} are kept, and none from before a memory was loaded or that made way for others. "
                "Load an earlier memory, or reset."
            )
        self.memory = held.rollback(over)
        while self._earlier and len(self._earlier[-1].steps[0]) >= left:
            self._earlier.pop()
        self.last = None
        del self.read[-count:]
        del self.rooms[-count:]

    def reset(self) -> None:
        self._begin(self._empty())

    def save(self, path: str | Path) -> None:
        self.memory.save(path)

    def load(self, path: str | Path) -> None:
        self._begin(self._placed(self.model.load_memory(path)))

    def go_on(self, memory: Memory) -> None:
        """Go on from the memory of one conversation, under this one's system message and tools, or under none.

        Raises:
            InputError: when the memory holds several conversations, or cannot stand under them.
        """
        placed = self.model.put_under(memory, [self.model.head(self.turns.head)])
        self._begin(placed)

    def _empty(self) -> Memory:
        return self.model.empty_memory(1, [self.model.head(self.turns.head)])

    def _placed(self, memory: Memory) -> Memory:
        """The memory, put under the system message that was asked for, if any was."""
        if memory.batch != 1:
            raise InputError(
                f"This memory holds {memory.batch} conversations; a Conversation is one: give it memory[row]."
            )
        head = self.model.head(self.turns.head)
        if not (self.turns.system or self.turns.tools) or head.ids == memory.heads[0].ids:
            return memory
        logger.warning(
            "The memory was written under another system message: it is read under this one by an approximation."
        )
        return self.model.put_under(memory, [head])

    def _begin(self, memory: Memory) -> None:
        self.memory, self.read, self.rooms, self.last = memory, [], [], None
        self.turns.headed = bool(len(memory.heads[0]))
        self._earlier.clear()

    def compare(self, text: str) -> dict[str, str | None]:
        alone, empty = self._prompt(text, first=True), self.model.empty_memory(1, self.memory.heads)
        placed, prompt, _ = self.placed_prompt(text)
        memory, full = self._answer(placed, prompt), None
        if sum(map(len, self.read)) == self.memory.tokens[0]:  # no step was read elsewhere
            whole = [token for step in self.read for token in step]
            asked = [*whole, *self._prompt(text, first=False)] if whole else alone
            if len(asked) < self._room(empty):
                full = self._answer(empty, asked)
        return {"memory": memory, "full": full, "none": self._answer(empty, alone)}

    def placed_prompt(
        self, said: Said, reply: int | None = None, room: int | None = None
    ) -> tuple[Memory, list[int], int]:
        """The memory, with room for what is said and a reply of so many tokens, the token ids of what is said, and for
        how many tokens there is room.

        Raises:
            InputError: as of :meth:`BaseConversation.say`.
        """
        memory, prompt = self.memory, self._prompt(said, first=not self.memory.begun[0])
        if reply is None:  # longer ones end where positions do
            left = self.model.max_positions - self.model.config.n_tok - len(memory.heads[0]) - len(prompt)
            reply = max(1, min(self.sampling.max_new_tokens, self.model.max_positions // 8, left))
        if room is None:
            room = len(prompt) + reply if self.endless else 0
        if room:
            with suppress(InputError, UnsupportedModelError):  # if no room can be made, the reply is shorter
                memory = self.model.make_room(memory, room)
        if memory.begun != self.memory.begun:
            prompt = self._prompt(said, first=True)
        return memory, prompt, room

    def _room(self, memory: Memory) -> int:
        """Tokens of text for which there are positions after a memory."""
        return self.model.max_positions - self.model.config.n_tok - int(memory.offset[0])

    def _answer(self, memory: Memory, prompt: list[int]) -> str:
        read = self.model.reader(memory, self.model.close(memory).cache())
        return self._whole(read, prompt, memory.tokens[0], self.most(memory, prompt))

    def most(self, memory: Memory, prompt: list[int]) -> int:
        """The longest reply to a prompt, in tokens.

        Raises:
            InputError: when the model's positions leave no room for a token of a reply and the COMP tokens after it.
        """
        room = self._room(memory) - len(prompt)
        if room < 1:
            raise PositionError(
                f"This text of {len(prompt)} tokens leaves no room for a reply within the {self.model.max_positions} "
                "positions that the model was made for. Be brief, or begin anew."
            )
        return min(self.sampling.max_new_tokens, room)
