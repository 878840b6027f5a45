"""The benchmark of throughput: it finds the largest batch, and measures every memory in it."""

from __future__ import annotations

import pytest
import torch
from helpers import FAMILIES

from benchmarks import models, throughput
from benchmarks.common import Options
from benchmarks.models import VOCAB
from ccm.engine.decoder import CCMModel


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 8, 60, 300, 950])
def test_the_largest_batch_is_found_to_an_eighth_and_fits(limit: int) -> None:
    asked: list[int] = []

    def fits(batch: int) -> bool:
        asked.append(batch)
        return batch <= limit

    found = throughput.largest(fits, most=1024)
    assert found <= limit < found + max(1, 2 ** (limit.bit_length() - 1) // 8)
    assert len(asked) <= limit.bit_length() + 4
    assert throughput.largest(lambda batch: True, most=64) == 64


def test_every_memory_is_measured_in_its_best_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    config = FAMILIES["llama"]()
    config.vocab_size = VOCAB
    monkeypatch.setitem(models.SIZES, "tiny", (config, torch.float32))
    monkeypatch.setattr(throughput, "ENTRIES", {"full context": 40, "concat N=8": 16, "merge N=8": 8})
    monkeypatch.setattr(throughput, "BATCHES", (1, 2))
    report = throughput.run(Options(rounds=1, warmup=0, size="tiny"))
    assert [row[:2] for row in report.rows] == [["full context", "40"], ["concat N=8", "16"], ["merge N=8", "8"]]
    assert [data["kv_bytes"] for data in report.data] == [2 * 3 * 32 * 4 * entries for entries in (40, 16, 8)]
    assert "model: tiny" in report.setting.lower()
    assert report.rows[0][5] == "**1.00**"


def test_a_batch_that_runs_out_of_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(model: CCMModel, entries: int, batch: int) -> object:
        if batch > 3:
            raise torch.OutOfMemoryError("no memory")
        return lambda _: None

    monkeypatch.setattr(throughput, "_reading", read)
    fits = throughput._fits
    assert [fits(None, 8, batch) for batch in (1, 3, 4)] == [True, True, False]
