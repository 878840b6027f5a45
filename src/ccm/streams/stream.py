"""Streaming: reading text of unlimited length at a constant cost per token, in a cache of fixed size.

    stream = StreamingMemory(model, StreamSettings(), tokenizer)
    for nll in stream.scored(ids): ...                        one tensor per pass
    stream.generate(20)

Entries move only when room is made, so one pass reads all tokens up to then. The result equals that of feeding token by
token, because every token attends to the same entries at the same distances.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedTokenizerBase

from ccm.core.config import check_count
from ccm.core.errors import ConfigError, InputError
from ccm.core.plain_text import PlainText, check_text
from ccm.engine.carrying import check_caching
from ccm.engine.decoder import CCMModel
from ccm.engine.families import given_cache
from ccm.engine.key_values import no_entries
from ccm.engine.rope import Rope
from ccm.engine.sampling import Sampling, tokens
from ccm.streams.boundaries import Boundaries
from ccm.streams.entries import CacheState, Entries
from ccm.streams.evictions import EVICTIONS, Ends, StreamSettings
from ccm.streams.stream_files import StreamState, read_stream, write_stream


@dataclass(frozen=True)
class Reading:
    """The tokens and logits of one pass.

    Attributes:
        ids: (B, T) the token ids.
        logits: (B, T, V) the logits after each token.
        before: (B, V) the logits that predict the first token; None at the beginning of the stream.
    """

    ids: Tensor
    logits: Tensor
    before: Tensor | None

    @property
    def nll(self) -> Tensor:
        """The negative log-likelihood of each token in nats: (B, T) float32.

        At the beginning of a stream the shape is (B, T - 1), because nothing predicts the first token.
        """
        logits, ids = self.logits[:, :-1], self.ids
        if self.before is not None:
            logits = torch.cat([self.before[:, None], logits], dim=1)
        else:
            ids = ids[:, 1:]
        return cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")


class StreamingMemory:
    """B streams of text that are read together.

    Args:
        model: the model; its rule updates the memory.
        settings: the sizes of the cache, and how to make room.
        tokenizer: the tokenizer of the base model; needed to read text, and to find the ends of sentences.
        batch: B.
        ends: finds good ends for spans within the settings' tolerance; None uses the ends of sentences and paragraphs.

    Raises:
        UnsupportedModelError: if the keys of the model cannot be moved to other positions (see :class:`Rope`).
        ConfigError: if settings, rule and model do not fit together, or a tolerance needs a tokenizer.

    Attributes:
        rope: rotates keys to other positions.
        held: the state of the cache.
        tokens: the number of tokens that each stream has read.
        last: (B, V) the logits after the last token; None before the first token.
    """

    def __init__(
        self,
        model: CCMModel,
        settings: StreamSettings | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch: int = 1,
        ends: Ends | None = None,
    ) -> None:
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or StreamSettings()
        if ends is None and self.settings.tolerance:
            if tokenizer is None:
                raise ConfigError(
                    f"tolerance is {self.settings.tolerance}, but the ends of sentences cannot be found without a "
                    "tokenizer; give one, or set tolerance=0."
                )
            ends = Boundaries(tokenizer)
        self.rope = Rope(model.base)
        self._eviction = EVICTIONS[self.settings.evict](model, self.settings, self.rope, ends)
        nothing = no_entries(model.base, batch)
        self.held = CacheState(Entries(nothing, nothing, torch.zeros(batch, 0, dtype=torch.long, device=model.device)))
        self.tokens = 0
        self.last: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of streams."""
        return self.held.entries.ids.shape[0]

    @property
    def entries(self) -> int:
        """The number of entries in the cache of each stream: sink, memory and recent text."""
        return len(self.held.entries)

    @property
    def evictions(self) -> int:
        """How often the stream has made room: compressions, dropped blocks, or dropped tokens."""
        return self.held.evictions

    @property
    def nbytes(self) -> int:
        """The size of all keys and values in bytes."""
        return self.held.entries.nbytes

    @property
    def room(self) -> int:
        """The most tokens that the next pass can read."""
        lead = self.settings.sink - self.entries  # the first pass reads the sink alone: all later text sees it
        return lead if lead > 0 else self._eviction.room(self.entries)

    def encode(self, text: str) -> Tensor:
        """The token ids (1, T) of a text that continues the stream; at the beginning of the stream, BOS comes first.

        Raises:
            ConfigError: if the stream has no tokenizer.
            InputError: if the text is not a string, is empty, or holds an unpaired surrogate.
        """
        if self.tokenizer is None:
            raise ConfigError("This stream was made without a tokenizer; give it one, or feed token ids.")
        if not check_text(text):
            raise InputError("The text is empty; give a text with at least one character.")
        bos = self.tokenizer.bos_token_id
        first = [] if self.tokens or bos is None else [bos]
        return torch.tensor([[*first, *PlainText(self.tokenizer).encode(text)]])

    def passes(self, text: Tensor | str) -> Iterator[Reading]:
        """Read (B, T) token ids, or the text of a single stream; yield a :class:`Reading` after each pass.

        After each pass, the stream may be saved, or reading may stop.

        Raises:
            InputError: if the ids have another shape or are not in the model's vocabulary, or the model keeps no
                cache.
        """
        ids = (self.encode(text) if isinstance(text, str) else text).to(self.model.device)
        if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.shape[1]:
            raise InputError(
                f"The ids have shape {tuple(ids.shape)}; a batch of {self.batch} streams reads ({self.batch}, T) ids, "
                "and T must be at least 1."
            )
        self.model.check_ids(ids)
        while ids.shape[1]:
            now, ids = ids[:, : self.room], ids[:, self.room :]
            yield self._read(now)

    def feed(self, text: Tensor | str) -> Tensor:
        """Read as :meth:`passes` does; return the logits (B, T, V) after each token."""
        return torch.cat([reading.logits for reading in self.passes(text)], dim=1)

    def scored(self, text: Tensor | str) -> Iterator[Tensor]:
        """Read as :meth:`passes` does; yield the :attr:`Reading.nll` of each pass, without keeping logits."""
        for reading in self.passes(text):
            yield reading.nll

    def nll(self, text: Tensor | str) -> Tensor:
        """Read as :meth:`passes` does; return the negative log-likelihoods of all tokens (see :attr:`Reading.nll`)."""
        return torch.cat([*self.scored(text)], dim=1)

    def generate(self, count: int, sampling: Sampling | None = None, *, ends: Collection[int] = ()) -> Tensor:
        """Generate the next tokens (B, G) without reading them: the streams stay as they are.

        To continue from the tokens, feed them. A stream that has ended repeats its last token until all have ended.

        Args:
            count: the most tokens to generate; at least 1.
            sampling: how to choose tokens; None chooses the likeliest. Its ``max_new_tokens`` is not used.
            ends: the ids of tokens that end a text (:func:`ccm.chat.reply.end_ids`).

        Raises:
            InputError: if the streams have read nothing, or ``count`` is not a whole number above 0.
        """
        if check_count(count, "count") < 1:
            raise InputError(f"Cannot generate {count} tokens; ask for at least 1.")
        if self.last is None:
            raise InputError("The stream has read nothing, so it has nothing to continue; feed it some text first.")
        twin = self.fork()
        said: list[list[int]] = [[] for _ in range(self.batch)]
        chance = sampling.generator(self.tokens, self.model.device) if sampling else None
        for chosen in tokens(self.last, lambda ids: twin.feed(ids)[:, -1], sampling, generator=chance):
            for row, token in zip(said, chosen.tolist(), strict=True):
                row.append(row[-1] if row and row[-1] in ends else token)
            if len(said[0]) == count or all(row[-1] in ends for row in said):
                break
        return torch.tensor(said, device=self.model.device)

    def fork(self) -> StreamingMemory:
        """An independent stream that has read the same text. It shares all tensors, since none is changed in place."""
        return copy.copy(self)

    def rows(self, rows: list[int]) -> StreamingMemory:
        """Select streams of the batch by their indices, for instance those with more text to read.

        Raises:
            InputError: if no index is given, or the batch does not have an index.
        """
        if not rows or not all(0 <= check_count(row, "row") < self.batch for row in rows):
            raise InputError(f"The rows are {rows}; name some of the {self.batch} streams, counted from 0.")
        few = self.fork()
        few.held = replace(self.held, entries=self.held.entries.each(lambda x: x[rows]))
        few.last = None if self.last is None else self.last[rows]
        return few

    @torch.no_grad()
    def _read(self, ids: Tensor) -> Reading:
        """Read tokens that fit into the cache in one pass, then make room."""
        check_caching(self.model.base)
        held, start = self.held, self.entries
        cache = held.entries.fill(DynamicCache())
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
        logits = self.model.base(
            input_ids=ids,
            attention_mask=torch.ones(self.batch, start + ids.shape[1], dtype=torch.long, device=ids.device),
            position_ids=positions,
            **given_cache(self.model.base, cache),
            ccm=self._eviction.view(held, ids.shape[1]),
        ).logits[..., : self.model.vocab_size]
        keys, values = (tuple(getattr(layer, name) for layer in cache.layers) for name in ("keys", "values"))
        entries = Entries(keys, values, torch.cat([held.entries.ids, ids], dim=1))
        self.held = self._eviction.settle(replace(held, entries=entries))
        reading = Reading(ids, logits, self.last)
        self.tokens += ids.shape[1]
        self.last = logits[:, -1].clone()  # a view would keep the logits of the whole pass in memory
        return reading

    def save(self, path: str | Path) -> None:
        """Write the stream to one safetensors file, atomically, for :meth:`load`.

        Raises:
            MemoryFileError: if the path is a directory or another kind of file, or cannot be written.
        """
        write_stream(path, StreamState(self.settings, self.held, self.tokens, self.last), self.model)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: CCMModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        ends: Ends | None = None,
    ) -> StreamingMemory:
        """Load a saved stream, with the settings that it was saved with.

        Raises:
            MemoryFileError: if the file is absent or damaged, holds NaN, or has another version, model, adapter or
                rule.
            ConfigError: if the stream needs a tokenizer and none is given.
        """
        state = read_stream(path, model)
        stream = cls(model, state.settings, tokenizer, ends=ends)
        stream.held, stream.tokens, stream.last = state.held, state.tokens, state.last
        return stream
