"""How a stream makes room in its cache: by compressing its oldest text, or by dropping it.

columns   [ sink | memory | recent text ]        at most W (cache_size) between two passes, W + 1 within a pass
positions   0      S ..     S + M ..  L - 1      the index of the column; the next token is read at position L

A pass reads as many tokens as there is room for. Then entries move to the left, and their keys are rotated to the new
positions (:mod:`ccm.engine.rope`). Text moves only a few times before it is evicted, and averaged memory entries never
move. Rounding errors therefore do not accumulate, however long the stream is.

Shapes: B streams that are read together, K kv heads, D head dim, L columns: S of the sink, M of the memory, then text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from ccm.core.config import bounded, check_fields
from ccm.core.errors import ConfigError
from ccm.engine.attention import CachedPass, CompressingPass, Pass, additive
from ccm.engine.call import Attended, Call
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import COMPRESSED
from ccm.engine.reach import Reach
from ccm.engine.rope import Rope
from ccm.streams.entries import NO_ID, CacheState, Entries

Ends = Callable[[Tensor], Tensor]  # (B, T) ids -> (B, T) how good a cut after each token is; larger is better


@dataclass(frozen=True)
class StreamSettings:
    """The sizes of a stream, in entries or tokens. The defaults are those of the paper's experiment on PG19.

    Attributes:
        cache_size: W, the most entries in the cache, with sink and memory ("window_size" in the authors' code).
        span: the tokens that are compressed or dropped at a time ("comp_size" in the authors' code).
        memory_size: the most memory entries ("comp_cache_size" in the authors' code); the oldest are dropped first.
        sink: S, the number of first tokens that always stay in view.
        evict: how to make room: "compress" the oldest span, drop it ("blocks"), or drop the oldest token ("window").
        tolerance: by how many tokens the end of a span may move to the end of a sentence or paragraph.
    """

    cache_size: int = 160
    span: int = bounded(64, 1)
    memory_size: int = bounded(8, 0)
    sink: int = bounded(1, 0)
    evict: str = "compress"
    tolerance: int = bounded(0, 0)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.evict not in EVICTIONS:
            raise ConfigError(f"evict is {self.evict!r}; allowed: {', '.join(EVICTIONS)}.")
        if self.cache_size < self.least:
            raise ConfigError(
                f"cache_size is {self.cache_size}; sink {self.sink}, memory_size {self.memory_size}, span {self.span} "
                f"and tolerance {self.tolerance} need at least {self.least}. Raise cache_size, or lower span."
            )

    @property
    def least(self) -> int:
        """The smallest cache: room for the input of a compression, and for one recent token after it."""
        return self.sink + self.memory_size + self.span + self.tolerance + 1


class Eviction(ABC):
    """How a stream makes room. By default, it does so as soon as the cache holds one token too many.

    Args:
        model: the model that reads the stream.
        settings: the sizes of the stream.
        rope: rotates keys of the model to other positions.
        ends: finds good ends for spans; None keeps every span at the length of the settings.

    Raises:
        ConfigError: if the settings do not fit the model or its rule.
    """

    name: ClassVar[str]

    def __init__(self, model: CCMModel, settings: StreamSettings, rope: Rope, ends: Ends | None = None) -> None:
        self.model, self.settings, self.rope, self.ends = model, settings, rope, ends
        if settings.cache_size + 1 > model.max_positions:
            raise ConfigError(
                f"cache_size is {settings.cache_size}, but the model supports {model.max_positions} positions; "
                f"cache_size must be at most {model.max_positions - 1}."
            )

    def room(self, length: int) -> int:
        """How many tokens the next pass may read if the cache holds ``length`` columns."""
        return self.settings.cache_size + 1 - length

    def view(self, held: CacheState, count: int) -> Pass:
        """The pass of the next ``count`` tokens: they attend to the whole cache, and to one another causally."""
        positions = self._positions(held, len(held.entries), count)
        columns = torch.cat([self._columns(held, len(held.entries)), positions], dim=1)
        return CachedPass(
            torch.ones_like(columns, dtype=torch.bool), columns, positions, torch.zeros_like(columns[:, 0])
        )

    def settle(self, held: CacheState) -> CacheState:
        """Make room if the last pass has filled the cache beyond its size."""
        return held if len(held.entries) <= self.settings.cache_size else self.evict(held)

    @abstractmethod
    def evict(self, held: CacheState) -> CacheState:
        """Make room; return the new state of the cache."""

    def _check_span(self) -> None:
        span, tolerance, n = self.settings.span, self.settings.tolerance, self.model.config.n_tok
        if span - tolerance <= n:
            raise ConfigError(
                f"span is {span} with a tolerance of {tolerance}; the shortest span must be longer than the {n} "
                "entries that it is compressed to. Raise span."
            )

    def _columns(self, held: CacheState, length: int) -> Tensor:
        """(B, length) the positions of the first columns; COMPRESSED at sink and memory, which every layer can see."""
        positions = self._positions(held, 0, length)
        return torch.where(positions < self.settings.sink + held.memory, COMPRESSED, positions)

    def _positions(self, held: CacheState, start: int, count: int) -> Tensor:
        ids = held.entries.ids
        return torch.arange(start, start + count, device=ids.device).expand(len(ids), -1)

    def _without(self, held: CacheState, count: int) -> Entries:
        """The cache without its ``count`` oldest text tokens."""
        lead = self.settings.sink + held.memory
        return Entries.join([held.entries[:lead], held.entries[lead + count :].moved(self.rope, -count)])


class Compress(Eviction):
    """Compressed context memory: the oldest span becomes N entries, which the model's rule folds into the memory.

    The COMP tokens follow the span, and see sink, memory and span. Before the fold, the keys of the new entries are
    rotated to the positions that they get in the memory. A rule that averages then averages keys of equal positions
    (slot k of the memory and slot k of the new entries), so that its memory is never rotated again.

    Raises:
        ConfigError: if the rule does not compress step by step, the memory has no room for N entries, or a span is not
            longer than N.
    """

    name = "compress"

    def __init__(self, model: CCMModel, settings: StreamSettings, rope: Rope, ends: Ends | None = None) -> None:
        super().__init__(model, settings, rope, ends)
        n = model.config.n_tok
        if model.rule.compresses != "step":
            raise ConfigError(
                f"The rule {model.config.rule!r} does not compress step by step, so a stream cannot compress with it. "
                "Load the model with a rule such as concat, or drop old text with evict=window or evict=blocks."
            )
        if settings.memory_size < n:
            raise ConfigError(f"memory_size is {settings.memory_size}; the {n} entries of a span need at least {n}.")
        self._check_span()

    def evict(self, held: CacheState) -> CacheState:
        lead = self.settings.sink + held.memory
        end = lead + self._span(held.entries.ids[:, lead:])
        fresh, weights = self._write(held, end)
        memory = self._fold(held.entries[self.settings.sink : lead], fresh, weights, end)
        moved = held.entries[end:].moved(self.rope, self.settings.sink + len(memory) - end)
        entries = Entries.join([held.entries[: self.settings.sink], memory, moved])
        return CacheState(entries, len(memory), held.evictions + 1)

    def _span(self, text: Tensor) -> int:
        """How many tokens of the text (B, T) to compress: the best end for all streams within the tolerance.

        Of equally good ends, the nearest to the settings' span wins.
        """
        span, most = self.settings.span, self.settings.tolerance
        if self.ends is None or not most:
            return span
        strength = self.ends(text).sum(0)[span - most - 1 : span + most].tolist()
        return span - most + max(range(len(strength)), key=lambda i: (strength[i], -abs(i - most)))

    def _write(self, held: CacheState, end: int) -> tuple[Entries, dict[int, Tensor | None]]:
        """Compress all columns before ``end``: N new entries at the positions from ``end``, and the rule's weights."""
        source, n = held.entries[:end], self.model.config.n_tok
        positions = self._positions(held, end, n)
        columns = torch.cat([self._columns(held, end), torch.full_like(positions, COMPRESSED)], dim=1)
        read = torch.ones_like(columns, dtype=torch.bool)
        current = CompressingPass(
            read,
            columns,
            positions,
            torch.zeros_like(columns[:, 0]),
            rule=self.model.rule,
            n_tok=n,
            step=torch.full_like(positions[:, 0], held.evictions + 1),
            layers=len(source.keys),
        )
        cache = source.fill(DynamicCache())
        slots, nothing = positions - end, torch.zeros_like(positions)
        self.model.run(cache, nothing, slots, positions, read, current)
        keys, values = ([getattr(layer, name)[:, :, -n:] for layer in cache.layers] for name in ("keys", "values"))
        return Entries(tuple(keys), tuple(values), torch.full_like(positions, NO_ID)), current.weights

    def _fold(self, memory: Entries, fresh: Entries, weights: dict[int, Tensor | None], end: int) -> Entries:
        """Fold new entries into the memory; keep its newest entries at the positions after the sink."""
        sink, most, fold = self.settings.sink, self.settings.memory_size, self.model.rule.fold
        fresh = fresh.moved(self.rope, sink - end)
        layers = range(len(fresh.keys))

        def columns(old: Tensor, new: Tensor) -> Tensor:
            return fold(old[:, None, :, None], new[:, None, :, None], None)[:, 0, -most:, 0]

        ids = columns(memory.ids, fresh.ids)
        stood = columns(*(torch.arange(len(part), device=ids.device)[None] for part in (memory, fresh)))[0]
        folded = Entries(
            tuple(fold(memory.keys[i], fresh.keys[i], weights[i])[:, :, -most:] for i in layers),
            tuple(fold(memory.values[i], fresh.values[i], weights[i])[:, :, -most:] for i in layers),
            ids,
        )
        return folded.moved(self.rope, torch.arange(len(folded), device=ids.device) - stood)


class Blocks(Eviction):
    """Drops the oldest span, less the entries by which a memory would have grown.

    At every token, the cache so holds as many entries as with :class:`Compress`. This is the paper's baseline, based
    on StreamingLLM.

    Raises:
        ConfigError: if a span is not longer than N.
    """

    name = "blocks"

    def __init__(self, model: CCMModel, settings: StreamSettings, rope: Rope, ends: Ends | None = None) -> None:
        super().__init__(model, settings, rope, ends)
        self._check_span()

    def evict(self, held: CacheState) -> CacheState:
        n, most = self.model.config.n_tok, self.settings.memory_size
        before, after = (min(n * count, most) for count in (held.evictions, held.evictions + 1))
        dropped = self.settings.span - (after - before)
        return replace(held, entries=self._without(held, dropped), evictions=held.evictions + 1)


class Window(Eviction):
    """A sliding window with a sink: once the cache is full, every new token drops the oldest one.

    Attention depends on distances between positions only. A token's distance to text in view never changes, and its
    distance to the sink is always W. One pass can therefore read many tokens: each sees its own copy of the sink,
    rotated to the distance W, and a band of the text before it (:class:`_Sliding`).
    """

    name = "window"

    def room(self, length: int) -> int:
        most = self.settings.cache_size
        return most - length if length < most else min(self.settings.span, self.model.max_positions - most)

    def view(self, held: CacheState, count: int) -> Pass:
        if len(held.entries) < self.settings.cache_size:
            return super().view(held, count)
        return _Sliding(self.settings.cache_size, self.settings.sink, count, self.rope, held.entries.ids.device)

    def evict(self, held: CacheState) -> CacheState:
        dropped = len(held.entries) - self.settings.cache_size
        return replace(held, entries=self._without(held, dropped), evictions=held.evictions + dropped)


class _Sliding:
    """One pass of T tokens after a full cache of W entries; each token sees what it would see if read alone.

    keys      | sink for token 1 | for 2 | .. | text of the cache | tokens 1 2 3 |
    token 2            .             x     .      . . x x x x x       x x .            the latest W - S, and itself
    """

    def __init__(self, width: int, sink: int, count: int, rope: Rope, device: torch.device) -> None:
        self.rows: Tensor | None = None
        self.hidden: Tensor | None = None
        self._sink, self._band = sink, width - sink
        token = torch.arange(count, device=device)
        self._turn = rope.by(token.repeat_interleave(sink))
        self._copies = (token[:, None] == token.repeat_interleave(sink)).expand(count, -1)
        self._distance = (token + width)[:, None] - torch.arange(sink, width + count, device=device)
        self._last = torch.full_like(token, width)[None]  # (1, T) the position of each token, read alone
        self._added: dict[Reach | None, Tensor] = {}

    def attend(self, call: Call) -> Attended:
        copies, reach = call.query.shape[2], call.reach
        first, last = (x[:, :, : self._sink].repeat(1, 1, copies, 1) for x in (call.key, call.value))
        key = torch.cat([self._turn(call.layer, first), call.key[:, :, self._sink :]], dim=2)
        value = torch.cat([last, call.value[:, :, self._sink :]], dim=2)
        if reach not in self._added:
            near = (self._distance >= 0) & (self._distance <= self._band)
            if reach is not None:
                near &= reach.covers(self._last.T, self._last.T - self._distance)
            self._added[reach] = additive(torch.cat([self._copies, near], dim=1)[None, None], call.query.dtype)
        return call.retuned(self._last).entries(key, value).run(self._added[reach])


EVICTIONS: dict[str, type[Eviction]] = {eviction.name: eviction for eviction in (Compress, Blocks, Window)}
