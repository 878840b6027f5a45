"""Where base models are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.core.errors import ConfigError
from ccm.models.locate import locate


@pytest.mark.parametrize(
    ("name", "meant"),
    [("smolm2-135m", "smollm2-135m"), ("SmolLM2-135M", "smollm2-135m"), ("bultin", "builtin"), ("llama7b", "llama-7b")],
)
def test_a_mistyped_short_name_is_refused_before_the_hub_is_asked(name: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {meant}"):
        locate(name)


def test_what_may_be_on_the_hub_or_on_the_disk_is_no_mistyped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-136m").mkdir()
    for name in ("gpt2", "distilgpt2", "me/smolm2-135m", "smollm2-136m"):
        assert locate(name) == name
