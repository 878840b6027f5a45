"""Baselines that keep raw text: what is kept of a context, and how they are measured beside a memory."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerBase

from ccm.builtin import WEIGHTS
from ccm.data.questions import Question
from ccm.errors import ConfigError
from ccm.evaluation.baselines import BASELINES, baseline, bm25, shortened, window
from ccm.loading import load_tokenizer


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


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("room", [1, 2, 7, 1000])
def test_a_baseline_keeps_the_first_token_and_no_more_than_has_room(
    name: str, room: int, question: Question, tokenizer: PreTrainedTokenizerBase
) -> None:
    kept = flat(shortened(question, baseline(name), room, tokenizer).steps)
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
    assert bm25(question, room, tokenizer) == [question.steps[0][:1], question.steps[1]]
    more = bm25(question, room + 3, tokenizer)  # nothing else is related: the latest step, cut
    assert more == [question.steps[0][:1], question.steps[1], question.steps[3][:3]]


def test_a_step_without_words_does_not_stop_retrieval(tokenizer: PreTrainedTokenizerBase) -> None:
    mark = tokenizer.encode("!", add_special_tokens=False)
    bare = Question([[tokenizer.bos_token_id, *mark], mark], mark, [[9]])
    assert bm25(bare, 2, tokenizer) == [[tokenizer.bos_token_id], mark]


def test_a_question_without_context_stays_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    alone = Question([], [5], [[9]])
    assert shortened(alone, window, 3, tokenizer) is alone


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ConfigError, match="no baseline 'bm52'.*bm25"):
        baseline("bm52")
