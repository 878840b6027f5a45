"""CCMEncoderDecoder: a stock encoder-decoder whose encoder compresses steps into a memory for the decoder.

parallel   layout -> one pass of the encoder -> the hidden states that the decoder may read -> logits
online     step -> keys, values and last hidden states at its COMP tokens -> memory;  memory + query -> the decoder

Every step is read by itself (not recurrent). :mod:`ccm.engine.t5.memory` describes the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError, InputError, MemoryFileError
from ccm.core.rules import rule_class
from ccm.engine.adapted import AdaptedModel, ParallelOutput
from ccm.engine.families import attention_modules, given_cache
from ccm.engine.head import head_reads, pick
from ccm.engine.key_values import no_entries
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.lora import PlainLoRA
from ccm.engine.stack import check_encoders
from ccm.engine.t5.encoder import EncoderLayout, EncoderPass, build_encoder_layout
from ccm.engine.t5.memory import EncoderMemory


class CCMEncoderDecoder(AdaptedModel):
    """Compressed context memory on a stock encoder-decoder (T5, Flan-T5); see :class:`AdaptedModel`.

    Under rules that mix, a query reads SUM tokens, which have embeddings of their own and see all COMP tokens. All COMP
    entries stay in the memory, since the SUM tokens of the next query read them again.

    Raises:
        ConfigError: also when the config asks for recurrence, a sink, gates, or embeddings in the base's table, which
            an encoder does not have.
    """

    encoder_decoder = True
    build_layout = staticmethod(build_encoder_layout)
    pass_type: ClassVar[type[EncoderPass]] = EncoderPass

    def __init__(self, base: PreTrainedModel, config: CCMConfig, *, stage1: PlainLoRA | None = None) -> None:
        check_encoders()
        _check(config)
        super().__init__(base, config, stage1=stage1)
        self._biased = attention_modules(self.base)[:1]  # in a list: the module stays the base's, not ours
        self.base.get_output_embeddings().register_forward_pre_hook(pick)

    def _embeddings(self, most: int) -> int:
        return 2 * most if self.rule.mixes else most  # COMP, then SUM

    def load_memory(self, path: str | Path) -> EncoderMemory:
        """Read a saved memory that this model and adapter made.

        Raises:
            MemoryFileError: see :meth:`EncoderMemory.load`; also when its sizes or ids are not those of the model.
        """
        memory = EncoderMemory.load(path, self.origin, self.part_sizes)
        highest = max((token for text in memory.text for step in text for token in step), default=0)
        if highest >= self.vocab_size:
            raise MemoryFileError(f"{path} holds ids that this model does not have; the file was changed.")
        return memory.to(self.device, self.base.dtype)

    def forward(self, layout: EncoderLayout) -> ParallelOutput:
        """Run all steps, the query and the answer in one pass.

        Raises:
            InputError: when the layout has no target, and so no answer for the decoder.
        """
        targets = layout.targets.flatten()
        trained = (targets != IGNORE).nonzero().flatten()
        if not len(trained):
            raise InputError("No row of this batch has an answer; give the last tokens of the queries targets.")
        hidden, cross = self._encode(self.empty_memory(len(layout.ids)), layout)
        with head_reads(trained):
            logits = self.decode(hidden, cross, layout.targets)
        return ParallelOutput(logits[0], targets[trained])

    def pass_of(self, layout: EncoderLayout, memory: EncoderMemory | None = None, keep: int = 0) -> EncoderPass:
        """A pass of the encoder over a layout, after a memory if there is one.

        It will keep the keys and values of the last ``keep`` tokens.
        """
        memory = self.empty_memory(len(layout.ids)) if memory is None else memory
        held = [*zip(memory.keys, memory.values, strict=True)]
        return self.pass_type(layout, self.rule, self._biased[0], memory.mask, memory.positions, held, keep)

    def empty_memory(self, batch: int = 1) -> EncoderMemory:
        """The memory of ``batch`` conversations that have not begun."""
        nothing = no_entries(self.base, batch)
        states = torch.zeros(batch, 0, self.base.config.hidden_size, device=self.device, dtype=self.base.dtype)
        blank = torch.zeros(batch, 0, dtype=torch.long, device=self.device)
        offset = torch.zeros(batch, dtype=torch.long, device=self.device)
        return EncoderMemory(
            nothing, nothing, blank.bool(), blank, offset, self.origin, states, ((),) * batch, (0,) * batch
        )

    def compress(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None = None) -> EncoderMemory:
        """Read one more step.

        Args:
            memory: of B conversations.
            ids: (B, T) token ids of the step, padded on the left.
            mask: (B, T) bool, False at padding; all True if None.

        Raises:
            InputError: when a step is empty, or the memory is closed or of another model.
        """
        if self.rule.compresses == "context" and memory.mask.any():
            raise InputError("This memory was closed; its context takes no more steps. Go on from the open memory.")
        rows = self._rows(memory, ids, mask)
        tokens = tuple(read + len(row) for read, row in zip(memory.tokens, rows, strict=True))
        memory = replace(memory, tokens=tokens)
        if self.rule.forgets:
            return memory
        if self.rule.compresses != "step":
            return replace(memory, text=tuple((*text, row) for text, row in zip(memory.text, rows, strict=True)))
        return self._written(memory, [Sample([Step(row)], Step([])) for row in rows])

    def close(self, memory: EncoderMemory) -> EncoderMemory:
        """The memory as a query reads it: a rule that compresses once per context does so now.

        ``read`` and ``generate`` call this themselves; the result is worth saving when a context is complete.
        """
        if self.rule.compresses != "context" or self.rule.keeps_text or not all(memory.text):
            return memory
        closed = self._written(memory, [Sample([Step(step) for step in text], Step([])) for text in memory.text])
        return replace(closed, text=((),) * memory.batch)

    def read(self, memory: EncoderMemory, ids: Tensor, answer: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits (B, A, V) of an answer's tokens to a query after the memory; the memory stays as it is.

        Args:
            memory: of B conversations.
            ids: (B, T) token ids of the query, padded on the left.
            answer: (B, A) token ids of the answer, padded on the right.
            mask: (B, T) bool, False at padding; all True if None.

        Raises:
            InputError: when the query is empty, or the memory is of another model.
        """
        return self.decode(*self.ask(memory, ids, mask), answer)

    def generate(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """The token ids (B, G) that the decoder gives to a query after the memory; arguments are those of :meth:`read`.

        ``options`` are those of ``generate`` in transformers.

        Raises:
            InputError: when the query is empty, or the memory is of another model.
        """
        hidden, seen = self.ask(memory, ids, mask)
        states = BaseModelOutput(last_hidden_state=hidden)
        return self.base.generate(encoder_outputs=states, attention_mask=seen.long(), **options)[:, 1:]

    def ask(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The states (B, R, hidden) that the decoder reads for a query after the memory, and their mask (B, R) bool.

        One call serves several answers. For arguments and errors, see :meth:`read`.
        """
        rows, memory = self._rows(memory, ids, mask), self.close(memory)
        samples = [Sample([Step(s) for s in text], Step(row)) for text, row in zip(memory.text, rows, strict=True)]
        return self._encode(memory, self._lay_out(memory, samples))

    def decode(self, hidden: Tensor, seen: Tensor, answer: Tensor) -> Tensor:
        """Logits (B, A, V) of the tokens of an answer (B, A); ``hidden`` and ``seen`` come from :meth:`ask`."""
        shifted = pad(answer.to(self.device), (1, 0), value=self.base.config.decoder_start_token_id)[:, :-1]
        return self.base(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=seen.long(),
            decoder_input_ids=shifted.masked_fill(shifted == IGNORE, 0),
            use_cache=False,
        ).logits[..., : self.vocab_size]

    def reader(self, hidden: Tensor, seen: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that reads ids (B, T) of an answer, first the start token, and returns the logits of the next.

        ``hidden`` and ``seen`` come from :meth:`ask`. The function is made for :func:`ccm.engine.sampling.tokens`, and
        keeps nothing for gradients.
        """
        cache, states = EncoderDecoderCache(DynamicCache(), DynamicCache()), BaseModelOutput(last_hidden_state=hidden)

        @torch.no_grad()
        def read(ids: Tensor) -> Tensor:
            return self.base(
                encoder_outputs=states,
                attention_mask=seen.long(),
                decoder_input_ids=ids.to(self.device),
                **given_cache(self.base, cache),
                use_cache=True,
            ).logits[:, -1, : self.vocab_size]

        return read

    def _rows(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
        """The token ids of every row, without padding, after a check."""
        mask, _ = self.check_text(memory, ids, mask)
        return [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]

    def _lay_out(self, memory: EncoderMemory, samples: Sequence[Sample]) -> EncoderLayout:
        held = [*zip(memory.mask.sum(1).tolist(), memory.offset.tolist(), strict=True)]
        return build_encoder_layout(samples, self.config, self.rule, pad_id=0, held=held).to(self.device)

    def _written(self, memory: EncoderMemory, samples: Sequence[Sample]) -> EncoderMemory:
        """The memory with the entries of the COMP tokens that end each row of the samples."""
        layout, n = self._lay_out(memory, samples), self.config.n_tok
        current = self.pass_of(layout, keep=n)
        hidden = self.encode(current)

        def joined(old: Sequence[Tensor], kind: int) -> tuple[Tensor, ...]:
            return tuple(torch.cat([x, current.kept[layer][kind]], dim=2) for layer, x in enumerate(old))

        return replace(
            memory,
            keys=joined(memory.keys, 0),
            values=joined(memory.values, 1),
            states=torch.cat([memory.states, hidden[:, -n:]], dim=1),
            mask=pad(memory.mask, (0, n), value=True),
            positions=torch.cat([memory.positions, layout.positions[:, -n:]], dim=1),
            offset=layout.positions[:, -1] + 1,
        )

    def encode(self, current: EncoderPass) -> Tensor:
        """The last hidden states (B, T, hidden) of the encoder after a pass."""
        embedded = self._embed(current.layout.ids, current.layout.slots)
        return self.base.get_encoder()(inputs_embeds=embedded, ccm=current).last_hidden_state

    def _encode(self, memory: EncoderMemory, layout: EncoderLayout) -> tuple[Tensor, Tensor]:
        """The states that the decoder reads, moved to the left, and their mask; see :meth:`ask`."""
        current = self.pass_of(layout, memory)
        states, cross = torch.cat([memory.states, self.encode(current)], dim=1), current.cross
        order = (~cross).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(cross.sum(1).max())]
        picked = states.gather(1, order[:, :, None].expand(-1, -1, states.shape[2]))
        return picked, cross.gather(1, order)


def _check(config: CCMConfig) -> None:
    rule = rule_class(config.rule)
    faults = {
        "recurrent is true: an encoder reads every step by itself; set it to false": config.recurrent
        and rule.compresses == "step",
        f"rule is {config.rule!r}: its weights depend on hidden states of decoders; set it to 'merge' "
        "or 'ema'": rule.needs_content,
        "sink is true: an encoder reads no BOS token; set it to false": config.sink,
        f"embeddings is {config.embeddings!r}; set it to 'separate'": config.embeddings != "separate",
    }
    if found := [fault for fault, there in faults.items() if there]:
        raise ConfigError(f"An encoder-decoder cannot do this: {'; '.join(found)}.")
