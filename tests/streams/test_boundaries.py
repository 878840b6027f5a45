"""Where sentences and paragraphs end, by token ids of the tokenizer that ships with the package."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ccm.streams.boundaries import Boundaries


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain)


def ends(tokenizer: PreTrainedTokenizerFast, text: str) -> dict[int, int]:
    """How well a text may end after each of its characters, where it may."""
    ids = torch.tensor([tokenizer.encode(text)])
    strength = Boundaries(tokenizer)(ids)
    assert strength.shape == ids.shape
    return {i: value for i, value in enumerate(strength[0].tolist()) if value}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no end, here; or\nhere", {}),
        ("Yes. No! Why?", {3: 1, 7: 1, 12: 1}),
        ("line\nline\n\nnext", {10: 2}),
        ("line\n \nnext", {}),
        ("a.\n\nb", {1: 1, 3: 2}),
        ("\n\n\n", {1: 2, 2: 2}),
    ],
)
def test_sentences_and_paragraphs(tokenizer: PreTrainedTokenizerFast, text: str, expected: dict[int, int]) -> None:
    assert ends(tokenizer, text) == expected


def test_quotes_after_the_stop_belong_to_the_sentence_and_two_breaks_in_a_token_are_a_paragraph() -> None:
    vocab = {'."': 0, "\n\n": 1, "word": 2, '"': 3, ".\n": 4, "\n": 5}
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="word")))
    ids = torch.tensor([[0, 1, 2, 3, 4, 5, 2, 5, 2, 99]])
    assert Boundaries(plain)(ids).tolist() == [[1, 2, 0, 0, 1, 2, 0, 0, 0, 0]]
