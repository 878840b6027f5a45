"""Logs of several processes: what all would say, the first one says."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path

import pytest

import ccm
from ccm.data.examples import log_left_out, tell_held_out
from ccm.data.reading import warn_once
from ccm.data.settings import DataSettings

ROOT = Path(ccm.__file__).parent
LOGGING = sorted(  # modules
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    for path in ROOT.rglob("*.py")
    if "ogger(__name__)" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize(("rank", "told"), [(None, 4), ("0", 4), ("1", 0), ("10", 0)])
def test_only_the_first_process_warns_of_the_data(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, rank: str | None, told: int
) -> None:
    monkeypatch.setenv("RANK", rank) if rank else monkeypatch.delenv("RANK", raising=False)
    warn_once(f"{tmp_path}: not read")
    tell_held_out(0, DataSettings(eval_samples=1), "there are none")
    log_left_out("title", Counter({"too long": 1, "too short": 2}))
    assert len(caplog.records) == told


@pytest.mark.parametrize("name", LOGGING)
def test_only_the_first_process_writes_into_any_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    module = importlib.import_module(name)
    (logger,) = (value for value in vars(module).values() if type(value).__name__ == "Logger")
    for rank, told in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        logger.warning("the same in every process")
        assert len(caplog.records) == told
