"""CCMModel: a stock causal language model with a compressed context memory.

parallel   layout -> mask, positions -> logits                           the whole recursion in one pass
online     memory + step -> K/V at its COMP tokens -> rule -> memory     one step; then read or generate
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel

from ccm.core.config import CCMConfig, check_count
from ccm.core.errors import InputError, IrreversibleError, PositionError, UnsupportedModelError
from ccm.core.sending import send, send_numbers
from ccm.engine.adapted import AdaptedModel, ParallelOutput
from ccm.engine.attention import SDPA, AllWritten, CachedPass, CompressingPass, ParallelPass
from ccm.engine.carrying import attach_view, check_caching
from ccm.engine.families import decoder, given_cache, last_layer
from ccm.engine.head import head_reads, pick
from ccm.engine.key_values import no_entries
from ccm.engine.last import attach_last, last_pass
from ccm.engine.layout import IGNORE, Layout, build_layout
from ccm.engine.lora import PlainLoRA
from ccm.engine.memory import COMPRESSED, Head, Memory, MemoryCache, StepRecord
from ccm.engine.room import drop_oldest, drop_step
from ccm.engine.rope import Rope

_HEADS = 16  # the number of heads that a model keeps
_NEEDED = {"use_cache": True, "cache_implementation": None, "return_dict_in_generate": False}  # options of generate


class CCMModel(AdaptedModel):
    """Compressed context memory on a stock causal language model; see :class:`AdaptedModel`.

    Attributes:
        flex: whether parallel passes attend by flex_attention; None decides by speed (:mod:`ccm.engine.flex`).
    """

    encoder_decoder = False
    build_layout = staticmethod(build_layout)

    def __init__(self, base: PreTrainedModel, config: CCMConfig, *, stage1: PlainLoRA | None = None) -> None:
        super().__init__(base, config, stage1=stage1)
        for module in (self.base, decoder(self.base)):
            module.register_forward_pre_hook(attach_view, with_kwargs=True)
        attach_last(last_layer(self.base))
        self.base.get_output_embeddings().register_forward_pre_hook(pick)
        self.flex: bool | None = None
        self._heads: dict[tuple[Any, ...], Head] = {}

    def load_memory(self, path: str | Path) -> Memory:
        """Read a saved memory that this model and adapter made.

        Raises:
            MemoryFileError: see :meth:`Memory.load`; also when its sizes are not those of the model.
        """
        return Memory.load(path, self.origin, self.head, self.part_sizes).to(self.device, self.base.dtype)

    def forward(self, layout: Layout) -> ParallelOutput:
        """Run the whole recursion in one pass. Logits are those of tokens with a target, or of all if none has one.

        Raises:
            InputError: when the layout exceeds the model's positions.
        """
        if (end := int(layout.positions.max()) + 1) > self.max_positions:
            raise InputError(
                f"This batch ends at position {end}, but the model was made for {self.max_positions}. "
                "Leave steps out, or shorten them."
            )
        flex = self.flex if self.base.config._attn_implementation == SDPA else False
        targets = layout.targets.flatten()
        trained = (targets != IGNORE).nonzero().flatten()
        last = last_pass(layout, self.rule, flex=flex) if len(trained) else None
        current = ParallelPass(layout, self.rule, flex=flex, last=last)
        with head_reads(trained) if len(trained) else nullcontext():
            logits = self.base(
                inputs_embeds=self._embed(layout.ids, layout.slots),
                attention_mask=layout.ids.new_ones(1, 1, 1, 1).bool(),  # without one, the model would make its own
                position_ids=layout.positions,
                use_cache=False,
                ccm=current,
            ).logits[..., : self.vocab_size]
        if not len(trained):
            return ParallelOutput(logits, None)
        return ParallelOutput(logits[0], targets[trained])

    def head(self, ids: Sequence[int]) -> Head:
        """Read the token ids of a head for any number of memories. The model keeps the last heads and reads them once.

        Raises:
            InputError: when the head leaves no position for text, or the model does not have the ids.
        """
        key = (*ids, str(self.device), self.base.dtype)
        if key not in self._heads:
            if len(self._heads) == _HEADS:
                del self._heads[next(iter(self._heads))]
            self._heads[key] = self._read_head(tuple(ids))
        return self._heads[key]

    @torch.no_grad()
    def _read_head(self, ids: tuple[int, ...]) -> Head:
        if not ids:
            return Head()
        blank = self.empty_memory()
        cache, (text, mask, _) = MemoryCache(blank), self._text(blank, torch.tensor([ids]), None)
        self._check_end(blank, [len(ids)])
        cache.columns = replace(cache.columns, raw=torch.zeros_like(cache.columns.raw))  # it is read as plain text
        self._run(blank, cache, text, mask, n_tok=0)
        return Head(ids, tuple(x.keys for x in cache.layers), tuple(x.values for x in cache.layers), self.base_id)

    def _check_heads(self, heads: Sequence[Head], batch: int) -> None:
        if len(heads) != batch:
            raise InputError(f"There are {len(heads)} heads for {batch} conversations; give one for each.")
        if any(len(head) and head.base != self.base_id for head in heads):
            raise InputError("A head was read by another base model; make one with model.head(ids).")

    def empty_memory(self, batch: int = 1, heads: Sequence[Head] | None = None) -> Memory:
        """The memory of ``batch`` conversations that have not begun.

        Args:
            batch: B.
            heads: the head of each conversation; none if None.

        Raises:
            InputError: when ``batch`` is no whole number above 0, the number of heads is another, or another base read
                one of them.
        """
        if check_count(batch, "batch") < 1:
            raise InputError(f"batch is {batch}; a memory holds at least 1 conversation.")
        heads = [Head()] * batch if heads is None else heads
        self._check_heads(heads, batch)
        nothing = no_entries(self.base, batch)
        blank = torch.zeros(batch, 0, dtype=torch.long, device=self.device)
        offset = send_numbers([*map(len, heads)], self.device)
        return Memory(nothing, nothing, blank.bool(), blank, offset, self.origin, ((),) * batch, tuple(heads))

    def put_under(self, memory: Memory, heads: Sequence[Head]) -> Memory:
        """The memory with other heads: its keys rotate by the difference in length.

        This is an approximation, since the compressed text saw the former head.

        Args:
            memory: of B conversations.
            heads: the new head of each.

        Raises:
            InputError: when the number of heads is another, or one is empty where the memory needs a sink.
            UnsupportedModelError: when a length differs, and the keys of the model cannot move.
        """
        self._check_heads(heads, memory.batch)
        if [head.ids for head in heads] == [head.ids for head in memory.heads]:
            return memory
        return Memory.stack([self._put_under(memory[row], head) for row, head in enumerate(heads)])

    def _put_under(self, memory: Memory, head: Head) -> Memory:
        if not len(head) and self.config.sink and memory.begun[0]:
            raise InputError(
                "This memory was written with a head, and its rule needs a visible first token; give it another head."
            )
        by, keys = len(head) - len(memory.heads[0]), memory.keys
        if by:
            rotation = Rope(self.base).by(torch.full((memory.width,), by, device=self.device))
            keys = tuple(rotation(layer, x) for layer, x in enumerate(keys))
        moved = replace(
            memory,
            keys=keys,
            positions=torch.where(memory.positions < 0, memory.positions, memory.positions + by),
            offset=memory.offset + by,
            heads=(head,),
        )
        raw = self.rule.keeps_text or (self.rule.compresses == "context" and not memory.closed)
        return moved if raw or moved.sinks == memory.sinks else moved.without_sink()

    def make_room(self, memory: Memory, tokens: int) -> Memory:
        """The memory with room for ``tokens`` more text tokens; if positions run out, it drops its oldest steps.

        It then frees an eighth of all positions at least, so that keys seldom move. See :mod:`ccm.engine.room`.

        Raises:
            InputError: when the text is too long by itself, or the rule compresses once per context.
            UnsupportedModelError: when the keys of the model cannot move.
        """
        limit = self.max_positions - self._comp_room
        missing = [end + tokens - limit for end in memory.ends]
        if max(missing) <= 0:
            return memory
        if self.rule.compresses == "context" or max(map(len, memory.heads)) + tokens > limit:
            self._check_end(memory, [tokens] * memory.batch)
        rope, least = Rope(self.base), self.max_positions // 8
        rows = (memory[row] for row in range(memory.batch))
        pairs = zip(rows, missing, strict=True)
        return Memory.stack([drop_oldest(row, max(n, least), rope) if n > 0 else row for row, n in pairs])

    def forgets(self, memory: Memory) -> bool:
        """Whether :meth:`forget` can take a step out of the memory of one conversation: no entry of another one may
        have seen it, or know its distance from a head or a sink.
        """
        apart = self.rule.compresses == "step" and self.rule.reversible and not self.config.recurrent
        return apart and not len(memory.heads[0]) and not memory.sinks

    def forget(self, memory: Memory, step: int) -> Memory:
        """The memory of one conversation without a step, as if it had never been, up to rounding.

        Its entries go, and later keys rotate back by its positions. The texts of later steps stay as they are: they may
        repeat what it said.

        Args:
            memory: of one conversation.
            step: the number of the step, from 1.

        Raises:
            IrreversibleError: when other entries of the memory depend on the step (see :meth:`forgets`).
            InputError: when there is no such step.
            UnsupportedModelError: when the keys of the model cannot move.
        """
        if not self.forgets(memory):
            raise IrreversibleError(
                "Other entries of this memory have seen the step, or stand behind a head or a sink, so that it cannot "
                "be taken out of them. Read the other steps again into a new memory."
            )
        if not 1 <= check_count(step, "step") <= len(memory.steps[0]):
            raise InputError(f"There is no step {step}; the memory holds {len(memory.steps[0])}.")
        return drop_step(memory, step - 1, Rope(self.base))

    @property
    def _comp_room(self) -> int:
        """The number of positions that the COMP tokens after a text need."""
        return 0 if self.rule.compresses == "never" else self.config.n_tok

    def compress(
        self, memory: Memory, ids: Tensor, mask: Tensor | None = None, cache: MemoryCache | None = None
    ) -> Memory:
        """Read one more step and fold it into the memory: Mem(t) from Mem(t-1) and the text of the step.

        Args:
            memory: Mem(t-1), of B conversations.
            ids: (B, T) token ids of the step, padded on the left. On the CPU, they are checked without a wait for the
                device.
            mask: (B, T) bool, False at padding; all True if None. It is best on the CPU too.
            cache: a cache that began with ``memory`` and has read the first tokens of ``ids`` already, as ``generate``
                leaves it. These are not read again, and the cache must not be used afterwards. One that does not fit
                is ignored.

        Raises:
            InputError: when a step is empty or exceeds the model's positions, the memory is closed or of another model,
                or the model keeps no cache.
        """
        if memory.closed:
            raise InputError("This memory was closed; its context takes no more steps. Go on from the open memory.")
        ids, mask, lengths = self._text(memory, ids, mask)
        self._check_end(memory, lengths)
        if cache is not None and not (
            cache.memory is memory
            and cache.get_seq_length() <= cache.columns.width + ids.shape[1]
            and cache.layers[0].keys.shape[0] == memory.batch
        ):
            cache = None  # from a closed memory, with more text than this, or with beams: read the whole step
        if self.rule.forgets:
            return memory.after([StepRecord(n, 0, 0) for n in lengths])
        if self.rule.compresses != "step":
            cache = MemoryCache(memory) if cache is None else cache
            self._run(memory, cache, ids, mask, n_tok=0)
            read = self._extend(memory, cache, mask, memory.positions_of(mask))
            return read.after([StepRecord(n, n, n) for n in lengths])
        source = memory
        if not self.config.recurrent:
            source, cache = memory.first(memory.sinks), None
        cache = MemoryCache(source) if cache is None else cache
        weights = self._run(source, cache, ids, mask, n_tok=self.config.n_tok)
        folded = self._fold(memory, source, cache, mask, weights)
        added, skipped = self._added(memory), self._comp_positions
        return folded.after([StepRecord(n, a, n + skipped) for n, a in zip(lengths, added, strict=True)])

    def _added(self, memory: Memory) -> list[int | None]:
        """For each conversation, the entries that a step adds: its COMP tokens, and a sink if there is none yet."""
        if not self.rule.reversible:
            return [None] * memory.batch
        rows = zip(memory.heads, memory.steps, strict=True)
        lacking = (not len(head) and not any(step.entries for step in row) for head, row in rows)
        return [self.config.n_tok + memory.sinks * new for new in lacking]

    @property
    def _comp_positions(self) -> int:
        """The number of text positions that the COMP tokens of a step take."""
        return self.config.n_tok if self.config.positions == "base" else 0

    def close(self, memory: Memory) -> Memory:
        """The memory as a query reads it: a rule that compresses once per context does so now.

        ``read`` and ``generate`` call this themselves; the result is worth saving when a context is complete. The given
        memory stays open for further steps.
        """
        if self.rule.compresses != "context" or not memory.width or memory.closed:
            return memory
        cache = MemoryCache(memory)
        nothing = memory.mask.new_zeros(memory.batch, 0)
        ids = memory.positions.new_zeros(memory.batch, 0)
        weights = self._run(memory, cache, ids, nothing, n_tok=self.config.n_tok)
        begun = memory.mask.any(1, keepdim=True)  # a conversation without steps has nothing to compress
        if self.rule.keeps_text:
            comp = torch.full((memory.batch, self.config.n_tok), COMPRESSED, device=ids.device)
            closed = self._extend(memory, cache, begun.expand_as(comp), comp)
        else:
            closed = self._fold(memory.first(0), memory, cache, nothing, weights)
            closed = replace(closed, mask=closed.mask & begun)
        return replace(closed, offset=memory.offset + self._comp_positions * begun[:, 0], closed=True)

    def read(
        self,
        memory: Memory,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        *,
        last: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) of text (B, T) that follows the memory; the memory stays as it is.

        Args:
            memory: of B conversations.
            ids: (B, T) token ids, padded on the left.
            mask: (B, T) bool, False at padding; all True if None.
            cache: ``model.close(memory).cache()``, for callers that read on: the text follows all that was read into
                it before.
            last: return the logits of the last token only, (B, 1, V).

        Raises:
            InputError: when the text is empty or exceeds the model's positions, the memory is of another model, the
                cache is of another memory, or the model keeps no cache.
        """
        ids, mask, _ = self._text(memory, ids, mask)
        cache = self._cache_of(memory, cache)
        whole = torch.cat([cache.mask_before(memory.batch, 0), mask], dim=1)
        read = whole[:, cache.columns.width :]
        self._check_end(memory, read.sum(1).tolist())
        positions = torch.cat([cache.columns.positions, cache.memory.positions_of(read)], dim=1)
        own = positions[:, -ids.shape[1] :]
        logits = self.read_columns(ids, own, cache, whole, positions, cache.columns.raw, last=last)
        cache.read = read
        return logits

    def read_columns(
        self,
        ids: Tensor,
        own: Tensor,
        cache: DynamicCache,
        mask: Tensor,
        positions: Tensor,
        raw: Tensor,
        *,
        last: bool = False,
    ) -> Tensor:
        """Logits (B, T, V) of text that follows the columns of a cache, which grows by it.

        Args:
            ids: (B, T) token ids, on the model's device.
            own: (B, T) int64 their text positions.
            cache: of S columns.
            mask: (B, S + T) bool of all columns once the cache has grown, False at padding.
            positions: (B, S + T) int64 their text positions, :data:`ccm.engine.memory.COMPRESSED` at entries.
            raw: (B,) how many first tokens stay visible to all text.
            last: return the logits of the last token only, (B, 1, V).

        Raises:
            InputError: when the model keeps no cache.
        """
        check_caching(self.base)
        return self.base(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=own,
            **given_cache(self.base, cache),
            logits_to_keep=int(last),
            ccm=CachedPass(mask, positions, own, raw),
        ).logits[..., : self.vocab_size]

    def reader(self, memory: Memory, cache: MemoryCache) -> Callable[[Tensor], Tensor]:
        """A function that reads ids (B, T) into the cache of a memory, and returns the logits (B, V) of the next token.

        It is made for :func:`ccm.engine.sampling.tokens`, and keeps nothing for gradients.
        """

        @torch.no_grad()
        def read(ids: Tensor) -> Tensor:
            return self.read(memory, ids, cache=cache, last=True)[:, -1]

        return read

    def generate(
        self,
        memory: Memory,
        ids: Tensor,
        mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        **options: Any,
    ) -> Tensor:
        """Continue text (B, T) that follows the memory; the memory stays as it is.

        Args:
            memory: of B conversations.
            ids: (B, T) token ids, padded on the left.
            mask: (B, T) bool, False at padding; all True if None.
            cache: ``model.close(memory).cache()``, for callers that pass it to :meth:`compress` afterwards.
            options: options of ``generate`` in transformers: sampling, streamer, stopping, beams.

        Returns:
            (B, G) the new token ids.

        Raises:
            InputError: when the text is empty, the text and the new tokens exceed the model's positions, the memory is
                of another model, the cache is of another memory or has read text already, the model keeps no cache, or
                an option asks for another cache or for more than ids.
        """
        ids, mask, lengths = self._text(memory, ids, mask)
        asked = {**vars(options.get("generation_config") or GenerationConfig()), **options}
        for name, needed in _NEEDED.items():
            if asked.get(name) not in (None, needed):
                raise InputError(
                    f"{name} is {asked[name]!r}; generate uses a memory's cache, and returns ids only. Leave it out."
                )
        options |= _NEEDED  # whatever the model's generation_config.json says
        cache = self._cache_of(memory, cache)
        if cache.get_seq_length() != cache.columns.width:
            raise InputError("This cache has read text already; make a new one.")
        most = self._option(options, "max_new_tokens") or (self._option(options, "max_length") or 0) - ids.shape[1]
        self._check_end(memory, [length + max(most, 0) for length in lengths])
        memory, before = cache.memory, cache.columns.mask
        beams, sequences = (self._option(options, name) or 1 for name in ("num_beams", "num_return_sequences"))
        if (copies := beams if beams > 1 else sequences) > 1:  # generate repeats its other inputs by itself
            cache.batch_repeat_interleave(copies)
        if self.config.embeddings == "table":
            comp = range(self.vocab_size, self.vocab_size + self.config.n_tok_range[1])
            options["suppress_tokens"] = [*(self._option(options, "suppress_tokens") or ()), *comp]
        positions = torch.cat([torch.zeros_like(before, dtype=torch.long), memory.positions_of(mask)], dim=1)
        output = self.base.generate(
            ids,
            attention_mask=torch.cat([before, mask], dim=1).long(),
            position_ids=positions,
            **given_cache(self.base, cache),
            **options,
        )
        return output[:, ids.shape[1] :]

    def _cache_of(self, memory: Memory, cache: MemoryCache | None) -> MemoryCache:
        """The cache, if it is of this memory; a new one if None."""
        if cache is None:
            return self.close(memory).cache()
        heads = ([head.ids for head in one.heads] for one in (cache.memory, memory))
        same = cache.memory.origin == memory.origin and cache.memory.steps is memory.steps
        if not same or next(heads) != next(heads):
            raise InputError("This cache is of another memory; make a new one.")
        return cache

    def _option(self, options: Mapping[str, Any], name: str) -> Any:
        """An option of ``generate``, wherever it is set; None if it is not."""
        configs = (options.get("generation_config"), self.base.generation_config)
        sources = [options, *(vars(config) for config in configs if config is not None)]
        return next((source[name] for source in sources if source.get(name)), None)

    def _run(
        self, source: Memory, cache: MemoryCache, ids: Tensor, mask: Tensor, n_tok: int
    ) -> dict[int, Tensor | None]:
        """Feed the rest of a step into the cache, then COMP tokens; returns the rule's write weights by layer."""
        before = cache.columns
        done = cache.get_seq_length() - before.width
        slot = torch.arange(n_tok, device=ids.device).expand(ids.shape[0], n_tok)
        start = source.offset + mask.sum(1)
        text = source.positions_of(mask)
        positions = torch.cat([text[:, done:], start[:, None] + slot], dim=1)
        columns = torch.cat([before.positions, text, torch.full_like(slot, COMPRESSED)], dim=1)
        fed = torch.cat([ids[:, done:], torch.zeros_like(slot)], dim=1)
        slots = torch.cat([torch.full_like(ids[:, done:], -1), slot], dim=1)
        step = send_numbers([len(row) + 1 for row in source.steps], ids.device)
        read = torch.cat([before.mask, mask, torch.ones_like(slot, dtype=torch.bool)], dim=1)
        layers = len(source.keys)
        current = CompressingPass(
            read, columns, positions, before.raw, rule=self.rule, n_tok=n_tok, step=step, layers=layers
        )
        if fed.shape[1]:
            self.run(cache, fed, slots, positions, read, current)
        return current.weights

    def run(
        self, cache: DynamicCache, ids: Tensor, slots: Tensor, positions: Tensor, mask: Tensor, current: CompressingPass
    ) -> None:
        """Feed text and COMP tokens into a cache: only their keys and values are computed.

        Args:
            cache: a cache of S columns, which grows by T.
            ids: (B, T) token ids; any ids at COMP tokens.
            slots: (B, T) k at the k-th COMP token (from 0), -1 at text.
            positions: (B, T) text positions.
            mask: (B, S + T) bool, False at padding.
            current: the pass; it keeps the rule's write weights.

        Raises:
            InputError: when the model keeps no cache.
        """
        check_caching(self.base)
        with suppress(AllWritten):
            decoder(self.base)(
                inputs_embeds=self._embed(ids, slots),
                attention_mask=mask.long(),
                position_ids=positions,
                **given_cache(decoder(self.base), cache),
                ccm=current,
            )

    def _extend(self, memory: Memory, cache: MemoryCache, mask: Tensor, positions: Tensor) -> Memory:
        """The memory with the raw entries of all text that the cache has read since."""
        head = cache.columns.width - memory.width
        return replace(
            memory,
            keys=tuple(layer.keys[:, :, head:] for layer in cache.layers),
            values=tuple(layer.values[:, :, head:] for layer in cache.layers),
            mask=torch.cat([memory.mask, mask], dim=1),
            positions=torch.cat([memory.positions, positions], dim=1),
        )

    def _fold(
        self, memory: Memory, source: Memory, cache: MemoryCache, mask: Tensor, weights: dict[int, Tensor | None]
    ) -> Memory:
        """The memory of the sink and of what the rule folds: its entries, and the COMP entries that end the cache."""
        n, sink = self.config.n_tok, memory.sinks
        read = torch.cat([cache.columns.mask, mask, mask.new_ones(memory.batch, n)], dim=1)
        first = read.long().argmax(1)[:, None, None, None] if sink else None

        def fold(old: Tensor, new: Tensor, weight: Tensor | None) -> Tensor:
            head = [] if first is None else [new.take_along_dim(first, 2)]
            return torch.cat([*head, self.rule.fold(old[:, :, sink:], new[:, :, -n:], weight)], dim=2)

        layers = range(len(cache.layers))
        valid = fold(memory.mask[:, None, :, None], read[:, None, :, None], None)[:, 0, :, 0]
        if sink:
            valid[:, :1] &= send_numbers([[not len(head)] for head in memory.heads], valid.device)
        return replace(
            memory,
            keys=tuple(fold(memory.keys[i], cache.layers[i].keys, weights[i]) for i in layers),
            values=tuple(fold(memory.values[i], cache.layers[i].values, weights[i]) for i in layers),
            mask=valid,
            positions=torch.full(valid.shape, COMPRESSED, device=valid.device),
        )

    def _text(self, memory: Memory, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, list[int]]:
        """The ids and the mask of a text that follows the memory, on the model's device, and the length of each row.

        The check runs on the device of the ids: on the CPU, it does not wait for the model's device.
        """
        mask, lengths = self.check_text(memory, ids, mask)
        device = self.device
        return send(ids, device), send(mask, device), lengths

    def _check_end(self, memory: Memory, lengths: Sequence[int]) -> None:
        end = max(at + length for at, length in zip(memory.ends, lengths, strict=True)) + self._comp_room
        if end > self.max_positions:
            raise PositionError(
                f"This text would end at position {end}, but the model was made for {self.max_positions}. "
                "Begin a new memory, roll back, or split the text and drop old steps."
            )


def as_decoder(model: AdaptedModel, what: str) -> CCMModel:
    """The model, for a task ``what`` that only a decoder can do.

    Raises:
        UnsupportedModelError: when the model is an encoder-decoder.
    """
    if not isinstance(model, CCMModel):
        raise UnsupportedModelError(f"{type(model.base).__name__} is an encoder-decoder; {what} needs a decoder alone.")
    return model
