"""Conversation: say something, stream the reply, compress the exchange."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ccm.errors import InputError
from ccm.memory import Memory, MemoryCache
from ccm.model import CCMModel
from ccm.turns import make_turns

UNDO = 32  # exchanges that can be taken back under rules that cannot roll back
COLDEST = 1e-6  # far below it, logits divided by the temperature overflow


@dataclass(frozen=True)
class Sampling:
    """How replies are chosen; greedy unless a temperature is given.

    Attributes:
        temperature: 0 is greedy; else at least :data:`COLDEST`.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that together have this probability.
        repetition_penalty: above 1 discourages tokens that have occurred, below 1 (and above 0) encourages them.
        max_new_tokens: the longest reply, in tokens.
        seed: of the sampling, from 0 to 2**63 - 1; None leaves torch's generator as it is.

    Raises:
        InputError: when a value is not allowed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (greedy), or finite and at least {COLDEST}."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.top_k < 0 or self.max_new_tokens < 1:
            raise InputError(
                f"top_k is {self.top_k} and max_new_tokens {self.max_new_tokens}; at least 0 and 1 are allowed."
            )
        if not 0.0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"repetition_penalty is {self.repetition_penalty}; it must be finite and above 0; 1 changes nothing."
            )
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it must be a whole number from 0 to 2**63 - 1.")

    def options(self) -> dict[str, Any]:
        """As ``generate`` takes them."""
        greedy = {"do_sample": False, "repetition_penalty": self.repetition_penalty}
        if self.temperature == 0:
            return greedy
        chosen = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {**greedy, "do_sample": True, **chosen}

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """(B,) ids from logits (B, V), where no ``generate`` does it; the repetition penalty is not of one token."""
        if self.temperature == 0:
            return logits.argmax(-1)
        warpers = [TemperatureLogitsWarper(self.temperature), TopPLogitsWarper(self.top_p)]
        if self.top_k:
            warpers.insert(1, TopKLogitsWarper(self.top_k))
        nothing = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
        scores = LogitsProcessorList(warpers)(nothing, logits.float())
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]


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
    """

    reply: str
    step_tokens: int
    memory_entries: int
    memory_bytes: int
    full_context_tokens: int
    full_context_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


class Conversation:
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
        self.model, self.tokenizer = model, tokenizer
        self.turns = make_turns(tokenizer, model.config.turns)
        self.sampling = sampling or Sampling()
        self.memory = _single(memory or model.empty_memory())
        self.last: TurnReport | None = None
        self._earlier: deque[Memory] = deque(maxlen=UNDO)  # where the rule itself cannot roll back
        self._text: list[list[int]] | None = [] if memory is None else None  # of every step, where all are known

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

    def answer(self, text: str) -> str:
        """Say something and return the whole reply."""
        for _ in self.say(text):
            pass
        assert self.last is not None
        return self.last.reply

    def undo(self, count: int = 1) -> None:
        """Take the last ``count`` exchanges back; all of them, or none where that is not possible.

        Raises:
            InputError: when there are fewer, or fewer that can be taken back.
        """
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
        """Begin anew."""
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
        """Replies to the same text from the memory, from full context (None where its text is not known), and without
        context; the memory stays as it is.
        """
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

    def _report(self, reply: str, step_tokens: int) -> TurnReport:
        tokens = self.memory.tokens[0]
        return TurnReport(
            reply=reply,
            step_tokens=step_tokens,
            memory_entries=self.memory.entries[0],
            memory_bytes=self.memory.nbytes,
            full_context_tokens=tokens,
            full_context_bytes=tokens * self.memory.entry_nbytes,
        )


def _single(memory: Memory) -> Memory:
    if memory.batch != 1:
        raise InputError(f"This memory holds {memory.batch} conversations; a Conversation is one: give it memory[row].")
    return memory


class _Stop(StoppingCriteria):
    """Ends a generation when asked to."""

    asked = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked, device=input_ids.device)
