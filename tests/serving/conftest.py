"""Tests that hold on every store."""

from __future__ import annotations

import pytest
import stores


@pytest.fixture(params=stores.KINDS)
def every_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are of this kind."""
    monkeypatch.setattr(stores, "kind", request.param)
