"""The control: queries read with the memory of another conversation, and the share of a gain that is content."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from helpers import make_sample, tiny_model

from ccm.data.questions import Question
from ccm.evaluation.control import ControlQuestions
from ccm.evaluation.report import content
from ccm.evaluation.results import Measurement, Result
from ccm.evaluation.scoring import Scorer


def question(number: int, steps: int, head: int = 0) -> Question:
    sample = make_sample([3] * steps, 2, seed=number, head=head)
    return Question([step.ids for step in sample.steps], sample.query.ids, [[7, 8], [number % 40]], 1, head=sample.head)


ASKED = [question(i, 1 + i % 3) for i in range(12)]


def test_another_conversation_has_as_many_steps_and_none_in_common() -> None:
    control = ControlQuestions(ASKED)
    swapped = [*control]
    assert control.found == [True] * 12
    for own, other in zip(ASKED, swapped, strict=True):
        assert len(other.steps) == len(own.steps)
        assert other.steps in [one.steps for one in ASKED]
        assert not {*map(tuple, own.steps)} & {*map(tuple, other.steps)}
        assert (other.query, other.answers, other.right) == (own.query, [own.answers[1]], 0)
    assert [one.steps for one in ControlQuestions(ASKED)] == [one.steps for one in swapped], (
        "the seed alone fixes the choice"
    )
    assert [one.steps for one in ControlQuestions(ASKED, seed=1)] != [one.steps for one in swapped]


def test_where_there_is_no_other_conversation_none_is_read() -> None:
    same = replace(ASKED[0], query=[5, 6])  # another question about the same conversation
    control = ControlQuestions([ASKED[0], same, ASKED[1]])
    assert [*control] == []
    assert control.found == [False] * 3
    assert not [*ControlQuestions([replace(one, steps=[]) for one in ASKED])]


def test_another_stretch_of_the_same_conversation_is_no_other() -> None:
    asked = [replace(question(i, 2), source=source) for i, source in enumerate("aabb")]
    swapped = [*ControlQuestions(asked)]
    assert len(swapped) == 4
    for own, other in zip(asked, swapped, strict=True):
        assert next(one.source for one in asked if one.steps == other.steps) != own.source
    assert [*ControlQuestions(asked[:2])] == []


def test_the_head_is_the_questions_own() -> None:
    asked = [question(i, 2, head=3) for i in range(4)]
    assert [one.head for one in ControlQuestions(asked)] == [one.head for one in asked]


def result(rule: str, nats: list[float], others: list[float | None]) -> Result:
    line = Measurement(
        {"name": "custom"},
        rule,
        rule,
        2,
        None,
        "",
        None,
        "base",
        2,
        "asked",
        len(nats),
        {},
        {},
        "perplexity",
        {"perplexity": 2.0},
        {},
        1,
        1,
        1,
        1,
        1,
        1,
        1,
    )
    return Result(line, nats, [1] * len(nats), [""] * len(nats), nats, others)


def test_content_is_the_share_of_a_gain_that_is_lost_with_anothers_memory() -> None:
    none = result("none", [-4.0, -5.0, -4.5, -5.5], [None] * 4)
    own = result("concat", [-2.0, -3.0, -2.5, -3.5], [-3.0, -4.0, -3.5, -4.5])
    assert content(own, [none, own]) == pytest.approx((0.5, 0.0))
    uneven = result("concat", [-2.0, -3.0, -2.5, -3.5], [-3.0, -3.5, None, -4.5])
    found = content(uneven, [none, uneven])
    assert found is not None
    assert found.share == pytest.approx(2.5 / 6)
    assert 0 < found.error < 0.2


def test_content_is_not_stated_without_a_gain_or_a_measure_of_none() -> None:
    own = result("concat", [-2.0, -3.0], [-3.0, -4.0])
    noise = result("none", [-2.1, -2.9], [None] * 2)
    earlier = result("none", [], [])
    for others in ([own], [own, noise], [own, earlier], [own, replace(noise, nats=[])]):
        assert content(own, others) is None
    assert content(replace(own, others=[None, None]), [own, noise]) is None


def test_scores_with_anothers_memory_are_those_of_a_question_with_its_steps() -> None:
    model = tiny_model("concat")
    (first, *_), asked = [*ControlQuestions(ASKED)], ASKED[0]
    (scored,) = Scorer(model).score([first])
    other = next(one for one in ASKED if one.steps == first.steps)
    (expected,) = Scorer(model).score([replace(asked, steps=other.steps)])
    assert math.isclose(scored.answers[0].total, expected.answers[1].total, rel_tol=1e-9)
    (own,) = Scorer(model).score([asked])
    assert abs(own.answers[1].total - scored.answers[0].total) > 1e-6
