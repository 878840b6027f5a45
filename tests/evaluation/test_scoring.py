"""Likelihoods of answers: whatever is shared and batched, they are those of one parallel pass for each answer."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import BOS, EOS, TABLE, TOLERANCE, VOCAB, Row, ccm_config, greedy_by_parallel, tiny_base, tiny_model

from ccm.chat.turns import SeparatorTurns
from ccm.core.errors import ConfigError, InputError
from ccm.data.questions import Question
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample, Step, build_layout
from ccm.evaluation.metrics import Likelihood
from ccm.evaluation.scoring import ScoredQuestion, Scorer, Seconds

SETTINGS: tuple[dict[str, object], ...] = ({"sink": True}, {"recurrent": False}, {"positions": "base"})
CASES = [(row, {}) for row in TABLE]  # every rule, and every setting for a rule that grows and for one that mixes
CASES += [(row, settings) for row in TABLE if row.name in ("concat", "gate") for settings in SETTINGS]


def text(rng: random.Random, least: int, most: int) -> list[int]:
    return [rng.randrange(5, VOCAB) for _ in range(rng.randint(least, most))]


def questions(seed: int = 0, count: int = 12) -> list[Question]:
    """Of 0 to 3 steps, with 1 to 3 answers of 1 to 4 tokens."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        steps = [text(rng, 1, 6) for _ in range(rng.randint(0, 3))]
        answers = [text(rng, 1, 4) for _ in range(rng.randint(1, 3))]
        before = text(rng, 1, 2) if rng.random() < 0.5 else None
        right = rng.randrange(len(answers))
        made.append(Question(steps, text(rng, 1, 5), answers, right, f"task {right}", before))
    return made


def model_of(row: Row, **settings: object) -> CCMModel:
    model = CCMModel(tiny_base(), ccm_config(row.name, n_tok=2, rule_options=row.options, **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in model.adapter_tensors().values():
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model


@torch.no_grad()
def from_scratch(model: CCMModel, question: Question, answer: list[int]) -> float:
    """Log-likelihood of one answer by a parallel pass of its own."""
    steps = [Step(step) for step in question.steps]
    targets = [IGNORE] * (len(question.query) - 1) + [*answer, EOS]
    sample = Sample(steps, Step([*question.query, *answer], targets))
    log_p = model(build_layout([sample], model.config, model.rule, 0)).logits.log_softmax(-1)
    return float(log_p[range(len(answer)), answer].sum())


def assert_as_from_scratch(model: CCMModel, asked: list[Question]) -> None:
    for question, one in zip(asked, scored_by(model, asked, batch=4), strict=True):
        assert (one.task, one.right) == (question.task, question.right)
        for answer, ours in zip(question.answers, one.answers, strict=True):
            assert ours.total == pytest.approx(from_scratch(model, question, [*answer]), abs=TOLERANCE)
            assert ours.tokens == len(answer)


def scored_by(model: CCMModel, asked: list[Question], batch: int) -> list[ScoredQuestion]:
    return [*Scorer(model, batch=batch).score(asked)]


@pytest.mark.covers(cases=5)
@pytest.mark.parametrize(("row", "settings"), CASES, ids=lambda case: getattr(case, "name", str(case)))
def test_answers_have_the_likelihoods_of_a_parallel_pass_each(row: Row, settings: dict[str, object]) -> None:
    model, asked = model_of(row, **settings), questions()
    assert_as_from_scratch(model, asked)


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "gpt_neox"])
def test_other_families_score_alike(family: str) -> None:
    model, asked = CCMModel(tiny_base(family), ccm_config("concat", n_tok=2)).eval(), questions(1)
    assert_as_from_scratch(model, asked)


def totals(one: ScoredQuestion) -> list[float]:
    return [answer.total for answer in one.answers]


def test_batches_and_pools_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = model_of(TABLE[0]), questions(2)
    alone = scored_by(model, asked, batch=1)
    monkeypatch.setattr("ccm.evaluation.scoring.POOL", 5)
    together = scored_by(model, asked, batch=8)
    for one, other in zip(alone, together, strict=True):
        assert totals(one) == pytest.approx(totals(other), abs=TOLERANCE)
        assert (one.entries, one.peak, one.kv_bytes) == (other.entries, other.peak, other.kv_bytes)


def test_an_answers_own_likelihood_is_that_of_the_base_alone() -> None:
    model, asked = model_of(TABLE[0]), questions(3)
    stock = tiny_base()
    for question, one in zip(asked, scored_by(model, asked, batch=4), strict=True):
        for answer, scored in zip(question.answers, one.answers, strict=True):
            if question.before is None:
                assert scored.own is None
                continue
            ids = torch.tensor([[*question.before, *answer]])
            with torch.no_grad():
                log_p = stock(ids).logits[0, -len(answer) - 1 : -1].log_softmax(-1)
            assert scored.own == pytest.approx(float(log_p[range(len(answer)), [*answer]].sum()), abs=TOLERANCE)


def test_entries_and_their_peak_are_counted() -> None:
    asked = [Question([[BOS, 5, 6, 7], [8, 9]], [10, 11, 12], [[13, 14], [15]])]
    (concat,) = scored_by(model_of(TABLE[0]), asked, batch=1)
    assert (concat.entries, concat.peak) == (4, 8)  # the memory, the query, and the answer but for its last token
    long = [Question([[BOS, *range(5, 25)], [8, 9]], [10, 11, 12], [[13, 14]])]
    (concat,) = scored_by(model_of(TABLE[0]), long, batch=1)
    assert concat.peak == 21 + 2  # the first step as it is read, with its COMP tokens
    full = next(row for row in TABLE if row.name == "full")
    (whole,) = scored_by(model_of(full), asked, batch=1)
    assert (whole.entries, whole.peak) == (6, 10)
    (short,) = scored_by(model_of(full), [Question([[BOS, 5, 6, 7, 8]], [9], [[10]])], batch=1)
    assert short.peak == 6  # no COMP tokens
    assert whole.kv_bytes == 6 * concat.kv_bytes // concat.entries
    none = next(row for row in TABLE if row.name == "none")
    (nothing,) = scored_by(model_of(none), asked, batch=1)
    assert (nothing.entries, nothing.peak, nothing.kv_bytes) == (0, 4, 0)


def test_a_question_beyond_the_models_positions_is_refused() -> None:
    model = model_of(TABLE[0])
    asked = [Question([[5] * 60], [6] * 60, [[7] * 20])]
    with pytest.raises(InputError, match="end at position 139, but the model was made for 128"):
        scored_by(model, asked, batch=1)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (([[]], [5], [[6]]), "empty step, query or answer"),
        (([[5]], [], [[6]]), "empty step, query or answer"),
        (([[5]], [5], [[6], []]), "empty step, query or answer"),
        (([[5]], [5], [[6]], 1), "number 1, counted from 0, of 1"),
        (([[5]], [5], []), "number 0, counted from 0, of 0"),
    ],
)
def test_questions_that_ask_nothing_are_refused(parts: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Question(*parts)


def test_a_sample_becomes_the_question_of_its_targets() -> None:
    query = Step([8, 9, 10, 11], [IGNORE, 10, 11, EOS])
    question = Question.of(Sample([Step([5, 6]), Step([7])], query), EOS, "some")
    assert (question.steps, question.query, question.answers) == ([[5, 6], [7]], [8, 9], [[10, 11]])
    assert question.task == "some"


class Spelled(SeparatorTurns):
    """Replies as the numbers of their tokens; each ends where a token would be that can be divided by ``ends``."""

    eos_id = -1
    marks = ()

    def __init__(self, ends: int) -> None:
        self.ends, self.tokenizer = ends, SimpleNamespace(eos_token_id=None)

    def cut(self, ids: Sequence[int], stops: Sequence[str] = ()) -> list[int] | None:
        return [*ids[:-1]] if ids[-1] % self.ends == 0 else None

    def pending(self, ids: Sequence[int], stops: Sequence[str] = ()) -> int:
        return 0

    def decode(self, ids: Sequence[int], *, but: int = 0) -> str:
        return " ".join(map(str, ids))


def replied(model: CCMModel, asked: list[Question], batch: int, ends: int = VOCAB + 1) -> list[ScoredQuestion]:
    return [*Scorer(model, batch=batch, generate=6, turns=Spelled(ends)).score(asked)]


def texts_of(scored: list[ScoredQuestion]) -> list[str]:
    return [one.reply.reply for one in scored if one.reply]


def by_parallel(model: CCMModel, question: Question) -> list[int]:
    return greedy_by_parallel(model, Sample([Step(step) for step in question.steps], Step(question.query)), 6)


@pytest.mark.covers(cases=3)
@pytest.mark.parametrize(("row", "settings"), CASES, ids=lambda case: getattr(case, "name", str(case)))
def test_replies_are_the_likeliest_tokens_of_a_parallel_pass_for_each(row: Row, settings: dict[str, object]) -> None:
    model, asked = model_of(row, **settings), questions(4, count=8)
    expected = [by_parallel(model, question) for question in asked]
    assert texts_of(replied(model, asked, batch=4)) == [" ".join(map(str, ids)) for ids in expected]
    assert len({*map(tuple, expected)}) > 4  # they say something


@pytest.mark.parametrize("settings", [{"family": "gemma3"}, {"family": "gpt_neox"}, {"embeddings": "table"}], ids=str)
def test_replies_of_other_families_and_of_comp_tokens_in_the_table(settings: dict) -> None:
    model, asked = tiny_model("concat", n_tok=2, **settings), questions(5, count=6)
    with torch.no_grad():
        model.base.get_output_embeddings().weight[VOCAB:] *= 1000  # rows of COMP tokens, where there are any
    expected = [" ".join(map(str, by_parallel(model, question))) for question in asked]
    assert texts_of(replied(model, asked, batch=4)) == expected


def test_a_reply_ends_by_itself_whatever_the_others_of_its_batch_do() -> None:
    model, asked = model_of(TABLE[0]), questions(6)
    alone, together = (replied(model, asked, batch, ends=3) for batch in (1, 8))
    lengths = [len(text.split()) for text in texts_of(alone)]
    assert len({*lengths}) > 2
    assert texts_of(alone) == texts_of(together)
    assert [one.peak for one in alone] == [one.peak for one in together]
    for question, text in zip(asked, texts_of(alone), strict=True):
        tokens = by_parallel(model, question)
        end = next((i for i, token in enumerate(tokens) if token % 3 == 0), 6)
        assert text == " ".join(map(str, tokens[:end]))


def test_replies_change_no_likelihood() -> None:
    model, asked = model_of(TABLE[0]), questions(7)
    for one, other in zip(scored_by(model, asked, batch=8), replied(model, asked, batch=8), strict=True):
        assert totals(one) == totals(other)
        assert (one.reply is None, other.reply is None) == (True, False)


def test_a_reply_is_judged_by_the_references_or_by_the_right_answer() -> None:
    model = model_of(TABLE[0])
    question = Question([[BOS, 5, 6]], [7, 8], [[9], [10, 11]], right=1)
    said = " ".join(map(str, by_parallel(model, question)))
    (plain,) = replied(model, [question], batch=1)
    (told,) = replied(model, [replace(question, references=["nothing", said])], batch=1)
    assert plain.reply is not None
    assert told.reply is not None
    assert (plain.reply.question, plain.reply.references) == ("7 8", ["10 11"])
    assert (plain.reply.figures["em"], told.reply.figures["em"]) == (0.0, 1.0)


def test_the_tokens_of_a_reply_are_in_view_and_need_positions() -> None:
    model = model_of(TABLE[0])
    (one,) = replied(model, [Question([[BOS, 5]], [6, 7, 8], [[9]])], batch=1)
    assert one.peak == 2 + 3 + 6 - 1  # the memory, the query, and the reply but for its last token
    with pytest.raises(InputError, match="end at position 129"):
        replied(model, [Question([[5] * 60], [6] * 64, [[7]])], batch=1)
    with pytest.raises(ConfigError, match="needs their turns"):
        Scorer(model, generate=1)


def test_writing_takes_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter((0.0, 2.0, 5.0))
    monkeypatch.setattr(Scorer, "_now", lambda _: next(clock))
    scorer = Scorer(model_of(TABLE[0]))
    assert len([*scorer.score(questions(count=1))]) == 1
    assert scorer.seconds == Seconds(write=2.0, read=3.0)


def test_an_answers_own_likelihood_must_be_finite_too() -> None:
    fine, broken = Likelihood(-1.0, 1, own=-2.0), Likelihood(-1.0, 1, own=math.nan)
    assert [ScoredQuestion("", 0, (fine, one), 1, 1, 1, 1).finite for one in (fine, broken)] == [True, False]
