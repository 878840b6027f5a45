"""Log-likelihoods of answers, given a memory of their context.

The memory is written once for a question and its query read once; every answer goes on from there. So the answers cost
next to nothing beside the context, and the figures are those of one parallel pass for each answer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import torch
from torch import Tensor

from ccm.data.questions import Question
from ccm.errors import InputError
from ccm.evaluation.metrics import Likelihood
from ccm.memory import Memory
from ccm.model import CCMModel

POOL = 1024  # questions that are sorted together, so that little is padded


@dataclass(frozen=True)
class Scored:
    """What a model makes of a question.

    Attributes:
        task: what it is counted under.
        right: number of the right answer.
        answers: the likelihood of each.
        entries: of the memory that the query reads.
        peak: entries in view at the most: of the memory, and of the text that is read on top of it.
        kv_bytes: of the memory.
        peak_bytes: of the peak.
    """

    task: str
    right: int
    answers: tuple[Likelihood, ...]
    entries: int
    peak: int
    kv_bytes: int
    peak_bytes: int


@dataclass
class Seconds:
    """Time that went into the memories, and into the queries and answers."""

    write: float = 0.0
    read: float = 0.0


class Scorer:
    """Scores questions with one model.

    Args:
        model: under its rule, in eval mode.
        batch: answers at a time: each goes on from a copy of its question's memory.
    """

    def __init__(self, model: CCMModel, *, batch: int = 16) -> None:
        self.model, self.batch = model, batch
        self.seconds = Seconds()

    @torch.inference_mode()
    def score(self, questions: Iterable[Question]) -> Iterator[Scored]:
        """The questions, scored, in their order; of a long stream no more than ``POOL`` are held at a time.

        Raises:
            InputError: when a question runs beyond the model's positions.
        """
        stream = iter(questions)
        while pool := [*islice(stream, POOL)]:
            found: dict[int, Scored] = {}
            for _, alike in groupby(sorted(range(len(pool)), key=lambda i: _shape(pool[i])), lambda i: _kind(pool[i])):
                rows = [*alike]
                size = max(1, self.batch // len(pool[rows[0]].answers))
                for begin in range(0, len(rows), size):
                    part = rows[begin : begin + size]
                    found.update(zip(part, self._score([pool[i] for i in part]), strict=True))
            yield from (found[i] for i in range(len(pool)))

    def _score(self, questions: list[Question]) -> list[Scored]:
        """Questions with as many steps and answers each."""
        begun = self._now()
        memory, peaks = self._write([question.steps for question in questions])
        written = self._now()
        sums = self._read(memory, questions)
        own = self._own(questions)
        self.seconds.write += written - begun
        self.seconds.read += self._now() - written
        size = memory.entry_nbytes
        scored = []
        for i, (question, entries) in enumerate(zip(questions, memory.entries, strict=True)):
            peak = max(peaks[i], entries + len(question.query) + max(map(len, question.answers)) - 1)
            rows = zip(sums[i], question.answers, own[i], strict=True)
            answers = tuple(Likelihood(total, len(answer), alone) for total, answer, alone in rows)
            scored.append(Scored(question.task, question.right, answers, entries, peak, entries * size, peak * size))
        return scored

    def _now(self) -> float:
        """Seconds, once all that was asked of a GPU is done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def _write(self, contexts: list[Sequence[Sequence[int]]]) -> tuple[Memory, list[int]]:
        """The closed memory of contexts with as many steps each, and the most entries that writing it had in view."""
        if self.model.rule.compresses != "step":  # then steps make no difference
            contexts = [[[token for step in steps for token in step]] if steps else [] for steps in contexts]
        memory, config = self.model.empty_memory(len(contexts)), self.model.config
        comp = 0 if self.model.rule.compresses == "never" else config.n_tok
        peaks = [0] * len(contexts)
        for step in zip(*contexts, strict=True):
            if not self.model.rule.forgets:
                read = (memory if config.recurrent else memory.sink_only()).entries
                peaks = [max(p, e + len(s) + comp) for p, e, s in zip(peaks, read, step, strict=True)]
            memory = self.model.compress(memory, *padded(step))
        return self.model.close(memory), peaks

    def _read(self, memory: Memory, questions: list[Question]) -> list[list[float]]:
        """Log-likelihoods of all answers: the query is read once, then each answer from where it ended."""
        choices, answers = len(questions[0].answers), [answer for question in questions for answer in question.answers]
        ids, mask = (x.to(self.model.device) for x in padded([question.query for question in questions]))
        self._check_end(memory, questions)
        cache = memory.cache()
        first = self.model.read(memory, ids, mask, cache, last=True).repeat_interleave(choices, 0)
        if max(map(len, answers)) == 1:
            return _rows([likelihood(row, answer) for row, answer in zip(first, answers, strict=True)], choices)
        if choices > 1:
            cache.batch_repeat_interleave(choices)
        fed, fed_mask = (x.to(self.model.device) for x in padded([answer[:-1] for answer in answers], after=True))
        read = torch.cat([memory.mask, mask], dim=1).repeat_interleave(choices, 0)
        end = (memory.offset + mask.sum(1)).repeat_interleave(choices)
        later = self.model.base(
            input_ids=fed,
            attention_mask=torch.cat([read, fed_mask], dim=1).long(),
            position_ids=end[:, None] + (fed_mask.long().cumsum(1) - 1).clamp(min=0),
            past_key_values=cache,
        ).logits
        by_token = (
            torch.cat([start, rest[: len(answer) - 1, : start.shape[-1]]])
            for start, rest, answer in zip(first, later, answers, strict=True)
        )
        return _rows([likelihood(row, answer) for row, answer in zip(by_token, answers, strict=True)], choices)

    def _check_end(self, memory: Memory, questions: list[Question]) -> None:
        for offset, question in zip(memory.offset.tolist(), questions, strict=True):
            end = offset + len(question.query) + max(map(len, question.answers)) - 1
            if end > self.model.max_positions:
                raise InputError(
                    f"A question of {question.task or 'the task'} would end at position {end}, but the model was made "
                    f"for {self.model.max_positions}. Take fewer or shorter steps."
                )

    def _own(self, questions: list[Question]) -> Sequence[Sequence[float | None]]:
        """Log-likelihoods of the answers without context and query: of the base model, as it is."""
        if questions[0].before is None:
            return [[None] * len(question.answers) for question in questions]
        texts = sorted({(tuple(q.before or ()), tuple(answer)) for q in questions for answer in q.answers})
        ids, mask = (x.to(self.model.device) for x in padded([[*before, *answer[:-1]] for before, answer in texts]))
        logits = self.model.base(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=(mask.long().cumsum(1) - 1).clamp(min=0),
            use_cache=False,
            logits_to_keep=max(len(answer) for _, answer in texts),
        ).logits[..., : self.model.vocab_size]
        own = {
            text: likelihood(row[row.shape[0] - len(text[1]) :], text[1])
            for text, row in zip(texts, logits, strict=True)
        }
        return [[own[tuple(q.before or ()), tuple(answer)] for answer in q.answers] for q in questions]


def padded(rows: Sequence[Sequence[int]], *, after: bool = False) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of rows, padded on the left, or on the right where they go on from others: a gap
    within a text would count in a sliding window."""
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if after else slice(width - len(row), width)
        ids[i, place], mask[i, place] = torch.tensor([*row], dtype=torch.long), True
    return ids, mask


def _kind(question: Question) -> tuple[int, int, bool]:
    """What is alike in the questions of a batch."""
    return len(question.steps), len(question.answers), question.before is None


def _shape(question: Question) -> tuple[int, int, bool, int, int]:
    return *_kind(question), sum(map(len, question.steps)), len(question.query)


def likelihood(logits: Tensor, answer: Sequence[int]) -> float:
    """Log-likelihood of an answer from the logits (A, V) that predict its A tokens."""
    log_p = logits.float().log_softmax(-1)
    return float(log_p[range(len(answer)), [*answer]].double().sum())


def _rows(values: list[float], choices: int) -> list[list[float]]:
    return [values[i : i + choices] for i in range(0, len(values), choices)]
