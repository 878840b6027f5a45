"""A conversation without end: recent turns stay as they are, older ones are compressed.

[ sink | memory, at most half of the window | recent exchanges ... the present one ]      the window, in entries
                                              \\__ when the window is full, the oldest is compressed as one step

It is a stream (:mod:`ccm.streams.stream`) whose spans end where turns end. Positions count places in the window, so
that no conversation is too long for the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.chat.conversation import BaseConversation, ConversationStats
from ccm.core.config import check_count
from ccm.core.errors import ConfigError, InputError
from ccm.engine.decoder import CCMModel
from ccm.engine.families import entry_sizes
from ccm.engine.sampling import Read, Sampling
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory
from ccm.streams.stream_files import KIND

UNDO = 8  # exchanges that can be taken back: each keeps a whole window


def window_settings(size: int, model: CCMModel, head: int = 0) -> StreamSettings:
    """The settings of a stream in ``size`` entries, of which at most half are memory. Steps have any length that fits.

    The first ``head`` tokens stay in view, as a sink does.

    Raises:
        ConfigError: when the size is too small for the model's N or larger than the model's positions, or when the rule
            does not compress step by step.
    """
    if model.rule.compresses != "step":
        raise ConfigError(
            f"The rule {model.config.rule!r} does not compress step by step, so that nothing of what leaves a window "
            "would be kept; take a rule that does, such as concat, or talk without a window."
        )
    n, sink = model.config.n_tok, max(head, int(model.config.sink))
    least, most = 2 * (sink + n + 2), model.max_positions - 1
    if not least <= check_count(size, "window") <= most:
        raise ConfigError(
            f"The window is {size} entries; with N = {n}, {sink} tokens that stay in view and a model made for "
            f"{most + 1} positions it must be from {least} to {most}."
        )
    memory = size // 2
    shortest, longest = n + 1, size - sink - memory - 1
    span = (shortest + longest) // 2
    return StreamSettings(size, span, memory, sink, tolerance=span - shortest)


class WindowConversation(BaseConversation):
    """A conversation in a window: a memory of older exchanges, and the recent ones as they are.

    Each exchange is compressed as one step, as in a :class:`ccm.Conversation`; in pieces where the window has no room
    for it. When the memory of concat fills half of the window, its oldest entries are dropped.

    Args:
        model: the model, under a rule that compresses step by step.
        tokenizer: the tokenizer of its base model.
        size: entries of the window: system message, memory, recent text, and the sink of adapters that have one.
        sampling: how replies are chosen; greedy where None.
        system: the system message, which stays in view as it is.
        tools: definitions of tools, which stay in view beside the system message.

    Attributes:
        settings: the settings of the stream that a new conversation begins.
        stream: the stream; an exchange replaces it and never changes it.

    Raises:
        ConfigError: when the size does not fit the model, or the rule does not compress step by step.
        UnsupportedModelError: when the keys of the model cannot be moved (see :class:`ccm.engine.rope.Rope`).
    """

    kind = KIND

    def __init__(
        self,
        model: CCMModel | CCMEncoderDecoder,
        tokenizer: PreTrainedTokenizerBase,
        size: int,
        sampling: Sampling | None = None,
        *,
        system: str = "",
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(model, tokenizer, sampling, system, tools)
        self.settings = window_settings(size, self.model, len(self.turns.head))
        self._earlier: deque[tuple[StreamingMemory, tuple[int, ...] | None]] = deque(maxlen=UNDO)
        self.stream = self._new()
        self._text: tuple[int, ...] | None = ()  # all that was read, where it is known and not too long to go on from

    @property
    def past(self) -> ConversationStats:
        held, stream = self.stream.held, self.stream
        recent = max(stream.entries - stream.settings.sink - held.memory, 0)
        base = self.model.base
        entry = 2 * sum(heads * dim for heads, dim in entry_sizes(base.config)) * base.dtype.itemsize
        window = stream.settings.cache_size
        lead = stream.settings.sink if stream.settings.sink > int(self.model.config.sink) else len(self.turns.head)
        tokens, entries = (max(count - lead, 0) for count in (stream.tokens, stream.entries))  # without the head
        return ConversationStats(held.evictions, tokens, entries, recent, stream.nbytes - lead * entry, entry, window)

    def say(self, text: str) -> Generator[str, None, None]:
        """As :meth:`BaseConversation.say`; text and reply pass through the window, so that none is too long."""
        begun, first = self.stream, self._first
        prompt, stream = self._prompt(text, first=first), begun.fork()
        reply, pieces = self._reply(_reader(stream), prompt, begun.tokens, self.sampling.max_new_tokens)
        yield from pieces
        self._check_same(self.stream, begun)
        step = self.turns.remembered(text, prompt, reply.ids, first=first)
        seen = [*prompt, *reply.said[:-1]]
        if step[: len(seen)] != seen:
            stream, seen = begun.fork(), []
        if rest := step[len(seen) :]:
            stream.feed(torch.tensor([rest]))
        self._earlier.append((begun, self._text))
        self.stream = stream
        if self._text is not None:
            whole = (*self._text, *step)
            self._text = whole if len(whole) <= self.model.max_positions else None  # nothing grows without end
        self.last = self._report(reply, len(step), prompt)

    def compare(self, text: str) -> dict[str, str | None]:
        alone = self._prompt(text, first=True)
        prompt = alone if self._first else self._prompt(text, first=False)
        return {
            "memory": self._answer(self.stream.fork(), prompt),
            "full": self._answer_in_full(prompt),
            "none": self._answer(self._new(), alone),
        }

    def undo(self, count: int = 1) -> None:
        kept = len(self._earlier)
        if not 1 <= check_count(count, "count") <= kept:
            raise InputError(
                f"Cannot take {count} exchange{'s' * (count != 1)} back, {kept} at most: of a conversation with a "
                f"window the last {UNDO} are kept, and none from before one was loaded. Load an earlier one, or reset."
            )
        self.stream, self._text = [self._earlier.pop() for _ in range(count)][-1]
        self.last = None

    def reset(self) -> None:
        self._begin(self._new(), ())

    def save(self, path: str | Path) -> None:
        self.stream.save(path)

    def load(self, path: str | Path) -> None:
        stream = StreamingMemory.load(path, self.model, self.tokenizer, ends=self._ends)
        if stream.batch != 1:
            raise InputError(f"{path} holds {stream.batch} streams; a conversation is one. Save stream.rows([row]).")
        if stream.settings.evict != "compress":
            raise InputError(
                f"{path} holds a stream that drops its oldest text; a conversation goes on where it is kept."
            )
        sink = stream.held.entries.ids[0, : stream.settings.sink].tolist()
        if (self.turns.system or self.turns.tools) and sink != self.turns.head:
            raise InputError(f"{path} was saved under another system message; load it without one, or begin anew.")
        self._begin(stream, None)

    def _begin(self, stream: StreamingMemory, text: tuple[int, ...] | None) -> None:
        self.stream, self._text, self.last = stream, text, None
        self._earlier.clear()

    def _new(self) -> StreamingMemory:
        stream = StreamingMemory(self.model, self.settings, self.tokenizer, ends=self._ends)
        if self.turns.head:
            stream.feed(torch.tensor([self.turns.head]))
        return stream

    @property
    def _first(self) -> bool:
        """Whether the next turn is the first that the model sees."""
        return self.stream.tokens <= self.stream.settings.sink

    def _ends(self, ids: Tensor) -> Tensor:
        """(B, T) where exchanges of the recent text (B, T) end; the oldest first."""
        return self.turns.ends(ids) * torch.arange(ids.shape[1], 0, -1, device=ids.device)

    def _answer(self, stream: StreamingMemory, prompt: list[int]) -> str:
        return self._whole(_reader(stream), prompt, stream.tokens, self.sampling.max_new_tokens)

    def _answer_in_full(self, prompt: list[int]) -> str | None:
        """The reply with all text in view; None where the text is unknown, or leaves no room for a reply."""
        room = self.model.max_positions - 1
        text = [*self.turns.head, *(self._text or ()), *prompt]
        if self._text is None or len(text) + self.sampling.max_new_tokens > room:
            return None
        whole = StreamSettings(room, span=1, memory_size=0, sink=0, evict="window")
        return self._answer(StreamingMemory(self.model, whole), text)


def _reader(stream: StreamingMemory) -> Read:
    """What reads on in the stream, for :func:`ccm.chat.reply.reply_to`."""
    return lambda ids: stream.feed(ids)[:, -1]
