"""Streams: equal to the definition, token by token with keys rotated anew each time; of constant size; saved and gone
on from; refused where they have no meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import streamed
from helpers import (
    ABSOLUTE,
    FAMILIES,
    POSITIONS,
    TOLERANCE,
    VOCAB,
    WINDOW,
    assert_close,
    rewrite,
    tiny_base,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer, DynamicCache

from ccm.core.errors import ConfigError, InputError, MemoryFileError, UnsupportedModelError
from ccm.engine.attention import CompressingPass
from ccm.engine.call import Call
from ccm.engine.decoder import CCMModel
from ccm.engine.families import attention_modules
from ccm.engine.reach import Reach
from ccm.models.builtin import WEIGHTS
from ccm.streams.evictions import EVICTIONS, StreamSettings
from ccm.streams.stream import StreamingMemory

SMALL = {"cache_size": 14, "span": 5, "memory_size": 4, "sink": 1}
TOKENS = 45
RULES = ("concat", "merge", "gate")


def text(rows: int = 1, tokens: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def by_tokens(stream: StreamingMemory, ids: Tensor) -> Tensor:
    """The logits of a text that is fed one token at a time."""
    return torch.cat([stream.feed(ids[:, i : i + 1]) for i in range(ids.shape[1])], dim=1)


class Definition:
    """A stream as SEMANTICS defines it: one token a pass; keys are kept without rotary embedding and rotated by their
    index at every token. For Llama's plain rope, whose formula stands here once more."""

    def __init__(self, model: CCMModel, settings: StreamSettings, batch: int = 1) -> None:
        self.model, self.settings, self.memory, self.evictions = model, settings, 0, 0
        self.keys = [torch.zeros(batch, h, 0, d) for h, d in model.empty_memory().sizes]
        self.values = [x.clone() for x in self.keys]
        self.lengths: list[int] = []

    @staticmethod
    def rotate(keys: Tensor, positions: Tensor) -> Tensor:
        half = keys.shape[-1] // 2
        angle = positions[:, None] * 10000.0 ** (-torch.arange(half) / half)
        turned = torch.complex(keys[..., :half], keys[..., half:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([turned.real, turned.imag], dim=-1)

    def cache(self, length: int) -> DynamicCache:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(zip(self.keys, self.values, strict=True)):
            cache.update(self.rotate(key[:, :, :length], torch.arange(length)), value[:, :, :length], layer)
        return cache

    def fresh(self, cache: DynamicCache, start: int, count: int) -> list[tuple[Tensor, Tensor]]:
        """The last columns that a pass has written at positions from ``start`` on, keys without rotary embedding."""
        back = -torch.arange(start, start + count)
        return [(self.rotate(x.keys[:, :, -count:], back), x.values[:, :, -count:]) for x in cache.layers]

    @torch.no_grad()
    def feed(self, ids: Tensor) -> Tensor:
        logits = []
        for token in ids.T[:, :, None]:
            length = self.keys[0].shape[2]
            cache = self.cache(length)
            place = {"position_ids": torch.full_like(token, length), "past_key_values": cache}
            mask = torch.ones(len(token), length + 1, dtype=torch.long)
            logits.append(self.model.base(token, attention_mask=mask, **place).logits)
            self.put(length, *zip(*self.fresh(cache, length, 1), strict=True))
            if length >= self.settings.cache_size:
                self.evict()
            self.lengths.append(self.keys[0].shape[2])
        return torch.cat(logits, dim=1)

    def put(self, start: int, keys: Any, values: Any, end: int | None = None) -> None:
        """Columns in the place of those from ``start`` to ``end``."""
        for old, new in ((self.keys, keys), (self.values, values)):
            for layer, fresh in enumerate(new):
                rest = old[layer][:, :, len(old[layer][0, 0]) if end is None else end :]
                old[layer] = torch.cat([old[layer][:, :, :start], fresh, rest], dim=2)

    def evict(self) -> None:
        sink, span, most, n = self.settings.sink, self.settings.span, self.settings.memory_size, self.model.config.n_tok
        self.evictions += 1
        if self.settings.evict != "compress":
            grown = min(n * self.evictions, most) - min(n * (self.evictions - 1), most)
            dropped = 1 if self.settings.evict == "window" else span - grown
            nothing = [x[:, :, :0] for x in self.keys]
            return self.put(sink, nothing, nothing, sink + dropped)
        end, rule = sink + self.memory + span, self.model.rule
        batch, cache = len(self.keys[0]), self.cache(end)
        slots = torch.arange(n).expand(batch, n)
        mask, columns = torch.ones(batch, end, dtype=torch.bool), torch.arange(end).expand(batch, end)
        step = torch.full((batch,), self.evictions)
        current = CompressingPass(mask, columns, end + slots, None, rule=rule, n_tok=n, step=step, layers=99)
        every = torch.ones(batch, end + n, dtype=torch.bool)
        self.model.run(cache, torch.zeros_like(slots), slots, end + slots, every, current)
        keys, values = zip(*self.fresh(cache, end, n), strict=True)
        folded = [
            [
                rule.fold(x[:, :, sink : sink + self.memory], new, current.weights[i])[:, :, -most:]
                for i, (x, new) in enumerate(zip(old, fresh, strict=True))
            ]
            for old, fresh in ((self.keys, keys), (self.values, values))
        ]
        self.put(sink, *folded, end)
        self.memory = folded[0][0].shape[2]
        return None


@pytest.mark.covers("rule", "evict", "sink")
@pytest.mark.parametrize(
    ("rule", "evict", "sink"),
    [*((rule, "compress", 1) for rule in RULES), *(("concat", evict, sink) for evict in EVICTIONS for sink in (0, 3))],
)
def test_a_stream_equals_its_definition(rule: str, evict: str, sink: int) -> None:
    """Logits, lengths and evictions, of two rows, in whole passes and token by token."""
    model = tiny_model(rule, n_tok=2)
    settings = StreamSettings(**{**SMALL, "sink": sink, "evict": evict})
    ids = text(2)
    slow = Definition(model, settings, batch=2)
    expected = slow.feed(ids)
    whole, single = (StreamingMemory(model, settings, batch=2) for _ in range(2))
    assert_close(whole.feed(ids), expected)
    lengths = []
    for i in range(TOKENS):
        assert_close(single.feed(ids[:, i : i + 1])[:, 0], expected[:, i])
        lengths.append(single.entries)
    assert lengths == slow.lengths
    assert max(lengths) == SMALL["cache_size"]
    assert whole.evictions == single.evictions == slow.evictions > 4
    held = whole.held.entries
    for layer, (keys, values) in enumerate(zip(slow.keys, slow.values, strict=True)):
        assert_close(held.keys[layer], Definition.rotate(keys, torch.arange(len(held))))
        assert_close(held.values[layer], values)


@pytest.mark.covers("n_tok", "memory", cases=3)
@pytest.mark.parametrize(("n_tok", "memory"), [(1, 4), (3, 4), (4, 4), (3, 5)])
def test_a_memory_may_be_cut_within_a_group(n_tok: int, memory: int) -> None:
    model = tiny_model("concat", n_tok=n_tok)
    settings = StreamSettings(**{**SMALL, "cache_size": 17, "memory_size": memory})
    slow = Definition(model, settings)
    expected = slow.feed(text())
    stream = StreamingMemory(model, settings)
    assert_close(stream.feed(text()), expected)
    assert stream.held.memory == slow.memory == memory


@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=5), evict=st.sampled_from([*EVICTIONS]))
def test_the_pieces_in_which_a_text_comes_do_not_matter(pieces: list[int], evict: str) -> None:
    model, settings = tiny_model(n_tok=2), StreamSettings(**{**SMALL, "evict": evict})
    ids = text(1, sum(pieces))
    one, other = StreamingMemory(model, settings), StreamingMemory(model, settings)
    assert_close(torch.cat([one.feed(piece) for piece in ids.split(pieces, dim=1)], dim=1), other.feed(ids))
    assert (one.tokens, one.entries, one.evictions) == (other.tokens, other.entries, other.evictions)


@pytest.mark.covers("evict", cases=8)
@pytest.mark.parametrize("evict", EVICTIONS)
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ABSOLUTE])
def test_whole_passes_equal_single_tokens_in_every_family(family: str, evict: str) -> None:
    """Beyond the limits of their layers, too."""
    assert streamed(family, evict) < TOLERANCE


@pytest.mark.parametrize("family", ABSOLUTE)
def test_a_model_without_rotary_positions_is_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="no rotary positions, so its keys cannot be moved"):
        StreamingMemory(tiny_model(family=family))


def test_sink_and_memory_are_seen_beyond_a_sliding_window_and_text_is_not() -> None:
    stream = StreamingMemory(tiny_model(family="mistral_window", n_tok=2), StreamSettings(**SMALL))
    stream.feed(text(1, 30))
    assert stream.held.memory == 4
    length = stream.entries
    seen = stream._eviction.view(stream.held, 2).mask(Reach(WINDOW))[0, 0, :, :length]
    for token in range(2):
        near = [length + token - column < WINDOW for column in range(5, length)]
        assert seen[token].tolist() == [True] * 5 + near


@pytest.mark.parametrize(("family", "far"), [("llama", 8), ("mistral_window", 3), ("llama4", 1)])
def test_in_a_full_window_text_is_as_far_away_as_if_each_token_were_alone(family: str, far: int) -> None:
    """Each stands at position 9, after a sink and 8 tokens of text: a chunk of 4 begins at 8."""
    model = tiny_model(family=family)
    stream = StreamingMemory(model, StreamSettings(9, 2, 0, 1, evict="window"))
    stream.feed(text(1, 9))
    current = stream._eviction.view(stream.held, 3)
    attention, keys = attention_modules(model.base)[0], torch.randn(1, 2, 12, 8)

    def stock(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, **_: Any) -> tuple:
        return mask == 0, None

    window = getattr(model.base.config, "sliding_window", None)
    options = {"sliding_window": window}
    seen, _ = current.attend(Call(stock, attention, torch.randn(1, 4, 3, 8), keys, keys, None, options))
    for token in range(3):
        near = [0 <= token + 9 - column <= far for column in range(1, 12)]
        assert seen[0, 0, token].tolist() == [copy == token for copy in range(3)] + near


@pytest.mark.parametrize("evict", EVICTIONS)
def test_eager_equals_sdpa(evict: str) -> None:
    settings = StreamSettings(**{**SMALL, "evict": evict})
    one, other = (StreamingMemory(tiny_model(attn=attn), settings).feed(text()) for attn in ("sdpa", "eager"))
    assert_close(one, other)


def test_a_text_shorter_than_the_cache_is_read_as_the_stock_model_reads_it() -> None:
    ids = text(2, 11)
    for evict in EVICTIONS:
        stream = StreamingMemory(tiny_model(), StreamSettings(**{**SMALL, "evict": evict}), batch=2)
        with torch.no_grad():
            expected = tiny_base()(ids).logits
        assert_close(stream.feed(ids), expected)
        assert (stream.entries, stream.evictions, stream.tokens) == (11, 0, 11)


def test_what_was_compressed_still_matters_and_what_was_dropped_does_not() -> None:
    """Another text that is long gone changes the last logits through the memory alone."""
    ids, other = text(1, 60), text(1, 60)
    other[:, 5:9] = (other[:, 5:9] + 11) % VOCAB
    changes = {}
    for evict in ("compress", "window"):
        settings = StreamSettings(**{**SMALL, "memory_size": 12, "cache_size": 24, "evict": evict})
        one, two = (StreamingMemory(tiny_model(), settings).feed(x)[0, -1] for x in (ids, other))
        changes[evict] = (one - two).abs().max().item()
    assert changes["compress"] > 1e-3
    # Through the layers a window reaches further than its width: 3 layers of 22 tokens.
    far, gone = text(1, 90), text(1, 90)
    gone[:, 5:9] = (gone[:, 5:9] + 11) % VOCAB
    one, two = (StreamingMemory(tiny_model(), settings).feed(x)[0, -1] for x in (far, gone))
    assert (one - two).abs().max() < 1e-5


def test_nll_is_that_of_the_logits_and_leaves_the_first_token_out() -> None:
    ids = text(2)
    stream, other = (StreamingMemory(tiny_model(), StreamSettings(**SMALL), batch=2) for _ in range(2))
    nll = torch.cat([stream.nll(ids[:, :30]), stream.nll(ids[:, 30:31]), stream.nll(ids[:, 31:])], dim=1)
    expected = -other.feed(ids).float().log_softmax(-1)[:, :-1].gather(2, ids[:, 1:, None])[:, :, 0]
    assert nll.shape == (2, TOKENS - 1)
    assert_close(nll, expected.float())


@pytest.mark.parametrize("evict", EVICTIONS)
def test_a_batch_equals_its_rows_and_rows_go_on_by_themselves(evict: str) -> None:
    model, settings = tiny_model(), StreamSettings(**{**SMALL, "evict": evict})
    ids = text(3)
    together = StreamingMemory(model, settings, batch=3)
    both = together.feed(ids[:, :30])
    for row in range(3):
        alone = StreamingMemory(model, settings)
        assert_close(alone.feed(ids[row : row + 1, :30]), both[row : row + 1])
    few = together.rows([2, 0])
    assert_close(few.feed(ids[[2, 0], 30:]), together.feed(ids[:, 30:])[[2, 0]])
    for rows in ([], [3], [-1]):
        with pytest.raises(InputError, match="name some of the 3 streams"):
            together.rows(rows)


@pytest.mark.parametrize("evict", EVICTIONS)
def test_generation_equals_feeding_and_leaves_the_stream_as_it_is(evict: str) -> None:
    model, settings = tiny_model(), StreamSettings(**{**SMALL, "evict": evict})
    stream = StreamingMemory(model, settings, batch=2)
    logits = stream.feed(text(2, 23))[:, -1]
    said, twin = [], stream.fork()
    for _ in range(14):
        said.append(logits.argmax(-1))
        logits = twin.feed(said[-1][:, None])[:, -1]
    assert torch.equal(stream.generate(14), torch.stack(said, dim=1))
    assert (stream.tokens, twin.tokens) == (23, 37)
    eos = int(said[3][0])
    until = StreamingMemory(model, settings)
    until.feed(text(2, 23)[:1])
    ended = until.generate(14, ends=[eos])[0].tolist()
    assert ended == [int(x[0]) for x in said][: len(ended)]
    assert ended.index(eos) == len(ended) - 1


def test_no_tensor_grows() -> None:
    """Every tensor of a stream, with all the memory behind it, is as large after 400 tokens as after 100."""
    model = tiny_model()
    for evict in EVICTIONS:
        stream, sizes = StreamingMemory(model, StreamSettings(cache_size=60, span=40, evict=evict)), []
        for _ in range(4):
            stream.nll(text(1, 100))
            held, last = stream.held.entries, stream.last
            assert last is not None
            tensors = [*held.keys, *held.values, held.ids, last]
            assert all(x.untyped_storage().nbytes() == x.nbytes for x in tensors)
            sizes.append(stream.nbytes / stream.entries)
        assert len({*sizes}) == 1
        assert stream.entries <= 60


@pytest.mark.covers("evict", "tokens")
@pytest.mark.parametrize("evict", EVICTIONS)
@pytest.mark.parametrize("tokens", [0, 1, 14, 15, 32])
def test_a_saved_stream_goes_on_as_if_it_had_not_stopped(tmp_path: Path, tokens: int, evict: str) -> None:
    model, settings = tiny_model("merge"), StreamSettings(**{**SMALL, "evict": evict})
    stream = StreamingMemory(model, settings, batch=2)
    if tokens:
        stream.feed(text(2)[:, :tokens])
    stream.save(tmp_path / "a.stream")
    again = StreamingMemory.load(tmp_path / "a.stream", model)
    assert (again.settings, again.tokens, again.evictions) == (settings, tokens, stream.evictions)
    assert torch.equal(again.nll(text(2)[:, tokens:]), stream.nll(text(2)[:, tokens:]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, m: t.pop("keys.1"), "lacks a part.*keys.1"),
        (lambda t, m: t.pop("ids"), "lacks a part.*ids"),
        (lambda t, m: t.pop("last"), "its logits do not match its count of 40 tokens"),
        (lambda t, m: t["values.0"].fill_(torch.nan), "not finite in values.0"),
        (lambda t, m: t.update({"ids": t["ids"][:, 1:].clone()}), "sizes disagree"),
        (lambda t, m: t.update({"last": t["last"].half()}), "it needs one floating-point dtype"),
        (lambda t, m: t.update({"more": t["last"].clone()}), "holds .*more.* beside its parts"),
        (lambda t, m: m.update(tokens=-1), "not a count"),
        (lambda t, m: m.update(tokens=3), "allowed: "),
        (lambda t, m: m["settings"].update(span=19), "cache_size is 14"),
        (lambda t, m: m["settings"].update(spam=m["settings"].pop("span")), "unknown keys"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    model, path = tiny_model(), tmp_path / "a.stream"
    stream = StreamingMemory(model, StreamSettings(**SMALL))
    stream.feed(text(1, 40))
    stream.save(path)
    rewrite(path, change)
    with pytest.raises(MemoryFileError, match=message):
        StreamingMemory.load(path, model)


def test_a_stream_of_another_model_and_other_files_are_refused(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "a.stream"
    stream = StreamingMemory(model, StreamSettings(**SMALL))
    stream.feed(text(1, 40))
    stream.save(path)
    stream.save(path)  # over its own
    for other, message in ((tiny_model(seed=5), "another base model"), (tiny_model("merge"), "with rule")):
        with pytest.raises(MemoryFileError, match=message):
            StreamingMemory.load(path, other)
    with pytest.raises(
        MemoryFileError, match=r"a\.stream exists and holds a stream, .*, and what is saved is a memory"
    ):
        model.empty_memory().save(path)
    with pytest.raises(MemoryFileError, match="There is no file"):
        StreamingMemory.load(tmp_path / "none", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache_size": 64, "span": 64}, "cache_size is 64; .* need at least 74"),
        ({"cache_size": 12}, "need at least 74"),
        ({"span": 0}, "span is 0"),
        ({"sink": -1}, "sink is -1"),
        ({"tolerance": -1}, "tolerance is -1"),
        ({"memory_size": 1}, "memory_size is 1; the 2 entries"),
        ({"span": 2}, "longer than the 2"),
        ({"span": 2, "evict": "blocks"}, "longer than the 2"),
        ({"evict": "forget"}, "allowed: compress, blocks, window"),
        ({"cache_size": POSITIONS}, f"at most {POSITIONS - 1}"),
        ({"cache_size": 150.0}, "a whole number"),
        ({"cache_size": 110, "tolerance": 3}, "give one, or set tolerance=0"),
    ],
)
def test_sizes_without_meaning_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamingMemory(tiny_model(n_tok=2), StreamSettings(**{"cache_size": 100, **settings}))


@pytest.mark.parametrize("rule", ["full", "none", "gist", "pos_control"])
def test_a_rule_that_does_not_compress_steps_is_refused_and_may_still_drop(rule: str) -> None:
    model = tiny_model(rule)
    with pytest.raises(ConfigError, match=f"{rule!r} does not compress step by step"):
        StreamingMemory(model, StreamSettings(**SMALL))
    for evict in ("blocks", "window"):
        StreamingMemory(model, StreamSettings(**{**SMALL, "evict": evict})).feed(text())


def test_a_model_whose_keys_cannot_be_moved_is_refused() -> None:
    base = tiny_base(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="dynamic"):
        StreamingMemory(tiny_model(base=base), StreamSettings(**SMALL))


def test_input_without_meaning_is_refused() -> None:
    stream = StreamingMemory(tiny_model(), StreamSettings(**SMALL))
    with pytest.raises(InputError, match="has read nothing"):
        stream.generate(3)
    for ids in (text(2), text(1)[0], text(1, 0)):
        with pytest.raises(InputError, match=r"reads \(1, T\)"):
            stream.feed(ids)
    with pytest.raises(InputError, match="reach from 0 to 97"):
        stream.feed(torch.tensor([[0, VOCAB]]))
    with pytest.raises(ConfigError, match="without a tokenizer"):
        stream.feed("text")
    assert stream.tokens == 0
    stream.feed(text())
    with pytest.raises(InputError, match="at least 1"):
        stream.generate(0)


def test_text_is_read_with_bos_at_the_beginning_alone() -> None:
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    base = tiny_base(vocab_size=len(tokenizer))
    stream = StreamingMemory(tiny_model(base=base), StreamSettings(**SMALL), tokenizer)
    first = stream.encode("My name is Anna.")
    assert first[0, 0] == tokenizer.bos_token_id
    stream.feed("My name is Anna.")
    assert stream.tokens == first.shape[1]
    assert stream.encode("My name is Anna.").tolist() == first[:, 1:].tolist()
    with pytest.raises(InputError, match="empty"):
        stream.feed("")


@pytest.mark.covers
@pytest.mark.parametrize("batch", [1, 2])
def test_spans_end_where_sentences_do_within_the_tolerance(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best end counts, of equals the nearest; where none is near, the span is the settings' own."""
    tokenizer = AutoTokenizer.from_pretrained(WEIGHTS / "base")
    settings = StreamSettings(cache_size=24, span=8, memory_size=4, sink=1, tolerance=3)
    stream = StreamingMemory(tiny_model(), settings, tokenizer, batch=batch)
    eviction = stream._eviction
    for strengths, span in (
        ([0] * 20, 8),
        ([0, 0, 0, 2, *[0] * 16], 8),  # too early
        ([0] * 4 + [1] + [0] * 15, 5),
        ([0] * 10 + [1] + [0] * 9, 11),
        ([0] * 11 + [1] + [0] * 8, 8),  # too late
        ([0] * 5 + [1, 0, 1] + [0] * 12, 8),
        ([0] * 5 + [1, 0, 0, 1] + [0] * 11, 9),
        ([0] * 5 + [2, 0, 0, 1] + [0] * 11, 6),
    ):
        monkeypatch.setattr(eviction, "ends", lambda ids, s=strengths: torch.tensor(s).expand(len(ids), -1))
        assert eviction._span(torch.zeros(batch, 20, dtype=torch.long)) == span
    monkeypatch.setattr(eviction, "ends", lambda ids: (ids % 5 == 0).long())
    ids = text(batch, 70)
    whole = stream.feed(ids)
    other = StreamingMemory(tiny_model(), settings, tokenizer, batch=batch)
    monkeypatch.setattr(other._eviction, "ends", lambda ids: (ids % 5 == 0).long())
    assert_close(by_tokens(other, ids), whole)
    plain = StreamingMemory(tiny_model(), StreamSettings(cache_size=24, span=8, memory_size=4, sink=1), batch=batch)
    assert (plain.feed(ids) - whole).abs().max() > 1e-3
