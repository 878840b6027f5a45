"""Reports: when a gain is stated, how runs are merged, and what the pictures show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ccm.evaluation.metrics import Likelihood, perplexity, standard_error
from ccm.evaluation.report import (
    UNSTATED,
    brief,
    by_task,
    gain,
    mean_over_tasks,
    merged,
    overview,
    rows_of,
    section,
    tables,
)
from ccm.evaluation.results import NOT_FINITE, Measurement, Result


def result(
    rule: str, values: list[float], tasks: str = "", base: str = "a", tokens: Sequence[int] | None = None
) -> Result:
    """Of answers of ten tokens each, or so many, or of options where tasks are named, a letter each."""
    weights = [*tokens] if tokens is not None else [10] * len(values)
    if tasks:
        by_task = {name: [v for v, t in zip(values, tasks, strict=True) if t == name] for name in sorted({*tasks})}
        figures = {"acc_norm": sum(sum(of) / len(of) for of in by_task.values()) / len(by_task)}
    else:
        answers = [Likelihood(count * value, count) for value, count in zip(values, weights, strict=True)]
        figures = {"perplexity": perplexity(answers)}
    (main,) = figures
    task = {"name": "dialog"}
    line = Measurement(
        task,
        rule,
        rule,
        1,
        None,
        "model",
        None,
        base,
        1,
        "",
        len(values),
        {},
        {},
        main,
        figures,
        {},
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    return Result(line, values, weights, [*tasks] or [""] * len(values))


def test_a_gain_is_stated_only_where_full_and_none_differ_clearly() -> None:
    full, none = result("full", [-2.0, -2.1, -1.9, -2.0]), result("none", [-3.0, -3.0, -2.9, -3.1])
    some = result("concat", [-2.5, -2.5, -2.5, -2.5])
    assert gain(some, [full, none, some]) == (pytest.approx(0.5), pytest.approx(0.0354, abs=1e-4))
    assert gain(full, [full, none, some]) is None
    noisy = result("full", [-2.0, -4.5, -1.5, -3.8])
    assert gain(some, [noisy, none, some]) is None
    nearly, clearly = result("full", [-1.0, -3.0, -0.9, -3.1]), result("full", [-1.0, -2.5, -0.9, -2.6])
    assert gain(some, [nearly, none, some]) is None  # 1.7 standard errors
    assert gain(some, [clearly, none, some]) is not None  # 2.9
    assert gain(some, [full, some]) is None
    assert gain(some, [replace(none, line=replace(none.line, rule="full")), none, some]) is None  # no gain at all


@given(st.integers(2, 200_000), st.floats(1.0, 1e9))
def test_no_gain_is_stated_where_full_context_is_worse_than_a_guess(vocabulary: int, of_full: float) -> None:
    full, none, some = (result(name, [value] * 4) for name, value in (("full", -2.0), ("none", -3.0), ("concat", -2.5)))
    sized = [replace(one, line=replace(one.line, vocab_size=vocabulary)) for one in (none, some)]
    figures = {**full.line.figures, "perplexity": of_full}
    full = replace(full, line=replace(full.line, vocab_size=vocabulary, figures=figures))
    shown = [full, *sized]
    stated = of_full <= vocabulary
    assert (gain(shown[2], shown) is not None) == stated
    assert ("%" in overview(shown)) == ("%" in tables(shown)) == stated  # a model card is made of these
    assert any(UNSTATED in row for row in brief(shown)) != stated


def test_a_gain_is_not_stated_across_bases_or_targets() -> None:
    full, none = result("full", [-2.0, -2.1, -1.9]), result("none", [-3.0, -3.0, -2.9])
    assert gain(result("concat", [-2.5, -2.5, -2.5], base="b"), [full, none]) is None
    assert gain(result("concat", [-2.5, -2.5]), [full, none]) is None
    some = result("concat", [-2.5, -2.5, -2.5])
    assert gain(some, [full, none]) is not None
    for changes in ({"asked": "others"}, {"skipped": {NOT_FINITE: 1}}):
        assert gain(some, [replace(full, line=replace(full.line, **changes)), none]) is None


def test_a_large_task_makes_no_small_ones_gain_certain() -> None:
    """One task of 200 questions without a difference, and one of ten where six are right instead of four."""
    tasks = "a" * 200 + "b" * 10
    full = result("full", [1.0, 0.0] * 100 + [1.0] * 6 + [0.0] * 4, tasks)
    none = result("none", [1.0, 0.0] * 100 + [0.0] * 3 + [1.0] * 4 + [0.0] * 3, tasks)
    difference, error = mean_over_tasks([f - n for f, n in zip(full.values, none.values, strict=True)], full)
    assert difference == pytest.approx(0.1)
    spread = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    assert error == pytest.approx(standard_error(spread, [10] * 10) / 2)
    assert gain(result("concat", [1.0, 0.0] * 105, tasks), [full, none]) is None


def test_tasks_stand_in_the_order_of_their_names() -> None:
    rows = [result("full", [1.0, 0.0, 1.0], "cab"), result("none", [0.0] * 3, "bca")]
    figures = [replace(row.line, by_task={task: {"acc_norm": 0.5} for task in row.tasks}) for row in rows]
    table = by_task([replace(row, line=line) for row, line in zip(rows, figures, strict=True)])
    assert "| step | method | a | b | c |" in table


def test_what_was_left_out_is_listed_once_for_all_its_steps(tmp_path: Path) -> None:
    lines = [result("full", [-1.0]).line, result("none", [-1.0]).line]
    skipped = [{"too long": 3, "never": 0}, {"too long": 3, "odd": 1}]
    rows = [
        Result(replace(line, depth=depth, skipped=skipped[number]), [-1.0], [1], [""])
        for line in lines
        for number, depth in enumerate((2, 4))
    ]
    text = section(rows, tmp_path, "")
    assert text.endswith("\n\n- steps 2, 4: 3 left out, too long\n- step 4: 1 left out, odd\n")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that are drawn, which are not written."""
    figures: list[Figure] = []

    def savefig(figure: Figure, place: Path, **_: object) -> None:
        figures.append(figure)
        place.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def test_the_pictures_tell_eleven_methods_apart_by_step_and_by_peak_memory(tmp_path: Path, drawn: list[Figure]) -> None:
    line = replace(result("full", [-1.0]).line, kv_bytes=1000.0)
    rows = [
        Result(replace(line, method=str(number), depth=depth, peak_bytes=2000.0 * depth), [-1.0], [1], [""])
        for number in range(11)
        for depth in (1, 4)
    ]
    section(rows, tmp_path, "")
    steps, memory = ([*figure.axes[0].lines] for figure in drawn)
    assert [[*line.get_xdata()] for line in steps] == [[1, 4]] * 11
    assert [[*line.get_xdata()] for line in memory] == [[2000.0, 8000.0]] * 11
    for shown in (steps, memory):  # two colours may be alike, two marks not
        assert len({line.get_marker() for line in shown}) == 11
        assert "None" not in {line.get_linestyle() for line in shown}


def test_points_are_not_joined_where_a_line_would_run_back(tmp_path: Path, drawn: list[Figure]) -> None:
    line = result("full", [-1.0]).line
    rows = [
        Result(replace(line, method=method, depth=depth, peak_bytes=peak), [-1.0], [1], [""])
        for method, peaks in {"grows": (1.0, 2.0, 3.0), "shrinks": (1.0, 3.0, 2.0)}.items()
        for depth, peak in zip((1, 2, 4), peaks, strict=True)
    ]
    text = section(rows, tmp_path, "")
    steps, memory = ({line.get_linestyle() for line in figure.axes[0].lines} for figure in drawn)
    assert (steps, memory) == ({"-"}, {"None"})
    assert "(memory.png)\n\n*The perplexity of each method by" in text


def test_a_gain_is_taken_among_results_of_the_same_base() -> None:
    values = {"full": [-2.0, -2.1, -1.9], "none": [-3.0, -3.0, -2.9], "concat": [-2.5, -2.5, -2.5]}
    rows = [result(rule, v, base=base) for base in ("a", "b") for rule, v in values.items()]
    rows[5] = result("concat", [-2.9, -2.9, -2.9], base="b")
    gains = [gain(row, rows) for row in rows]
    assert gains[:2] + gains[3:5] == [None] * 4
    assert gains[2] == (pytest.approx((2.9667 - 2.5) / 0.9667, abs=1e-3), pytest.approx(0.0452, abs=1e-4))
    assert gains[5] == (pytest.approx((2.9667 - 2.9) / 0.9667, abs=1e-3), pytest.approx(0.0357, abs=1e-4))


@pytest.mark.parametrize("longest", [1, 60])
def test_the_error_of_a_gain_is_that_of_questions_drawn_anew(longest: int) -> None:
    rng = np.random.default_rng(3)
    tokens = rng.integers(1, longest, 200, endpoint=True)
    none = rng.normal(-3.0, 0.5, 200)
    full = none + rng.normal(0.4, 0.3, 200)
    some = none + rng.normal(0.3, 0.3, 200)
    by_rule = {"full": full, "none": none, "concat": some}
    rows = [result(rule, [*values], tokens=tokens.tolist()) for rule, values in by_rule.items()]
    found = gain(rows[2], rows)
    assert found is not None
    drawn = rng.integers(0, 200, (2000, 200))
    shares = (tokens * (some - none))[drawn].sum(1) / (tokens * (full - none))[drawn].sum(1)
    assert found.share == pytest.approx((tokens * (some - none)).sum() / (tokens * (full - none)).sum())
    assert found.error == pytest.approx(shares.std(), rel=0.1)
    difference, _ = mean_over_tasks([*(full - none)], rows[0])
    assert difference == pytest.approx((tokens * (full - none)).sum() / tokens.sum())


def test_runs_of_several_seeds_are_draws_of_a_method() -> None:
    full, none = result("full", [-2.0, -2.1, -1.9]), result("none", [-3.0, -3.0, -2.9])
    one, other = result("concat", [-2.5, -2.5, -2.5]), result("concat", [-2.4, -2.4, -2.4])
    runs = {"first": [full, none, one], "second": [full, none, other]}
    (apart,) = merged(runs)
    assert [method for _, method, _ in rows_of(apart)] == ["full", "none", "concat [first]", "concat [second]"]
    (together,) = merged(runs, draws=True)
    assert [(method, group) for _, method, group in rows_of(together)] == [
        ("full", [full]), ("none", [none]), ("concat", [one, other]),
    ]  # fmt: skip


def test_a_gain_of_replies_is_that_of_their_main_figure() -> None:
    def replies(rule: str, values: list[float]) -> Result:
        row = result(rule, [-2.0] * len(values))
        line = replace(row.line, main="answer_f1", figures={"answer_f1": sum(values) / len(values)})
        return replace(row, line=line, values=values, weights=[1] * len(values))

    full, none, some = replies("full", [0.9, 1.0, 0.8]), replies("none", [0.1, 0.0, 0.2]), replies("concat", [0.7] * 3)
    assert gain(some, [full, none, some]) == (pytest.approx(0.6 / 0.8), pytest.approx(0.0361, abs=1e-4))
