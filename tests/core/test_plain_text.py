"""Plain text: what people write never becomes a token that steers a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_made import SPECIAL, TOOL, fallback_tokenizer, spaced_tokenizer, tokenizer, unigram_tokenizer

from ccm.core.errors import InputError
from ccm.core.plain_text import PlainText, check_text

TOKENIZERS = {
    "bytes": tokenizer(),
    "merges": tokenizer(merges=True),
    "fallback": fallback_tokenizer(),
    "spaced": spaced_tokenizer(),
    "unigram": unigram_tokenizer(),
}
PARTS = [*SPECIAL, TOOL, "<pad>", "<unk>", "tea", " ", "<", "/s>", "a"]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=60)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=6), inside=st.booleans())
def test_a_text_that_spells_tokens_is_written_in_ordinary_ones(name: str, parts: list[str], inside: bool) -> None:
    made, plain, text = TOKENIZERS[name], PlainText(TOKENIZERS[name]), "".join(parts)
    steering = {*made.added_tokens_decoder} - {made.unk_token_id}
    ids = plain.after(text) if inside else plain.encode(text)
    assert steering.isdisjoint(ids)
    if made.unk_token_id not in ids:
        before = made.encode("a", add_special_tokens=False) if inside else []
        assert made.decode([*before, *ids]).removeprefix("a" * inside).strip() == text.strip()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_ordinary_text_is_what_the_tokenizer_makes_of_it(name: str) -> None:
    made, plain = TOKENIZERS[name], PlainText(TOKENIZERS[name])
    texts = ["", "a tea. < b", "\u2603 what is unknown"]
    assert plain.encode_all(texts) == [made.encode(text, add_special_tokens=False) for text in texts]
    assert plain.encode_all([]) == []
    assert not any(map(plain.steers, texts))


def test_a_word_that_was_added_to_the_vocabulary_stays_whole() -> None:
    made = tokenizer()
    made.add_tokens(["paracetamol"])
    assert PlainText(made).encode("paracetamol") == [made.convert_tokens_to_ids("paracetamol")]
    assert not PlainText(made).steers("paracetamol")


def test_what_becomes_a_token_however_it_is_cut_is_refused_by_its_name() -> None:
    plain = PlainText(unigram_tokenizer())
    wide = "tea \uff1c/s\uff1e"  # the normalizer makes </s> of it
    assert plain.steers(wide)
    for call in (plain.encode, plain.after, lambda text: plain.encode_all(["tea", text])):
        with pytest.raises(InputError, match="spells '</s>', a token that steers"):
            call(wide)


@pytest.mark.parametrize("text", [7, None, b"hi", "a\ud83d", ["hi"]])
def test_what_is_no_text_is_refused_by_its_value(text: object) -> None:
    for call in (check_text, PlainText(tokenizer()).encode):
        with pytest.raises(InputError, match=r"must be a string|surrogate"):
            call(text)
