"""CCMEncoderDecoder: compressed context memory in the encoder of a stock encoder-decoder, which its decoder reads.

parallel   layout -> one pass of the encoder -> what a decoder may read of it -> logits
online     step -> keys, values and last hidden states at its COMP tokens -> memory;  memory + query -> the decoder

Every step is read by itself (not recurrent); see :mod:`ccm.engine.t5.memory` for what is held of it.
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

    Under rules that mix, the memory is what SUM tokens make of all COMP tokens: they have embeddings of their own, and
    all COMP entries stay in the memory, for the next SUM tokens will look at each of them again.

    Raises:
        ConfigError: also when the config asks for what an encoder does not have: recurrence, a sink, gates, embeddings
            in the base's table.
    """

    encoder_decoder = True
    build_layout = staticmethod(build_encoder_layout)
    encoder_pass: ClassVar[type[EncoderPass]] = EncoderPass

    def __init__(self, base: PreTrainedModel, config: CCMConfig, *, stage1: PlainLoRA | None = None) -> None:
        check_encoders()
        _check(config)
        super().__init__(base, config, stage1=stage1)
        self._biased = attention_modules(self.base)[:1]  # in a list: the module stays the base's, not ours
        self.base.get_output_embeddings().register_forward_pre_hook(pick)

    def _embeddings(self, most: int) -> int:
        return 2 * most if self.rule.mixes else most  # COMP, then SUM

    def load_memory(self, path: str | Path) -> EncoderMemory:
        """A saved memory that this model and adapter made.

        Raises:
            MemoryFileError: see :meth:`EncoderMemory.load`; also when its sizes or ids are not the model's.
        """
        memory = EncoderMemory.load(path, self.origin, self.part_sizes)
        highest = max((token for text in memory.text for step in text for token in step), default=0)
        if highest >= self.vocab_size:
            raise MemoryFileError(f"{path} holds text of another model than this; the file was altered.")
        return memory.to(self.device, self.base.dtype)

    # Parallel --------------------------------------------------------------------------------------------------------

    def forward(self, layout: EncoderLayout) -> ParallelOutput:
        """All steps, the query and the answer in one pass.

        Raises:
            InputError: when the layout has no target: there is nothing that the decoder should say.
        """
        targets = layout.targets.flatten()
        trained = (targets != IGNORE).nonzero().flatten()
        if not len(trained):
            raise InputError("No row of this batch has an answer; give the last tokens of the queries targets.")
        hidden, cross = self._encode(self.empty_memory(len(layout.ids)), layout)
        with head_reads(trained):
            logits = self.decode(hidden, cross, layout.targets)
        return ParallelOutput(logits[0], targets[trained])

    def encode(self, layout: EncoderLayout) -> Tensor:
        """(B, T, hidden) last hidden states of the encoder for a whole batch."""
        return self._run(self.begun(layout))

    def begun(self, layout: EncoderLayout, memory: EncoderMemory | None = None, keep: int = 0) -> EncoderPass:
        """The pass of a layout after a memory, or after none: what its tokens attend to, before they are read.

        It will keep the keys and values of the last ``keep`` tokens.
        """
        memory = self.empty_memory(len(layout.ids)) if memory is None else memory
        held = [*zip(memory.keys, memory.values, strict=True)]
        return self.encoder_pass(layout, self.rule, self._biased[0], memory.mask, memory.positions, held, keep)

    # Online ----------------------------------------------------------------------------------------------------------

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
            mask: (B, T) bool, False at padding; all True where None.

        Raises:
            InputError: when a step is empty, or the memory is closed or foreign.
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
        """The memory as a query reads it: under a rule that compresses once a context, COMP tokens follow now.

        ``read`` and ``generate`` do this by themselves; it is worth saving where a context is complete.
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
            answer: (B, A) token ids that the decoder says; its padding is on the right.
            mask: (B, T) bool, False at padding.

        Raises:
            InputError: when the query is empty, or the memory is foreign.
        """
        return self.decode(*self.ask(memory, ids, mask), answer)

    def generate(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None = None, **options: Any) -> Tensor:
        """(B, G) what the decoder says to a query after the memory; ``options`` are those of transformers' generate.

        Raises:
            InputError: when the query is empty, or the memory is foreign.
        """
        return self.say(*self.ask(memory, ids, mask), **options)

    def ask(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What a decoder reads for a query after the memory: states (B, R, hidden), and which of them are there (B, R).

        So a query is read once for several answers; arguments and errors as of :meth:`read`.
        """
        rows, memory = self._rows(memory, ids, mask), self.close(memory)
        samples = [Sample([Step(s) for s in text], Step(row)) for text, row in zip(memory.text, rows, strict=True)]
        return self._encode(memory, self._lay_out(memory, samples))

    def decode(self, hidden: Tensor, seen: Tensor, answer: Tensor) -> Tensor:
        """Logits (B, A, V) of the tokens of an answer (B, A), each after those before it; see :meth:`ask`."""
        start = self.base.config.decoder_start_token_id
        begun = pad(answer.to(self.device), (1, 0), value=start)[:, :-1]
        return self.base(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=seen.long(),
            decoder_input_ids=begun.masked_fill(begun == IGNORE, 0),
            use_cache=False,
        ).logits[..., : self.vocab_size]

    def speaker(self, hidden: Tensor, seen: Tensor) -> Callable[[Tensor], Tensor]:
        """Reads ids (B, T) that the decoder says, the start token first, and gives the logits (B, V) of the next; see
        :meth:`ask` and :mod:`ccm.chat.reply`. Nothing is kept for gradients."""
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

    def say(self, hidden: Tensor, seen: Tensor, **options: Any) -> Tensor:
        """(B, G) what the decoder says of its own; see :meth:`ask` and :meth:`generate`."""
        states = BaseModelOutput(last_hidden_state=hidden)
        return self.base.generate(encoder_outputs=states, attention_mask=seen.long(), **options)[:, 1:]

    # -----------------------------------------------------------------------------------------------------------------

    def _rows(self, memory: EncoderMemory, ids: Tensor, mask: Tensor | None) -> list[tuple[int, ...]]:
        """The token ids of every row, checked."""
        mask, _ = self.check_text(memory, ids, mask)
        return [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]

    def _lay_out(self, memory: EncoderMemory, samples: Sequence[Sample]) -> EncoderLayout:
        held = [*zip(memory.mask.sum(1).tolist(), memory.offset.tolist(), strict=True)]
        return build_encoder_layout(samples, self.config, self.rule, pad_id=0, held=held).to(self.device)

    def _written(self, memory: EncoderMemory, samples: Sequence[Sample]) -> EncoderMemory:
        """The memory with the entries of what was read by itself: the COMP tokens that end each row."""
        layout, n = self._lay_out(memory, samples), self.config.n_tok
        current = self.begun(layout, keep=n)
        hidden = self._run(current)

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

    def _run(self, current: EncoderPass) -> Tensor:
        """(B, T, hidden) last hidden states of the encoder."""
        embedded = self._embed(current.layout.ids, current.layout.slots)
        return self.base.get_encoder()(inputs_embeds=embedded, ccm=current).last_hidden_state

    def _encode(self, memory: EncoderMemory, layout: EncoderLayout) -> tuple[Tensor, Tensor]:
        """As :meth:`ask`: what the decoder reads alone, moved to the left of the padding."""
        current = self.begun(layout, memory)
        states, cross = torch.cat([memory.states, self._run(current)], dim=1), current.cross
        order = (~cross).to(torch.uint8).argsort(dim=1, stable=True)[:, : int(cross.sum(1).max())]
        picked = states.gather(1, order[:, :, None].expand(-1, -1, states.shape[2]))
        return picked, cross.gather(1, order)


def _check(config: CCMConfig) -> None:
    rule = rule_class(config.rule)
    faults = {
        "recurrent is true: an encoder reads every step by itself; set it to false": config.recurrent
        and rule.compresses == "step",
        f"rule is {config.rule!r}: its weights depend on what is written, which is defined for decoders; take 'merge' "
        "or 'ema'": rule.needs_content,
        "sink is true: an encoder reads no BOS token; set it to false": config.sink,
        f"embeddings is {config.embeddings!r}; set it to 'separate'": config.embeddings != "separate",
    }
    if found := [fault for fault, there in faults.items() if there]:
        raise ConfigError(f"An encoder-decoder cannot do this: {'; '.join(found)}.")
