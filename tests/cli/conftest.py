"""Commands in this process."""

from __future__ import annotations

import pytest
from copies import copied_builtin

PLACES = ("chat", "demo", "evaluate", "writes")


@pytest.fixture(autouse=True)
def _builtin_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    copied_builtin(monkeypatch, *(f"ccm.cli.commands.{place}.load_model" for place in PLACES), "ccm.models.load.load")
