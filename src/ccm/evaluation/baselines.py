"""Baselines at equal K/V memory, under the rule "full": they keep as much of a context as there is room for.

window      the first token and the last ones (StreamingLLM's cache: sink and sliding window)
bm25        the first token and the steps that have most in common with the query, by BM25, in their order
embedding   the first token and the steps whose embeddings are nearest to the query's, in their order
static      the same by static embeddings of words, which come with a package
pool        of every step the means of its keys and values over N stretches (Compressive Transformer's mean pooling)

The first four choose text, which is read afresh; ``pool`` folds keys and values, step by step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.core.errors import ConfigError, did_you_mean
from ccm.core.extras import needs
from ccm.data.questions import Question
from ccm.engine.memory import COMPRESSED, Memory

Ids = Sequence[int]
Selection = Callable[[Question, int, PreTrainedTokenizerBase], list[Ids]]  # the question, room, how its tokens read
Scores = Callable[[list[str], str], Sequence[float]]  # how much each text has to do with the query
Fold = Callable[[Memory, Memory, int], Memory]  # the memory before a step and with all of it, and N


@dataclass(frozen=True)
class Baseline:
    """What a baseline keeps: of a question's text, or of the memory of its steps.

    Attributes:
        select: chooses the text that is read; None reads all of it.
        fold: makes the memory of a step that was read; None leaves it as it is.
    """

    select: Selection | None = None
    fold: Fold | None = None


def window(question: Question, room: int, tokenizer: PreTrainedTokenizerBase) -> list[Ids]:
    """The first token of the context and the last ``room`` - 1."""
    text = [token for step in question.steps for token in step]
    return [text] if len(text) <= room else [[*text[:1], *text[len(text) - room + 1 :]]]


def retrieve(question: Question, room: int, tokenizer: PreTrainedTokenizerBase, scores: Scores) -> list[Ids]:
    """The first token and the steps with the best scores, of which the last one is cut where the room ends."""
    first, *rest = question.steps
    steps = [first[1:], *rest]
    *texts, query = tokenizer.batch_decode([*steps, question.query], skip_special_tokens=True)
    ranked = scores(texts, query)
    left, kept = room - 1, {}
    for i in sorted(range(len(steps)), key=lambda i: (-ranked[i], -i)):  # of equal ones the latest first
        kept[i] = steps[i][:left]
        left -= len(kept[i])
    return [[first[0]], *(kept[i] for i in sorted(kept) if kept[i])]


def bm25(texts: list[str], query: str) -> Sequence[float]:
    """BM25 of each text."""
    import bm25s

    *terms, asked = bm25s.tokenize([*texts, query], stopwords=None, return_ids=False, show_progress=False)
    if not (asked and any(terms)):
        return [0.0] * len(texts)
    index = bm25s.BM25()
    index.index(terms, show_progress=False)
    return index.get_scores(asked).tolist()


class Embeddings:
    """Cosines of each text and the query, by a model of Sentence Transformers that is loaded when first needed.

    Args:
        model: folder or Hub id.
    """

    def __init__(self, model: str) -> None:
        self.name = model

    def __call__(self, texts: list[str], query: str) -> Sequence[float]:
        embedded = self._model.encode([*texts, query], convert_to_tensor=True, show_progress_bar=False)
        return self._model.similarity(embedded[-1:], embedded[:-1])[0].tolist()

    @cached_property
    def _model(self) -> Any:
        needs("sentence_transformers", extra="embeddings", what="The baseline 'embedding'")
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(self.name)
        except (OSError, ValueError) as error:
            raise ConfigError(f"The embedding model {self.name} cannot be had: {error}") from error


class StaticEmbeddings:
    """Cosines of each text and the query, by the means of static embeddings of their tokens, without the Hub."""

    def __call__(self, texts: list[str], query: str) -> Sequence[float]:
        *embedded, asked = np.nan_to_num(self._model.embed([*texts, query], norm=True))  # a text without words has none
        return [float(one @ asked) for one in embedded]

    @cached_property
    def _model(self) -> Any:
        needs("wordllama", extra="static", what="The baseline 'static'")
        root = logging.getLogger()
        level, handlers = root.level, [*root.handlers]
        import wordllama  # it sets up logging for the whole process

        root.setLevel(level)
        root.handlers[:] = handlers
        folder = Path(wordllama.__file__).parent  # it looks for its tokenizer there only where this is its cache
        return wordllama.WordLlama.load(cache_dir=folder, disable_download=True)


def pool(before: Memory, after: Memory, n_tok: int) -> Memory:
    """The memory ``after`` a step, its columns since ``before`` replaced by their means over ``n_tok`` equal stretches.

    Keys are averaged after the rotary embedding; a step of fewer tokens keeps them all.
    """
    width = before.width
    mask = after.mask[:, width:]
    lengths = mask.sum(1, keepdim=True)
    groups = lengths.clamp(max=n_tok)
    stretch = (mask.long().cumsum(1) - 1) * groups // lengths.clamp(min=1)
    member = (stretch[:, None] == torch.arange(n_tok, device=mask.device)[:, None]) & mask[:, None]  # (B, N, T)
    share = member / member.sum(-1, keepdim=True).clamp(min=1)

    def pooled(x: Tensor) -> Tensor:
        means = share[:, None].to(torch.float32) @ x[:, :, width:].float()
        return torch.cat([x[:, :, :width], means.to(x.dtype)], dim=2)

    kept = member.any(-1)
    return replace(
        after,
        keys=tuple(map(pooled, after.keys)),
        values=tuple(map(pooled, after.values)),
        mask=torch.cat([before.mask, kept], dim=1),
        positions=torch.cat([before.positions, torch.full_like(kept, COMPRESSED, dtype=torch.long)], dim=1),
    )


def _embedding(model: str | None) -> Baseline:
    if model is None:
        raise ConfigError("The baseline 'embedding' needs a model; name a folder or Hub id with embedder=MODEL.")
    return Baseline(select=partial(retrieve, scores=Embeddings(model)))


BASELINES: dict[str, Callable[[str | None], Baseline]] = {
    "window": lambda _: Baseline(select=window),
    "bm25": lambda _: Baseline(select=partial(retrieve, scores=bm25)),
    "embedding": _embedding,
    "static": lambda _: Baseline(select=partial(retrieve, scores=StaticEmbeddings())),
    "pool": lambda _: Baseline(fold=pool),
}


def make_baseline(name: str, embedder: str | None = None) -> Baseline:
    """The baseline of that name.

    Args:
        name: one of :data:`BASELINES`.
        embedder: model of "embedding".

    Raises:
        ConfigError: when there is no such baseline, or it lacks its model.
    """
    if name not in BASELINES:
        meant = did_you_mean([name], BASELINES)
        raise ConfigError(f"There is no baseline {name!r}.{meant} There are: {', '.join(BASELINES)}.")
    return BASELINES[name](embedder)


def shortened(question: Question, select: Selection, room: int, tokenizer: PreTrainedTokenizerBase) -> Question:
    """The question with the part of its context that a selection keeps in ``room`` entries, at least 1."""
    return replace(question, steps=select(question, room, tokenizer)) if question.steps else question
