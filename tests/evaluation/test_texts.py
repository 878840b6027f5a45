"""Replies judged by hand."""

from __future__ import annotations

import pytest

from ccm.evaluation.texts import FIGURES, JudgedReply, exact_match, f1, judge, means, rouge, stems, words


def test_case_punctuation_and_articles_make_no_difference() -> None:
    assert words("The  dog's an Owner, and a friend.") == ["dogs", "owner", "and", "friend"]
    assert exact_match("the Blue house!", "Blue, house") == 1.0
    assert exact_match("house blue", "blue house") == 0.0


def test_the_f1_counts_words_as_often_as_both_have_them() -> None:
    figures = judge("blue blue blue boat", ["a blue blue car"])
    assert figures["answer_f1"] == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert f1([], ["blue"]) == f1(["blue"], []) == f1([], []) == 0.0


def test_rouge_is_of_stems_in_common() -> None:
    # cat, run, fast in this order: 3 of 4 words of the reply, 3 of 5 of the answer; no two of them stand side by side
    f1 = 2 * 0.75 * 0.6 / 1.35
    expected = {"rouge_1": f1, "rouge_2": 0.0, "rouge_l": f1, "rouge_lsum": f1}
    assert rouge("cats quickly running fast", "the cat runs very fast ") == pytest.approx(expected)
    assert rouge("fast the cat", "the cat, fast")["rouge_2"] == pytest.approx(0.5)
    assert rouge("fast the cat", "the cat, fast")["rouge_l"] == pytest.approx(2 / 3)
    assert {*rouge("", "cat").values()} == {0.0}


def test_rouge_lsum_goes_sentence_by_sentence() -> None:
    swapped = rouge("She ran. He slept!", "He slept! She ran.")
    assert swapped["rouge_l"] == 0.5
    assert swapped["rouge_lsum"] == 1.0


def test_of_several_answers_the_best_counts_for_each_figure() -> None:
    figures = judge("five blue", ["5", "five cats", "Five, blue."])
    assert figures == dict.fromkeys(FIGURES, 1.0)
    assert judge("It is in the Blue Box.", ["in the blue box", "b"])["holds"] == 1.0
    assert judge("It is in a box.", ["in the blue box", "b"])["holds"] == 0.0
    assert judge("five", ["5", "five cats"])["answer_f1"] == pytest.approx(2 / 3)


def test_stems_are_compared_without_and() -> None:
    assert stems("Running and the swimming") == ["run", "swim"]
    assert judge("he ran, swims", ["swimming and ran"], "stems")["answer_f1"] == pytest.approx(0.8)
    assert judge("he ran, swims", ["swimming and ran"])["answer_f1"] == pytest.approx(2 / 6)


def test_of_a_list_every_part_counts_by_the_best_part_of_the_reply() -> None:
    # pottery: 1; long camping: 2/3 with "camping"; painting: nothing
    figures = judge("camping, pottery", ["pottery, long camping, painting"], "parts")
    assert figures["answer_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert figures["em"] == 0.0


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Not mentioned in the conversation.", 1.0),
        ("There is no information available", 1.0),
        ("(b)", 1.0),
        ("B", 1.0),
        ("(a)", 0.0),
        ("(b) Blue", 0.0),
        ("", 0.0),
    ],
)
def test_a_phrase_may_stand_anywhere_and_a_letter_alone(reply: str, right: float) -> None:
    figures = judge(reply, ["b", "not mentioned", "no information available"], "phrase")
    assert figures == dict.fromkeys(FIGURES, right)


def test_the_mean_is_a_plain_one() -> None:
    replies = [JudgedReply("", "", [], "", dict.fromkeys(FIGURES, value)) for value in (0.0, 0.0, 0.9)]
    assert means(replies) == pytest.approx(dict.fromkeys(FIGURES, 0.3))
    assert means([]) == {}
