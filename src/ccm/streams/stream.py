"""Streaming: text without end at a constant cost, in a cache of fixed size: sink, memory, recent text.

    stream = StreamingMemory(model, StreamSettings(), tokenizer)
    for nll in stream.scored(ids): ...                        one piece a pass
    stream.generate(20)

Between two evictions nothing moves, so that a whole piece of text goes through in one pass; what comes out equals
feeding token by token, for every token attends to the same entries at the same distances.
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
    """What one pass has read.

    Attributes:
        ids: (B, T) the tokens.
        logits: (B, T, V), after each of them.
        before: (B, V) those that predict the first; None at the beginning of the stream.
    """

    ids: Tensor
    logits: Tensor
    before: Tensor | None

    @property
    def nll(self) -> Tensor:
        """(B, T) float32, the negative log-likelihood of each token in nats; at the beginning of a stream (B, T - 1),
        for nothing predicts its first token."""
        logits, ids = self.logits[:, :-1], self.ids
        if self.before is not None:
            logits = torch.cat([self.before[:, None], logits], dim=1)
        else:
            ids = ids[:, 1:]
        return cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")


class StreamingMemory:
    """B streams of text, read in step with one another.

    Args:
        model: the model; its rule says how the memory takes what is compressed.
        settings: sizes, and how room is made.
        tokenizer: of the base model, to read text, and to know where sentences end.
        batch: B.
        ends: where pieces of text may end, within the settings' tolerance; None is at sentences and paragraphs.

    Raises:
        UnsupportedModelError: when the keys of the model cannot be moved (see :class:`Rope`).
        ConfigError: when sizes, rule and model do not go together, or sentences are to be known without a tokenizer.

    Attributes:
        rope: by which keys are moved.
        tokens: how many tokens each stream has read.
        last: (B, V) the logits after the last of them; None before the first.
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
        if ends is None and self.settings.tolerance and tokenizer is None:
            raise ConfigError(
                f"A tolerance of {self.settings.tolerance} moves spans to where sentences end, which a tokenizer "
                "tells; give it, or a tolerance of 0."
            )
        if ends is None and tokenizer is not None and self.settings.tolerance:
            ends = Boundaries(tokenizer)
        self.rope = Rope(model.base)
        self._eviction = EVICTIONS[self.settings.evict](model, self.settings, self.rope, ends)
        nothing = no_entries(model.base, batch)
        self._held = CacheState(Entries(nothing, nothing, torch.zeros(batch, 0, dtype=torch.long, device=model.device)))
        self.tokens = 0
        self.last: Tensor | None = None

    @property
    def batch(self) -> int:
        """B."""
        return self._held.entries.ids.shape[0]

    @property
    def held(self) -> CacheState:
        """What is in the cache now."""
        return self._held

    @property
    def entries(self) -> int:
        """Entries in the cache of each stream: sink, memory and recent text."""
        return len(self._held.entries)

    @property
    def evictions(self) -> int:
        """How often room was made: compressions, dropped blocks, or dropped tokens."""
        return self._held.evictions

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self._held.entries.nbytes

    @property
    def room(self) -> int:
        """How many tokens the next pass reads at most."""
        lead = self.settings.sink - self.entries  # the sink by itself first: nothing hides it from what follows
        return lead if lead > 0 else self._eviction.room(self.entries)

    def encode(self, text: str) -> Tensor:
        """(1, T) token ids of a text that goes on where the stream is; BOS first where it begins.

        Raises:
            ConfigError: when there is no tokenizer.
            InputError: when the text is no string, empty, or holds half of a surrogate pair.
        """
        if self.tokenizer is None:
            raise ConfigError("This stream was made without a tokenizer; give it one, or feed token ids.")
        if not check_text(text):
            raise InputError("The text is empty; give some.")
        bos = self.tokenizer.bos_token_id
        first = [] if self.tokens or bos is None else [bos]
        return torch.tensor([[*first, *PlainText(self.tokenizer).encode(text)]])

    def passes(self, text: Tensor | str) -> Iterator[Reading]:
        """Read (B, T) token ids, or the text of a single stream, of any length; yields what each pass has read.

        A pass that is yielded is done: the stream may be saved there, or left.

        Raises:
            InputError: when the ids are none, not the model's, or of other streams than these, or the model keeps no
                cache.
        """
        ids = (self.encode(text) if isinstance(text, str) else text).to(self.model.device)
        if ids.ndim != 2 or ids.shape[0] != self.batch or not ids.shape[1]:
            raise InputError(
                f"The ids have shape {tuple(ids.shape)}; a batch of {self.batch} streams reads ({self.batch}, T), with "
                "at least one token each."
            )
        self.model.check_ids(ids)
        while ids.shape[1]:
            now, ids = ids[:, : self.room], ids[:, self.room :]
            yield self._read(now)

    def feed(self, text: Tensor | str) -> Tensor:
        """Logits (B, T, V) after each token of (B, T) ids, or of a text; see :meth:`passes`."""
        return torch.cat([reading.logits for reading in self.passes(text)], dim=1)

    def scored(self, text: Tensor | str) -> Iterator[Tensor]:
        """As :meth:`passes`: the negative log-likelihoods (B, T) of what each pass has read; no logits are kept."""
        for reading in self.passes(text):
            yield reading.nll

    def nll(self, text: Tensor | str) -> Tensor:
        """Negative log-likelihoods (B, T) of all tokens, in nats; without the first at the beginning of a stream."""
        return torch.cat([*self.scored(text)], dim=1)

    def generate(self, count: int, sampling: Sampling | None = None, *, ends: Collection[int] = ()) -> Tensor:
        """(B, G) the next ``count`` tokens, fewer where all streams have ended; the streams stay where they are.

        Feed them, where they are to be read on from. After the token that ended it a stream repeats that one.

        Args:
            count: at least 1.
            sampling: how they are chosen; greedily where None. Of its own ``max_new_tokens`` nothing is asked.
            ends: ids of the tokens that end a text (:func:`ccm.chat.reply.end_ids`); none where nothing does.

        Raises:
            InputError: when nothing was read yet, or the count is no whole number above 0.
        """
        if check_count(count, "count") < 1:
            raise InputError(f"Cannot generate {count} tokens; ask for at least 1.")
        if self.last is None:
            raise InputError("The stream has read nothing that could be continued; feed it some text first.")
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
        """A stream that has read the same and goes on by itself; nothing is copied, for nothing is ever changed."""
        return copy.copy(self)

    def rows(self, rows: list[int]) -> StreamingMemory:
        """Some streams of the batch, such as those whose text goes on.

        Raises:
            InputError: when there are none, or the batch does not have them.
        """
        if not rows or not all(0 <= check_count(row, "row") < self.batch for row in rows):
            raise InputError(f"The rows are {rows}; name some of the {self.batch} streams, counted from 0.")
        few = self.fork()
        few._held = replace(self._held, entries=self._held.entries.each(lambda x: x[rows]))
        few.last = None if self.last is None else self.last[rows]
        return few

    @torch.no_grad()
    def _read(self, ids: Tensor) -> Reading:
        """One pass over tokens for which there is room, and then room for more."""
        check_caching(self.model.base)
        held, start = self._held, self.entries
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
        self._held = self._eviction.settle(replace(held, entries=entries))
        reading = Reading(ids, logits, self.last)
        self.tokens += ids.shape[1]
        self.last = logits[:, -1].clone()  # a view would hold the logits of the whole pass
        return reading

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically, from which :meth:`load` goes on.

        Raises:
            MemoryFileError: when the path is a directory, a file that is no stream, or cannot be written.
        """
        write_stream(path, StreamState(self.settings, self._held, self.tokens, self.last), self.model)

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: CCMModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        ends: Ends | None = None,
    ) -> StreamingMemory:
        """Go on from a saved stream, under its own settings.

        Raises:
            MemoryFileError: when the file is absent, damaged, of another version, model, adapter or rule, or holds NaN.
            ConfigError: when it needs a tokenizer.
        """
        state = read_stream(path, model)
        stream = cls(model, state.settings, tokenizer, ends=ends)
        stream._held, stream.tokens, stream.last = state.held, state.tokens, state.last
        return stream
