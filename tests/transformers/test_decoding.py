"""Generation that compresses as it goes, on tiny models; in the Hub's form, on the built-in one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import PAD, tiny_base, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LogitsProcessorList, TemperatureLogitsWarper
from transformers.generation.streamers import BaseStreamer

from ccm.core.errors import ConfigError, InputError
from ccm.engine.decoder import CCMModel
from ccm.models.builtin import WEIGHTS
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory
from ccm.transformers import CUSTOM_GENERATE, StreamDecoding

SIZES = StreamSettings(cache_size=16, span=6, memory_size=4)
PROMPT = torch.tensor([[*range(3, 40)], [*range(40, 77)]])  # more than twice the cache


class Heard(BaseStreamer):
    """Keeps what a streamer gets."""

    def __init__(self) -> None:
        self.parts: list[list] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.parts.append(value.tolist())

    def end(self) -> None:
        self.ended = True


def loop(model: CCMModel, ids: Tensor, count: int) -> tuple[Tensor, StreamingMemory]:
    """The reference: a stream that chooses the likeliest token, and reads it."""
    stream = StreamingMemory(model, SIZES, batch=len(ids))
    stream.feed(ids)
    for left in range(count, 0, -1):
        assert stream.last is not None
        ids = torch.cat([ids, stream.last.argmax(-1, keepdim=True)], dim=1)
        if left > 1:
            stream.feed(ids[:, -1:])
    return ids, stream


def continued(model: CCMModel, ids: Tensor = PROMPT, decoding: StreamDecoding | None = None, **options: Any) -> Tensor:
    decoding = decoding or StreamDecoding(model, SIZES)
    return model.base.generate(ids, **{"custom_generate": decoding, "max_new_tokens": 20, "do_sample": False} | options)


@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_it_equals_a_stream_that_reads_its_own_tokens(rule: str) -> None:
    model, heard = tiny_model(rule), Heard()
    decoding = StreamDecoding(model, SIZES, heard)
    text = continued(model, decoding=decoding)
    expected, stream = loop(model, PROMPT, 20)
    assert text.equal(expected)
    assert decoding.stream is not None
    assert decoding.stream.held.entries.ids.equal(stream.held.entries.ids)
    assert decoding.stream.evictions == stream.evictions > 6
    assert heard.parts == [PROMPT.tolist(), *text[:, 37:].T.tolist()]
    assert heard.ended
    assert continued(model, decoding=decoding).equal(text), "each call begins anew"


def test_rows_end_by_themselves_and_are_filled() -> None:
    model = tiny_model("concat")
    whole = continued(model)
    end = int(whole[0, 40])
    text = continued(model, eos_token_id=end, pad_token_id=PAD)
    for row, other in zip(text[:, 37:].tolist(), whole[:, 37:].tolist(), strict=True):
        kept = row.index(end) + 1 if end in row else len(row)
        assert row[:kept] == other[:kept]
        assert {*row[kept:]} <= {PAD}
    assert text[0, 41:].tolist() == [PAD] * (text.shape[1] - 41)


def test_tokens_are_chosen_as_generate_is_asked_to() -> None:
    model = tiny_model("concat")
    greedy = continued(model)
    assert continued(model, do_sample=True, top_k=1).equal(greedy)
    drawn = [continued(model, do_sample=True, top_k=0, temperature=5.0) for _ in range(2)]
    assert not drawn[0].equal(drawn[1])
    barred = continued(model, suppress_tokens=[int(greedy[0, 37])])
    assert barred[0, 37] != greedy[0, 37]
    flat = LogitsProcessorList([TemperatureLogitsWarper(3.0)])
    assert continued(model, logits_processor=flat).equal(greedy)
    several = continued(model, PROMPT[:1], do_sample=True, temperature=5.0, num_return_sequences=3)
    assert several.shape == (3, 57)
    assert len({*map(tuple, several.tolist())}) > 1


def test_what_a_stream_cannot_do_is_refused() -> None:
    model = tiny_model("concat")
    mask = torch.ones_like(PROMPT)
    mask[0, 0] = 0
    for options, error in (
        ({"attention_mask": mask}, "are padded"),
        ({"num_beams": 2}, "num_beams is 2"),
        ({"return_dict_in_generate": True}, "return_dict_in_generate is True"),
        ({"past_key_values": model.empty_memory(len(PROMPT)).cache()}, "goes on from no cache"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens is 3"),
        ({"decoding": StreamDecoding(tiny_model("concat"), SIZES)}, "of another model"),
    ):
        with pytest.raises(InputError, match=error):
            continued(model, **options)
    with pytest.raises(ConfigError, match="cannot|compress"):
        continued(tiny_model("gist"))


def test_the_folder_for_the_hub_generates_with_a_stock_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float64)
    hub: dict[str, Any] = {"custom_generate": CUSTOM_GENERATE, "trust_remote_code": True, "do_sample": False}
    heard = Heard()
    given = {"cache_size": 16, "span": 6, "memory_size": 4, "max_new_tokens": 20, "pad_token_id": 0}
    text = base.generate(PROMPT, adapter=WEIGHTS / "merge", streamer=heard, **hub, **given)
    again = base.generate(PROMPT, adapter=WEIGHTS / "merge", **hub, **given)
    model = CCMModel.from_pretrained(WEIGHTS / "merge", WEIGHTS / "base", dtype=torch.float64)
    expected = continued(model, pad_token_id=0)
    assert text.equal(expected)
    assert again.equal(expected)
    assert len(heard.parts) == 1 + expected.shape[1] - PROMPT.shape[1]
    with pytest.raises(ConfigError, match="already has an adapter"):
        base.generate(PROMPT, **hub)
    with pytest.raises(ConfigError, match="adapter=FOLDER"):
        tiny_base().generate(PROMPT, **hub)
