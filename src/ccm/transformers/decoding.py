"""Decoding methods for ``generate`` of transformers: the text is compressed as it is read and written.

prompt    pass, pass, ... -> stream: sink, memory, recent text
token     logits -> processors -> token -> stream           whenever the stream is full, its oldest text is compressed
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ccm.core.errors import InputError
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import MemoryCache
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory
from ccm.transformers.adapting import under_adapter

# What is refused of a generation config, and what it says where nobody asks for it.
_UNUSED = {"num_beams": 1, "return_dict_in_generate": False, "prompt_lookup_num_tokens": None, "dola_layers": None}


class StreamDecoding:
    """A decoding method that reads and writes a :class:`ccm.StreamingMemory`: ``generate(custom_generate=...)`` of
    ``model.base`` takes it.

    Args:
        model: the model; its rule updates the memory.
        settings: the sizes of the stream, and how to make room.
        streamer: gets the prompt and every token; transformers hands none on to a decoding method.

    Attributes:
        stream: that of the last call; it has read all but the last token of the text. None before the first call.
    """

    def __init__(
        self, model: CCMModel, settings: StreamSettings | None = None, streamer: BaseStreamer | None = None
    ) -> None:
        self._model, self._settings, self._streamer = model, settings, streamer
        self.stream: StreamingMemory | None = None

    @torch.no_grad()
    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **options: Any,
    ) -> Tensor:
        """Continue text, as ``generate`` asks for it.

        Args:
            model: the base of the model.
            input_ids: (B, T) token ids of the text, without padding.
            logits_processor: changes the logits of each token.
            stopping_criteria: say where a row ends.
            generation_config: says whether to sample, and what fills rows that have ended.
            options: of the model's forward; of these, only the mask and the cache are looked at.

        Returns:
            (B, T + G) the text with the new token ids.

        Raises:
            InputError: when the model is another one, a text is padded or stands after a cache, or more is asked for
                than ids: beams, speculation, or ``return_dict_in_generate``.
            ConfigError: when settings, rule and model do not fit together.
        """
        self._check(model, options, generation_config)
        stream = self.stream = StreamingMemory(self._model, self._settings, batch=len(input_ids))
        for _ in stream.passes(input_ids):
            pass
        self._put(input_ids)
        fill, text = generation_config._pad_token_tensor, input_ids
        ended = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        while True:
            assert stream.last is not None
            scores = logits_processor(text, stream.last.float())
            chances = scores.softmax(-1)
            chosen = torch.multinomial(chances, 1)[:, 0] if generation_config.do_sample else scores.argmax(-1)
            chosen = chosen if fill is None else chosen.where(~ended, fill)
            text = torch.cat([text, chosen[:, None]], dim=1)
            self._put(chosen)
            ended |= stopping_criteria(text, scores)
            if ended.all():
                break
            stream.feed(chosen[:, None])
        if self._streamer is not None:
            self._streamer.end()
        return text

    def _put(self, ids: Tensor) -> None:
        if self._streamer is not None:
            self._streamer.put(ids.cpu())

    def _check(self, model: PreTrainedModel, options: dict[str, Any], config: GenerationConfig) -> None:
        mask, cache = options.get("attention_mask"), options.get("cache", options.get("past_key_values"))
        if model is not self._model.base:
            raise InputError(
                "This decoding method is of another model; call generate of the base that it was made for."
            )
        if mask is not None and not mask.all():
            raise InputError(
                "The texts of this batch are padded; a stream reads texts of one length. Give them one by one."
            )
        if isinstance(cache, MemoryCache) or (cache is not None and cache.get_seq_length()):
            raise InputError("A stream begins with the text that it is given; it goes on from no cache. Leave it out.")
        for name, usual in _UNUSED.items():
            if (asked := getattr(config, name, None)) not in (None, usual):
                raise InputError(
                    f"{name} is {asked!r}; text that is compressed as it goes has no such thing: leave it."
                )


def generate(
    model: PreTrainedModel, adapter: str | Path | None = None, streamer: BaseStreamer | None = None, **options: Any
) -> Tensor:
    """What ``custom_generate/generate.py`` on the Hub runs: ``generate`` of a stock model, compressed as it goes.

    Args:
        model: the stock model; its first call puts the adapter on it, in place.
        adapter: folder or Hub id; one that ships for the model where None.
        streamer: gets the prompt and every token.
        options: fields of :class:`ccm.StreamSettings`, and what ``generate`` takes.

    Returns:
        (B, T + G) the text with the new token ids.

    Raises:
        ConfigError: when no adapter ships for the model, or settings, rule and model do not fit together.
        AdapterError: when the adapter is absent, damaged, or of another base model.
        InputError: as of :class:`StreamDecoding`.
    """
    names = [field.name for field in fields(StreamSettings) if field.name in options]
    settings = StreamSettings(**{name: options.pop(name) for name in names})
    decoding = StreamDecoding(under_adapter(model, adapter), settings, streamer)
    return model.generate(custom_generate=decoding, **options)
