"""How models answer a query after a memory: likelihoods of given answers, and replies of their own.

The query is read once; every answer, and the reply, go on from a copy of its cache.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ccm.chat.reply import Reply, end_ids, replies_to
from ccm.chat.turns import Turns
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel
from ccm.engine.families import given_cache
from ccm.engine.layout import padded
from ccm.engine.memory import Memory, MemoryCache
from ccm.engine.sampling import Read
from ccm.engine.t5.memory import EncoderMemory
from ccm.engine.t5.seq2seq import CCMEncoderDecoder

# of each answer of each question: its log-likelihood, and whether each of its tokens is the likeliest
Sums = Sequence[Sequence[tuple[float, bool]]]


class Answering(ABC):
    """Answers of one kind of model.

    Args:
        model: under its rule, in eval mode.
        turns: say where a reply ends; None generates no replies.
        most: the most new tokens of a reply.
    """

    def __init__(self, model: Any, turns: Turns | None, most: int) -> None:
        self.model, self.turns, self.most = model, turns, most

    @abstractmethod
    def read(self, memory: Any, questions: Sequence[Question]) -> tuple[Sums, Sequence[Reply]]:
        """Log-likelihoods of all answers after a closed memory of B contexts, and replies where they are generated.

        All questions have the same number of answers.
        """

    @abstractmethod
    def alone(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Log-likelihoods of answers after the text before them, without a memory; ``texts`` are pairs of both."""

    def _replies(self, logits: Tensor, read: Read) -> list[Reply]:
        """The likeliest reply of each row, from the logits (B, V) of its first token; none without turns."""
        if self.turns is None:
            return []
        ends = end_ids(self.model.base, self.turns.tokenizer)
        replies = [Reply(self.turns, ends, self.most) for _ in logits]
        replies_to(logits, read, replies)
        return replies


class DecoderAnswering(Answering):
    """Answers of a decoder: they follow the query in its cache."""

    model: CCMModel

    def read(self, memory: Memory, questions: Sequence[Question]) -> tuple[Sums, Sequence[Reply]]:
        ids, mask = (x.to(self.model.device) for x in padded([question.query for question in questions]))
        cache = memory.cache()
        first = self.model.read(memory, ids, mask, cache, last=True)
        read = torch.cat([cache.columns.mask, mask], dim=1)
        replies = self._replies(first[:, -1], self.model.reader(memory, cache.fork()))
        return self._likelihoods(cache, first, read, [question.answers for question in questions]), replies

    def alone(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        ids, mask = (x.to(self.model.device) for x in padded([[*before, *answer[:-1]] for before, answer in texts]))
        logits = self.model.base(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=max(len(answer) for _, answer in texts),
        ).logits[..., : self.model.vocab_size]
        return [
            likelihood(row[row.shape[0] - len(answer) :], answer)
            for (_, answer), row in zip(texts, logits, strict=True)
        ]

    def _likelihoods(
        self, cache: MemoryCache, first: Tensor, read: Tensor, answers: list[Sequence[Sequence[int]]]
    ) -> Sums:
        """Log-likelihoods of the answers of each row, equally many.

        Args:
            cache: of B memories and queries; it is changed.
            first: (B, 1, V) logits of the token after them.
            read: (B, S) mask of what was read.
            answers: of each row.
        """
        choices, flat = len(answers[0]), [answer for row in answers for answer in row]
        first = first.repeat_interleave(choices, 0)
        by_token: Iterable[Tensor] = first
        if max(map(len, flat)) > 1:
            if choices > 1:
                cache.batch_repeat_interleave(choices)
            fed, fed_mask = (x.to(self.model.device) for x in padded([answer[:-1] for answer in flat], after=True))
            end = (cache.memory.offset + read[:, cache.columns.width :].sum(1)).repeat_interleave(choices)
            later = self.model.base(
                input_ids=fed,
                attention_mask=torch.cat([read.repeat_interleave(choices, 0), fed_mask], dim=1).long(),
                position_ids=end[:, None] + (fed_mask.long().cumsum(1) - 1).clamp(min=0),
                **given_cache(self.model.base, cache),
            ).logits
            by_token = (
                torch.cat([start, rest[: len(answer) - 1, : start.shape[-1]]])
                for start, rest, answer in zip(first, later, flat, strict=True)
            )
        sums = [judged(row, answer) for row, answer in zip(by_token, flat, strict=True)]
        return [sums[i : i + choices] for i in range(0, len(sums), choices)]


class EncoderDecoderAnswering(Answering):
    """Answers of an encoder-decoder: the encoder reads the query, the decoder says the answer."""

    model: CCMEncoderDecoder

    def read(self, memory: EncoderMemory, questions: Sequence[Question]) -> tuple[Sums, Sequence[Reply]]:
        hidden, seen = self.model.ask(memory, *padded([question.query for question in questions]))
        choices, flat = len(questions[0].answers), [answer for question in questions for answer in question.answers]
        sums = self._said(hidden.repeat_interleave(choices, 0), seen.repeat_interleave(choices, 0), flat)
        read = self.model.reader(hidden, seen)
        start = torch.full((len(seen), 1), self.model.base.config.decoder_start_token_id)
        replies = self._replies(read(start), read) if self.turns else []
        return [sums[i : i + choices] for i in range(0, len(sums), choices)], replies

    def alone(self, texts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        blank = self.model.empty_memory(len(texts))
        found = self._said(*self.model.ask(blank, *padded([before for before, _ in texts])), [one for _, one in texts])
        return [total for total, _ in found]

    def _said(self, hidden: Tensor, seen: Tensor, answers: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
        logits = self.model.decode(hidden, seen, padded(answers, after=True)[0])
        return [judged(row[: len(answer)], answer) for row, answer in zip(logits, answers, strict=True)]


def answering(model: CCMModel | CCMEncoderDecoder, turns: Turns | None, most: int) -> Answering:
    """The :class:`Answering` for a model; arguments as there."""
    kind = EncoderDecoderAnswering if isinstance(model, CCMEncoderDecoder) else DecoderAnswering
    return kind(model, turns, most)


def judged(logits: Tensor, answer: Sequence[int]) -> tuple[float, bool]:
    """Log-likelihood of an answer, and whether each token is the likeliest, from logits (A, V) of its A tokens."""
    return likelihood(logits, answer), logits.argmax(-1).tolist() == [*answer]


def likelihood(logits: Tensor, answer: Sequence[int]) -> float:
    """Log-likelihood of an answer from the logits (A, V) that predict its A tokens."""
    log_p = logits.float().log_softmax(-1)
    return float(log_p[range(len(answer)), [*answer]].double().sum())
