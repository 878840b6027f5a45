"""Baselines: what is kept of a context, as text or as means."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import assert_close, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.evaluation.baselines import (
    Embeddings,
    StaticEmbeddings,
    bm25,
    make_baseline,
    pool,
    retrieve,
    shortened,
    window,
)
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(WEIGHTS / "base")


@pytest.fixture(scope="module")
def question(tokenizer: PreTrainedTokenizerBase) -> Question:
    texts = ["My sister lives in Rome.", "I like green tea.", "The weather is fine today.", "My dog barks."]
    steps = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    steps[0].insert(0, tokenizer.bos_token_id)
    query = tokenizer.encode("Do I like coffee or tea?", add_special_tokens=False)
    return Question(steps, query, [[9]])


def flat(steps: list) -> list[int]:
    return [token for step in steps for token in step]


@pytest.mark.parametrize("name", ["window", "bm25"])
@pytest.mark.parametrize("room", [1, 2, 7, 1000])
def test_a_baseline_keeps_the_first_token_and_no_more_than_has_room(
    name: str, room: int, question: Question, tokenizer: PreTrainedTokenizerBase
) -> None:
    select = make_baseline(name).select
    assert select is not None
    kept = flat(shortened(question, select, room, tokenizer).steps)
    assert kept[0] == question.steps[0][0]
    assert len(kept) == min(room, len(flat(question.steps)))
    if room == 1000:
        assert kept == flat(question.steps)


def test_the_window_keeps_the_last_tokens(question: Question, tokenizer: PreTrainedTokenizerBase) -> None:
    text = flat(question.steps)
    assert window(question, 5, tokenizer) == [[text[0], *text[-4:]]]
    assert window(question, 1, tokenizer) == [text[:1]]


def test_retrieval_keeps_the_steps_that_the_query_is_about(
    question: Question, tokenizer: PreTrainedTokenizerBase
) -> None:
    room = 1 + len(question.steps[1])
    assert retrieve(question, room, tokenizer, bm25) == [question.steps[0][:1], question.steps[1]]
    more = retrieve(question, room + 3, tokenizer, bm25)  # nothing else is related: the latest step, cut
    assert more == [question.steps[0][:1], question.steps[1], question.steps[3][:3]]


def test_a_step_without_words_does_not_stop_retrieval(tokenizer: PreTrainedTokenizerBase) -> None:
    mark = tokenizer.encode("!", add_special_tokens=False)
    bare = Question([[tokenizer.bos_token_id, *mark], mark], mark, [[9]])
    assert retrieve(bare, 2, tokenizer, bm25) == [[tokenizer.bos_token_id], mark]


def test_a_question_without_context_stays_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    alone = Question([], [5], [[9]])
    assert shortened(alone, window, 3, tokenizer) is alone


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="no baseline 'bm52'.*bm25"):
        make_baseline("bm52")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT that Sentence Transformers reads, with mean pooling."""
    folder = tmp_path_factory.mktemp("embedder")
    words = [
        "[PAD]",
        "[UNK]",
        *[
            "my",
            "sister",
            "lives",
            "in",
            "rome",
            "i",
            "like",
            "green",
            "tea",
            "the",
            "weather",
            "is",
            "fine",
            "today",
            "dog",
            "barks",
        ],
    ]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder


def test_embeddings_find_the_text_that_says_the_same(embedder: Path) -> None:
    texts = ["my sister lives in rome", "i like green tea", "my dog barks"]
    scores = Embeddings(str(embedder))(texts, "i like green tea")
    assert scores[1] == pytest.approx(1.0, abs=1e-5)
    assert max(scores[0], scores[2]) < 0.999


def test_static_embeddings_find_the_text_that_is_about_the_same_without_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("wordllama", reason="the extra static is not installed")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network is asked"))
    before = logging.getLogger().level, [*logging.getLogger().handlers]
    baseline = make_baseline("static").select
    assert baseline is not None
    texts = ["It is raining again.", "I have a cat called Biscuit.", "", "I work as a nurse."]
    scores = StaticEmbeddings()(texts, "What is my pet called?")
    assert max(range(4), key=scores.__getitem__) == 1
    assert scores[2] == 0
    assert (logging.getLogger().level, logging.getLogger().handlers) == before


def test_retrieval_by_embeddings_keeps_the_nearest_step(
    embedder: Path, question: Question, tokenizer: PreTrainedTokenizerBase
) -> None:
    select = make_baseline("embedding", str(embedder)).select
    assert select is not None
    asked = replace(question, query=question.steps[1])
    assert select(asked, 1 + len(question.steps[1]), tokenizer) == [question.steps[0][:1], question.steps[1]]


def test_an_embedding_model_must_be_named_and_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="embedder=MODEL"):
        make_baseline("embedding")
    with pytest.raises(ConfigError, match="nowhere cannot be had"):
        Embeddings(str(tmp_path / "nowhere"))(["a"], "b")


def test_a_pooled_step_is_the_means_of_its_stretches() -> None:
    model = tiny_model("full")
    first = torch.tensor([[3, 4, 5, 6, 7], [0, 0, 8, 9, 10]])
    mask = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    with torch.no_grad():
        empty = model.empty_memory(2)
        read = model.compress(empty, first, mask)
        pooled = pool(empty, read, 2)
        later = model.compress(pooled, torch.tensor([[11], [12]]))
        both = pool(pooled, later, 2)
    for x, y in zip(read.keys + read.values, pooled.keys + pooled.values, strict=True):
        assert_close(y[0, :, 0], x[0, :, :3].mean(1), depth=1)  # five tokens in stretches of three and two
        assert_close(y[0, :, 1], x[0, :, 3:].mean(1), depth=1)
        assert_close(y[1, :, 0], x[1, :, 2:4].mean(1), depth=1)  # padding is in no mean
        assert_close(y[1, :, 1], x[1, :, 4], depth=1)
    assert pooled.offset.tolist() == [5, 3]
    assert both.entries == (3, 3)  # a step of one token stays one
    for x, y in zip(later.keys, both.keys, strict=True):
        assert_close(y[:, :, :3], x, depth=1)


def test_what_was_pooled_is_what_is_read() -> None:
    """Pooling as finely as there are tokens changes nothing; more coarsely, it does."""
    model = tiny_model("full")
    step, query = torch.tensor([[3, 4, 5, 6]]), torch.tensor([[7, 8]])
    with torch.no_grad():
        empty = model.empty_memory()
        read = model.compress(empty, step)
        exact, fine, coarse = (model.read(m, query) for m in (read, pool(empty, read, 4), pool(empty, read, 2)))
    assert_close(fine, exact)
    assert (coarse - exact).abs().max() > 1e-3
