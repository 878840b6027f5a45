"""Conversation: say something, stream the reply, compress the exchange."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from ccm.errors import InputError
from ccm.memory import Memory, MemoryCache
from ccm.model import CCMModel, check_decoder
from ccm.sampling import Sampling
from ccm.turns import make_turns

UNDO = 32  # exchanges that can be taken back under rules that cannot roll back


@dataclass(frozen=True)
class TurnReport:
    """One exchange in numbers; tokens and entries are counted, bytes are of keys and values.

    Attributes:
        reply: the text.
        step_tokens: all tokens of the exchange that were read into the memory.
        memory_entries: what the memory now holds.
        memory_bytes: likewise.
        full_context_tokens: what full context would hold.
        full_context_bytes: likewise.
        recent_tokens: those of the memory's entries that are recent text, not compressed yet.
    """

    reply: str
    step_tokens: int
    memory_entries: int
    memory_bytes: int
    full_context_tokens: int
    full_context_bytes: int
    recent_tokens: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Past:
    """What is held of a conversation, in numbers.

    Attributes:
        steps: pieces of text that were compressed; under rules that compress none, those that were read.
        tokens: all that were read: what full context would hold.
        entries: all that are held.
        recent: those of them that are recent text, not compressed yet.
        nbytes: of the keys and values of all entries.
        entry_nbytes: of one entry.
        window: the most entries that there may be; None where there may be ever more.
    """

    steps: int
    tokens: int
    entries: int
    recent: int
    nbytes: int
    entry_nbytes: int
    window: int | None = None


class Talk(ABC):
    """What conversations have in common, however they keep their past.

    Args:
        model: the model.
        tokenizer: of its base model.
        sampling: how replies are chosen; greedy where None.

    Attributes:
        last: the last exchange; None at the beginning, and after one was taken back.
    """

    def __init__(self, model: CCMModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling | None) -> None:
        check_decoder(model, "a conversation")
        self.model, self.tokenizer = model, tokenizer
        self.turns = make_turns(tokenizer, model.config.turns)
        self.sampling = sampling or Sampling()
        self.last: TurnReport | None = None

    @property
    @abstractmethod
    def past(self) -> Past:
        """What is held now."""

    @abstractmethod
    def say(self, text: str) -> Generator[str, None, None]:
        """Yield the reply piece by piece; once it is complete, the exchange belongs to the past.

        A reply that is not consumed to its end, or is interrupted, leaves the past as it was.
        """

    def answer(self, text: str) -> str:
        """Say something and return the whole reply."""
        for _ in self.say(text):
            pass
        assert self.last is not None
        return self.last.reply

    @abstractmethod
    def compare(self, text: str) -> dict[str, str | None]:
        """Replies to the same text from "memory", from "full" context (None where not all of its text is at hand), and
        with "none"; the past stays as it is.
        """

    @abstractmethod
    def undo(self, count: int = 1) -> None:
        """Take the last ``count`` exchanges back; all of them, or none where that is not possible.

        Raises:
            InputError: when there are fewer, or fewer that can be taken back.
        """

    @abstractmethod
    def reset(self) -> None:
        """Begin anew."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Save what is held.

        Raises:
            MemoryFileError: when the path is a directory, a file of another kind, or cannot be written.
        """

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Go on from what was saved; the present past stays where the file cannot be used.

        Raises:
            MemoryFileError: when the file is absent, damaged, of another kind, model, adapter or rule.
            InputError: when it holds several conversations.
        """

    def _report(self, reply: str, step_tokens: int) -> TurnReport:
        past = self.past
        return TurnReport(
            reply=reply,
            step_tokens=step_tokens,
            memory_entries=past.entries,
            memory_bytes=past.nbytes,
            full_context_tokens=past.tokens,
            full_context_bytes=past.tokens * past.entry_nbytes,
            recent_tokens=past.recent,
        )


class Conversation(Talk):
    """A conversation whose past is a :class:`Memory`.

    Args:
        model: the model.
        tokenizer: of its base model.
        memory: where to go on from, of one conversation; a new one where None.
        sampling: how replies are chosen.

    Raises:
        InputError: when the memory holds several conversations.
    """

    def __init__(
        self,
        model: CCMModel,
        tokenizer: PreTrainedTokenizerBase,
        memory: Memory | None = None,
        sampling: Sampling | None = None,
    ) -> None:
        super().__init__(model, tokenizer, sampling)
        self.memory = _single(memory or model.empty_memory())
        self._earlier: deque[Memory] = deque(maxlen=UNDO)  # where the rule itself cannot roll back
        self._text: list[list[int]] | None = [] if memory is None else None  # of every step, where all are known

    @property
    def past(self) -> Past:
        memory = self.memory
        held = memory.entries[0], 0, memory.nbytes, memory.entry_nbytes
        return Past(len(memory.steps[0]), memory.tokens[0], *held)

    def say(self, text: str) -> Generator[str, None, None]:
        """Yield the reply piece by piece; once it is complete, the exchange is compressed into the memory.

        A reply that is not consumed to its end, or is interrupted, leaves the memory as it was.

        Raises:
            InputError: before anything is generated, when the text is empty, the model's positions leave no room for a
                reply, or the memory is closed.
        """
        if self.memory.closed:
            raise InputError("This memory was closed; its context takes no more turns. Load the open memory, or reset.")
        prompt = self._prompt(text)
        cache = self.model.close(self.memory).cache()
        reply: list[int] = []
        yield from self._stream(self.memory, prompt, cache, reply)
        step = torch.tensor([[*prompt, *reply]], device=self.model.device)
        with torch.no_grad():
            memory = self.model.compress(self.memory, step, cache=cache)
        if not self.model.rule.reversible:
            self._earlier.append(self.memory)
        if self._text is not None:
            self._text.append([*prompt, *reply])
        self.memory = memory
        self.last = self._report(self.turns.decode(reply), step.shape[1])

    def undo(self, count: int = 1) -> None:
        made = len(self.memory.steps[0])
        if not 1 <= count <= made:
            have = f"there are {made}; allowed are 1 to {made}" if made else "there is no exchange to take back"
            raise InputError(f"Cannot take {count} exchanges back: {have}.")
        if self.model.rule.reversible:
            self.memory = self.memory.rollback(count)
        elif count > len(self._earlier):
            raise InputError(
                f"Cannot take {count} exchanges back, {len(self._earlier)} at most: under the rule "
                f"{self.model.config.rule!r} the last {UNDO} are kept, and none from before a memory was loaded. "
                "Load an earlier memory, or reset."
            )
        else:
            self.memory = [self._earlier.pop() for _ in range(count)][-1]
        self.last = None
        if self._text:
            del self._text[-count:]

    def reset(self) -> None:
        self._begin(self.model.empty_memory(), [])

    def save(self, path: str | Path) -> None:
        """Save the memory (see :meth:`Memory.save`)."""
        self.memory.save(path)

    def load(self, path: str | Path) -> None:
        """Go on from a saved memory; the present one stays where the file cannot be used."""
        self._begin(_single(self.model.load_memory(path)), None)

    def _begin(self, memory: Memory, text: list[list[int]] | None) -> None:
        self.memory, self._text, self.last = memory, text, None
        self._earlier.clear()

    def compare(self, text: str) -> dict[str, str | None]:
        alone = self.turns.prompt(text, first=True)
        replies: dict[str, str | None] = {"memory": self._reply(self.memory, self._prompt(text))}
        empty = self.model.empty_memory()
        if self._text is None:
            replies["full"] = None
        else:
            whole = [token for step in self._text for token in step]
            replies["full"] = self._reply(empty, [*whole, *self.turns.prompt(text, first=False)] if whole else alone)
        return {**replies, "none": self._reply(empty, alone)}

    def _prompt(self, text: str) -> list[int]:
        return self.turns.prompt(text, first=int(self.memory.offset[0]) == 0)

    def _reply(self, memory: Memory, prompt: list[int]) -> str:
        reply: list[int] = []
        for _ in self._stream(memory, prompt, None, reply):
            pass
        return self.turns.decode(reply)

    def _stream(
        self, memory: Memory, prompt: list[int], cache: MemoryCache | None, reply: list[int]
    ) -> Generator[str, None, None]:
        """Yield text as it is generated in a thread; fills ``reply`` with its token ids, without the closing EOS.

        Raises:
            InputError: when the model's positions leave no room for a token of a reply and the COMP tokens after it.
        """
        end = int(memory.offset[0]) + len(prompt)
        room = self.model.max_positions - end - self.model.config.n_tok
        if room < 1:
            raise InputError(
                f"This text ends at position {end}, which leaves no room for a reply within the "
                f"{self.model.max_positions} that the model was made for. Begin anew, take exchanges back, or be brief."
            )
        ids = torch.tensor([prompt], device=self.model.device)
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = _Stop()
        failure: list[BaseException] = []
        if self.sampling.seed is not None:
            torch.manual_seed(self.sampling.seed + len(memory.steps[0]))

        def work() -> None:
            try:
                output = self.model.generate(
                    memory,
                    ids,
                    cache=cache,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([stop]),
                    max_new_tokens=min(self.sampling.max_new_tokens, room),
                    eos_token_id=self.turns.eos_id,
                    pad_token_id=self.turns.eos_id,
                    **self.sampling.options(),
                )
                reply.extend(output[0].tolist())
            except BaseException as error:
                failure.append(error)
                streamer.end()

        thread = threading.Thread(target=work, daemon=True)
        try:
            thread.start()  # in here: an interrupt may come while it starts
            yield from streamer
        finally:
            stop.asked = True
            if thread.is_alive():
                thread.join()
        if failure:
            raise failure[0]
        if reply and reply[-1] == self.turns.eos_id:
            reply.pop()


def _single(memory: Memory) -> Memory:
    if memory.batch != 1:
        raise InputError(f"This memory holds {memory.batch} conversations; a Conversation is one: give it memory[row].")
    return memory


class _Stop(StoppingCriteria):
    """Ends a generation when asked to."""

    asked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)
