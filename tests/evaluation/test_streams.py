"""Texts read as streams: the figures, what is kept of a run that stops, and what is refused."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOLERANCE

import ccm
from ccm.core.errors import ConfigError, DataError
from ccm.evaluation import streams
from ccm.evaluation.settings import Selection
from ccm.evaluation.stream_results import Point, StreamResult, totals
from ccm.evaluation.streams import StreamRun, read_texts, run_streams, stream_methods
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

SMALL = StreamSettings(cache_size=40, span=16, memory_size=8, sink=1)
TEXT = "My name is Anna. I live in Oslo, and I like tea.\n\nWhat is my name? " * 12


@pytest.fixture(autouse=True)
def _short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "STRETCH", 50)
    monkeypatch.setattr(streams, "SAVE_SECONDS", 0.0)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_figures_are_those_of_the_stream(book: Path) -> None:
    run = StreamRun([book], Selection(baselines=("window", "blocks")), SMALL, offset=7, tokens=120)
    results = run_streams(run)
    assert [result.method for result in results] == ["concat", "window", "blocks"]
    model, tokenizer = ccm.load("builtin")
    ids = tokenizer.encode(TEXT, add_special_tokens=False)[7:127]
    whole = torch.tensor([[tokenizer.bos_token_id, *ids]])
    for result, evict in zip(results, ("compress", "window", "blocks"), strict=True):
        stream = StreamingMemory(model, replace(SMALL, evict=evict))
        nll = stream.nll(whole)
        assert result.done
        assert result.last.tokens == nll.numel() == 120
        assert result.last.perplexity == pytest.approx(math.exp(nll.mean()), rel=TOLERANCE)
        assert (result.largest, result.evictions) == (40, stream.evictions)
        assert result.bytes == 40 * stream.nbytes // stream.entries
        first = result.points[0]
        assert first.perplexity == pytest.approx(math.exp(nll[0, : first.tokens].mean()), rel=TOLERANCE)
        middle = nll[0, first.tokens : result.points[1].tokens]
        assert result.points[1].since(first) == pytest.approx(math.exp(middle.mean()), rel=TOLERANCE)
    assert len({result.last.perplexity for result in results}) == 3


def test_a_tolerance_adds_methods_beside_the_fixed_spans(book: Path) -> None:
    both, settings = Selection(rules=["concat", "gate"], baselines=()), replace(SMALL, tolerance=5)
    names = ["concat", "gate", "concat, sentence ends ±5", "gate, sentence ends ±5"]
    assert [method.name for method in stream_methods(both, settings)] == names
    fixed, ends = run_streams(StreamRun([book], replace(both, rules=["concat"]), settings))
    assert fixed.last.perplexity != ends.last.perplexity


def test_a_run_that_stops_goes_on_where_it_was(book: Path, tmp_path: Path) -> None:
    run = StreamRun([book], settings=SMALL, generate=5)
    whole = run_streams(run)
    run = replace(run, selection=Selection(output=tmp_path / "kept"))
    seen: list[tuple[str, int]] = []

    def stop(result: StreamResult) -> None:
        seen.append((result.method, result.last.read))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_streams(run, stop)
    again: list[tuple[str, int]] = []
    results = run_streams(run, lambda result: again.append((result.method, result.last.read)))
    assert again[0][0] == "concat"
    assert again[0][1] > seen[-1][1]
    for one, other in zip(results, whole, strict=True):
        assert [(p.read, p.tokens, p.entries) for p in one.points] == [
            (p.read, p.tokens, p.entries) for p in other.points
        ]
        assert one.last.nll == pytest.approx(other.last.nll, rel=TOLERANCE)
        assert (one.continued, one.largest, one.evictions) == (other.continued, other.largest, other.evictions)
    done: list[str] = []
    assert run_streams(run, lambda result: done.append(result.method)) == results
    assert not done  # nothing was read again
    lines = [json.loads(line) for line in (tmp_path / "kept/results.jsonl").read_text().splitlines()]
    assert [line["method"] for line in lines] == ["concat", "window"]
    assert all(isinstance(line["continued"], str) for line in lines)
    assert (tmp_path / "kept/perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_figures_without_their_stream_are_read_again(book: Path, tmp_path: Path) -> None:
    run = StreamRun([book], Selection(baselines=(), output=tmp_path / "kept"), SMALL, tokens=100)
    (first,) = run_streams(run)
    for path in (tmp_path / "kept/streams").glob("*.stream"):
        path.unlink()
    read: list[int] = []
    (again,) = run_streams(run, lambda result: read.append(result.last.read))
    assert read[-1] == 101
    assert again.last.nll == pytest.approx(first.last.nll)
    (figures,) = (tmp_path / "kept/streams").glob("*.json")
    figures.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="delete it"):
        run_streams(run)


def test_several_texts_and_their_totals(book: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "a.txt").write_text(TEXT, encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write(TEXT[30:])
    results = run_streams(StreamRun([folder], Selection(baselines=()), SMALL, tokens=60))
    assert [result.text for result in results] == ["a.txt", "b.txt.gz"]
    (total,) = totals(results)
    a, b = (result.last for result in results)
    assert (total.texts, total.tokens) == (2, 120)
    assert total.perplexity == pytest.approx(math.exp((a.nll + b.nll) / 120))
    assert total.mean == pytest.approx((a.perplexity + b.perplexity) / 2)
    (folder / "again").mkdir()
    (folder / "again/a.txt").write_text("x", encoding="utf-8")
    assert [*read_texts([folder])] == [str(folder / "a.txt"), str(folder / "again/a.txt"), "b.txt.gz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (b"\xff\xfe\x00", "is UTF-16 text"), (b"a\0b", "null characters")],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "file.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        run_streams(StreamRun([path]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"offset": 100_000}, "leaves none"),
        ({"offset": -1}, "offset is -1"),
        ({"tokens": -1}, "tokens is -1"),
        ({"selection": Selection(rules=["full"])}, "does not compress step by step"),
        ({"selection": Selection(rules=["concat", "concat"])}, "concat is asked for twice"),
        ({"selection": Selection(baselines=["bm25"])}, "there are window, blocks"),
        ({"selection": Selection(model="elsewhere", baselines=())}, "no method to compare"),
        ({"settings": replace(SMALL, cache_size=5000)}, "must be at most"),
    ],
)
def test_what_cannot_be_read_is_refused(book: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        run_streams(StreamRun([book], **settings))


def test_a_point_without_predictions_has_no_perplexity() -> None:
    assert math.isnan(Point(1, 0, 0.0, 1, 0.0).perplexity)
