"""How an encoder-decoder answers: as one pass for each answer, after a memory of any rule."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import EOS, PAD, TOLERANCE, VOCAB, ccm_config, randomize_adapter
from tiny_t5 import tiny_t5

from ccm.data.questions import Question
from ccm.engine.layout import IGNORE, Sample, Step, padded
from ccm.engine.t5.encoder import build_encoder_layout
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.evaluation.answering import answering
from ccm.evaluation.scoring import Scorer


def text(rng: random.Random, least: int, most: int) -> list[int]:
    return [rng.randrange(5, VOCAB) for _ in range(rng.randint(least, most))]


def questions(count: int = 24) -> list[Question]:
    """Two of each kind, which are asked as one batch."""
    rng, made = random.Random(0), []
    for number in range(count):
        steps = [text(rng, 1, 6) for _ in range(number // 6 % 2 * 2)]
        answers = [text(rng, 1, 4) for _ in range(1 + number % 3)]
        made.append(Question(steps, text(rng, 1, 5), answers, 0, "", [7, 8] if number % 2 else None))
    return made


@torch.no_grad()
def from_scratch(model: CCMEncoderDecoder, steps: list[list[int]], query: list[int], answer: list[int]) -> float:
    ids, targets = [*query, *answer], [*[IGNORE] * (len(query) - 1), *answer, EOS]
    layout = build_encoder_layout([Sample([*map(Step, steps)], Step(ids, targets))], model.config, model.rule, PAD)
    log_p = model(layout).logits.log_softmax(-1)
    return float(log_p[range(len(answer)), answer].sum())


@pytest.mark.covers(cases=2)
@pytest.mark.parametrize("rule", ["concat", "merge", "ema", "gist", "pos_control", "full", "none"])
def test_answers_have_the_likelihoods_of_a_pass_each(rule: str) -> None:
    model = CCMEncoderDecoder(tiny_t5(), ccm_config(rule, recurrent=False)).eval()
    randomize_adapter(model, 1)
    asked = questions()
    for question, one in zip(asked, Scorer(model, batch=8).score(asked), strict=True):
        for answer, ours in zip(question.answers, one.answers, strict=True):
            steps = [[*step] for step in question.steps]
            assert ours.total == pytest.approx(from_scratch(model, steps, [*question.query], [*answer]), abs=TOLERANCE)
            if question.before is None:
                assert ours.own is None
            else:
                alone = from_scratch(model, [], [*question.before], [*answer])
                assert ours.own == pytest.approx(alone, abs=TOLERANCE)


def test_a_reply_ends_where_the_turns_say() -> None:
    model = CCMEncoderDecoder(tiny_t5(), ccm_config("concat", recurrent=False)).eval()
    asked = [Question([], [10, 11], [[12]]), Question([], [13, 14, 15], [[12]])]
    whole = model.generate(model.empty_memory(2), *padded([q.query for q in asked]), max_new_tokens=6, do_sample=False)
    stop = int(whole[0, 2])
    turns: Any = SimpleNamespace(
        tokenizer=SimpleNamespace(eos_token_id=stop),
        eos_id=stop,
        cut=lambda ids, stops: None,
        pending=lambda ids, stops: 0,
    )
    turns.decode = lambda ids, but=0: ""
    _, replies = answering(model, turns, 6).read(model.empty_memory(2), asked)
    expected = [row[: row.index(stop) + 1] if stop in row else row for row in whole.tolist()]
    assert [reply.said for reply in replies] == expected
    assert len(replies[0].ids) < 5


def test_entries_and_bytes_are_counted() -> None:
    question = Question([[5, 6, 7], [8, 9]], [10, 11], [[12, 13, 14]])
    for rule, entries, peak in (("concat", 4, 8), ("full", 5, 9), ("none", 0, 4)):
        model = CCMEncoderDecoder(tiny_t5(), ccm_config(rule, recurrent=False)).eval()
        (one,) = Scorer(model).score([question])
        assert (one.entries, one.peak) == (entries, peak)
        assert one.kv_bytes == entries * 8 * (3 * 2 * 4 * 8 + 32)
