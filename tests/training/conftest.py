"""The tiny base and its data, made once."""

from __future__ import annotations

import pytest
from tiny_training import Tiny, write_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return write_tiny(tmp_path_factory.mktemp("tiny"))
