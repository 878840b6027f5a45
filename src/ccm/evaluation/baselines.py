"""Baselines that keep raw text: of a context only what has room is read, with full context, and the rest is forgotten.

window    the first token and the last ones (StreamingLLM's cache: sink and sliding window)
bm25      the first token and the steps that have most in common with the query, by BM25, in their order
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import bm25s
from transformers import PreTrainedTokenizerBase

from ccm.data.questions import Question
from ccm.errors import ConfigError, did_you_mean

Ids = Sequence[int]
Selection = Callable[[Question, int, PreTrainedTokenizerBase], list[Ids]]


def window(question: Question, room: int, tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """The first token of the context and the last ``room`` - 1."""
    text = [token for step in question.steps for token in step]
    return [text] if len(text) <= room else [[*text[:1], *text[len(text) - room + 1 :]]]


def bm25(question: Question, room: int, tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """The first token, and the steps that score best; the last of these is cut where the room ends."""
    first, *rest = question.steps
    steps = [first[1:], *rest]
    texts = tokenizer.batch_decode([*steps, question.query], skip_special_tokens=True)
    terms = bm25s.tokenize(texts, stopwords=None, return_ids=False, show_progress=False)
    order = [*reversed(range(len(steps)))]  # of equal ones the latest first
    if any(terms[:-1]):
        index = bm25s.BM25()
        index.index(terms[:-1], show_progress=False)
        scores = index.get_scores(terms[-1]) if terms[-1] else [0.0] * len(steps)
        order.sort(key=lambda i: -scores[i])
    left, kept = room - 1, {}
    for i in order:
        kept[i] = steps[i][:left]
        left -= len(kept[i])
    return [[first[0]], *(kept[i] for i in sorted(kept) if kept[i])]


BASELINES: dict[str, Selection] = {"window": window, "bm25": bm25}


def baseline(name: str) -> Selection:
    """The baseline of that name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in BASELINES:
        meant = did_you_mean([name], BASELINES)
        raise ConfigError(f"There is no baseline {name!r}.{meant} There are: {', '.join(BASELINES)}.")
    return BASELINES[name]


def shortened(question: Question, select: Selection, room: int, tokenizer: PreTrainedTokenizerBase) -> Question:
    """The question with what the selection keeps of its context in ``room`` entries, at least 1."""
    return replace(question, steps=select(question, room, tokenizer)) if question.steps else question
