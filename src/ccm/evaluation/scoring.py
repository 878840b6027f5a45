"""Log-likelihoods of answers, and replies generated greedily, given a memory of their context.

The memory of a question is written once and its query read once (:mod:`ccm.evaluation.answering`), so that the answers
cost next to nothing beside the context. The numbers equal those of one parallel pass for each answer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import torch

from ccm.chat.reply import Reply
from ccm.chat.turns import Turns
from ccm.core.errors import ConfigError, InputError
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel, as_decoder
from ccm.engine.layout import padded
from ccm.engine.memory import Head, Memory
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.evaluation.answering import answering
from ccm.evaluation.metrics import Likelihood
from ccm.evaluation.texts import JudgedReply, judge

POOL = 1024  # questions that are sorted together, so that little is padded


@dataclass(frozen=True)
class ScoredQuestion:
    """A question as a model answered it.

    Attributes:
        task: what it is counted under.
        right: number of the right answer.
        answers: the likelihood of each answer.
        entries: of the memory that the query reads.
        peak: the most entries in view at a time, of the memory and of the text that is read on top of it.
        kv_bytes: of the memory.
        peak_bytes: of the peak.
        reply: the generated reply, judged; None where none was generated.
        other: log-likelihood of the right answer with another conversation's memory; None without such a memory.
    """

    task: str
    right: int
    answers: tuple[Likelihood, ...]
    entries: int
    peak: int
    kv_bytes: int
    peak_bytes: int
    reply: JudgedReply | None = None
    other: float | None = None

    @property
    def finite(self) -> bool:
        """Whether all likelihoods are finite numbers; in half precision a model can overflow."""
        found = [number for answer in self.answers for number in (answer.total, answer.own or 0.0, self.other or 0.0)]
        return all(map(math.isfinite, found))


@dataclass
class Seconds:
    """Time for the memories, and for the queries, answers and replies."""

    write: float = 0.0
    read: float = 0.0


class Scorer:
    """Scores questions with one model.

    Args:
        model: under its rule, in eval mode.
        batch: answers that are scored together, each with a copy of its question's memory.
        generate: the most new tokens of a reply; 0 generates none.
        turns: say how a reply reads, and where it ends.
        fold: makes the memory after a step from that before it, that with all of its text, and N; None leaves what the
            rule made.

    Raises:
        ConfigError: when replies are to be generated without their turns.
        UnsupportedModelError: when entries of an encoder-decoder are to be folded.
    """

    def __init__(
        self,
        model: CCMModel | CCMEncoderDecoder,
        *,
        batch: int = 16,
        generate: int = 0,
        turns: Turns | None = None,
        fold: Callable[[Memory, Memory, int], Memory] | None = None,
    ) -> None:
        if generate and turns is None:
            raise ConfigError("To generate replies, a scorer needs their turns; give both.")
        if fold is not None:
            as_decoder(model, "what folds the entries of raw text, as the baseline 'pool' does,")
        self.model, self.batch, self.generate = model, batch, generate
        self.turns, self.fold = turns if generate else None, fold
        self.answering = answering(model, self.turns, generate)
        self.seconds = Seconds()

    @torch.inference_mode()
    def score(
        self, questions: Iterable[Question], progress: Callable[[int], None] = lambda done: None
    ) -> Iterator[ScoredQuestion]:
        """Score the questions, in their order; at most ``POOL`` of them are held at a time.

        ``progress`` is called after each batch, with how many are done.

        Raises:
            InputError: when a question runs beyond the model's positions.
        """
        stream, done = iter(questions), 0
        while pool := [*islice(stream, POOL)]:
            found: dict[int, ScoredQuestion] = {}
            for _, alike in groupby(sorted(range(len(pool)), key=lambda i: _shape(pool[i])), lambda i: _kind(pool[i])):
                rows = [*alike]
                size = max(1, self.batch // len(pool[rows[0]].answers))
                for begin in range(0, len(rows), size):
                    part = rows[begin : begin + size]
                    found.update(zip(part, self._score([pool[i] for i in part]), strict=True))
                    progress(done + len(found))
            done += len(pool)
            yield from (found[i] for i in range(len(pool)))

    def _score(self, questions: list[Question]) -> list[ScoredQuestion]:
        """Score questions that all have the same numbers of steps and answers."""
        begun = self._now()
        memory, peaks = self.write(questions)
        written = self._now()
        self._check_end(memory, questions)
        sums, replies = self.answering.read(memory, questions)
        own = self._own(questions)
        self.seconds.write += written - begun
        self.seconds.read += self._now() - written
        size = memory.entry_nbytes
        scored = []
        for i, (question, entries) in enumerate(zip(questions, memory.entries, strict=True)):
            reply = replies[i] if replies else None
            longest = max(map(len, (*question.answers, reply.said if reply else ())))
            peak = max(peaks[i], entries + len(question.query) + longest - 1)
            rows = zip(sums[i], question.answers, own[i], strict=True)
            answers = tuple(Likelihood(total, len(answer), alone, top) for (total, top), answer, alone in rows)
            held = (entries, peak, entries * size, peak * size)
            scored.append(ScoredQuestion(question.task, question.right, answers, *held, self._judged(question, reply)))
        return scored

    def _now(self) -> float:
        """Seconds, once a GPU has done all its work."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()

    def write(self, questions: Sequence[Question]) -> tuple[Any, list[int]]:
        """The closed memory of contexts of equally many steps, and the most entries in view as each was written."""
        contexts = [question.steps for question in questions]
        if self.model.rule.compresses != "step" and self.fold is None:  # then steps make no difference
            contexts = [[[token for step in steps for token in step]] if steps else [] for steps in contexts]
        model: Any = self.model
        heads = self._heads(questions)
        memory, config = model.empty_memory(len(contexts), *([heads] if heads else [])), model.config
        comp = 0 if self.model.rule.compresses == "never" else config.n_tok
        peaks = [0] * len(contexts)
        for step in zip(*contexts, strict=True):
            if not self.model.rule.forgets:
                read = memory.entries if config.recurrent else [min(e, int(config.sink)) for e in memory.entries]
                peaks = [max(p, e + len(s) + comp) for p, e, s in zip(peaks, read, step, strict=True)]
            before, memory = memory, model.compress(memory, *padded(step))
            if self.fold is not None:
                memory = self.fold(before, memory, config.n_tok)
        return model.close(memory), peaks

    def _heads(self, questions: Sequence[Question]) -> list[Head] | None:
        """The head before each context; None where no context has one."""
        if not any(question.head for question in questions):
            return None
        model: Any = self.model
        as_decoder(model, "a head before the steps")
        return [model.head(question.head) for question in questions]

    def _judged(self, question: Question, reply: Reply | None) -> JudgedReply | None:
        if self.turns is None or reply is None:
            return None
        asked, right = (self.turns.decode(x) for x in (question.query, question.answers[question.right]))
        references = question.references or [right]
        return JudgedReply(question.task, asked, references, reply.text, judge(reply.text, references, question.judged))

    def _check_end(self, memory: Any, questions: list[Question]) -> None:
        for offset, question in zip(memory.offset.tolist(), questions, strict=True):
            end = offset + len(question.query) + max(self.generate, *map(len, question.answers)) - 1
            if end > self.model.max_positions:
                raise InputError(
                    f"A question of {question.task or 'the task'} would end at position {end}, but the model was made "
                    f"for {self.model.max_positions}. Take fewer steps, or shorter ones "
                    "(max_length of the task), or generate less."
                )

    def _own(self, questions: list[Question]) -> Sequence[Sequence[float | None]]:
        """Log-likelihoods of the answers without context and query, under the base model alone."""
        if questions[0].before is None:
            return [[None] * len(question.answers) for question in questions]
        texts = sorted({(tuple(q.before or ()), tuple(answer)) for q in questions for answer in q.answers})
        own = dict(zip(texts, self.answering.alone(texts), strict=True))
        return [[own[tuple(q.before or ()), tuple(answer)] for answer in q.answers] for q in questions]


def _kind(question: Question) -> tuple[int, int, bool]:
    """What the questions of a batch have in common."""
    return len(question.steps), len(question.answers), question.before is None


def _shape(question: Question) -> tuple[int, int, bool, int, int]:
    return *_kind(question), sum(map(len, question.steps)), len(question.query)
