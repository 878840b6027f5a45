"""Model cards from settings and results, and the way to the Hub by a stand-in for its library."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from helpers import tiny_base, tiny_model
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ccm.adapters import sharing
from ccm.core.errors import AdapterError, ConfigError
from ccm.engine.adapter_files import read_adapter
from ccm.engine.decoder import CCMModel
from ccm.evaluation.results import Measurement, Result


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter of a base with a Hub id."""
    tiny_model("merge", n_tok=3, sink=True, base_model="org/base").save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


class Hub:
    """What is asked of the Hub, and the files that would be there; it may refuse."""

    refuses: Exception | None = None

    def __init__(self) -> None:
        self.created: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}

    def create_repo(self, name: str, **options: Any) -> SimpleNamespace:
        if self.refuses:
            raise self.refuses
        self.created = {"name": name, **options}
        return SimpleNamespace(repo_id=f"me/{name}" if "/" not in name else name)

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.files = {
            str(p.relative_to(folder_path)): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()
        }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    one = Hub()
    monkeypatch.setattr(sharing, "HfApi", lambda: one)
    return one


def result(method: str, perplexity: float) -> Result:
    figures = {"perplexity": perplexity}
    line = Measurement(
        {"name": "dialog"},
        method,
        method,
        3,
        None,
        "model",
        None,
        "b",
        2,
        "",
        1,
        {},
        {},
        "perplexity",
        figures,
        {},
        9,
        3.0,
        96,
        9.0,
        288,
        0.1,
        0.2,
    )
    return Result(line, [-1.0], [9], ["dialog"])


def test_a_card_tells_settings_use_and_results(folder: Path) -> None:
    text = sharing.make_card(read_adapter(folder), "org/adapter", [[result("merge", 5.25)]])
    assert text.startswith("---\nbase_model: org/base\nbase_model_relation: adapter\n")
    assert 'ccm.load("org/base", adapter="org/adapter")' in text
    for line in ("| rule | merge |", "| COMP tokens a step (N) | 3 |", "| sink | yes |", "| LoRA | rank 4, alpha 16"):
        assert line in text
    assert "### dialog" in text
    assert "| 2 | merge | 3 | 5.25" in text
    assert "## Results" not in sharing.make_card(read_adapter(folder), "org/adapter")


def test_what_is_pushed_loads_as_it_did(folder: Path, hub: Hub, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sharing.push(folder, "adapter", private=True) == "https://huggingface.co/me/adapter"
    assert hub.created == {"name": "adapter", "private": True, "exist_ok": True}
    assert sorted(hub.files) == ["README.md", "ccm_adapter.safetensors", "ccm_config.json"]
    (tmp_path / "fetched").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "fetched" / name).write_bytes(content)
    assert (
        CCMModel.from_pretrained(tmp_path / "fetched", tiny_base()).origin
        == CCMModel.from_pretrained(folder, tiny_base()).origin
    )
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_readme_of_ones_own_goes_along_instead(folder: Path, hub: Hub) -> None:
    (folder / "README.md").write_text("Mine.")
    sharing.push(folder, "me/adapter")
    assert hub.files["README.md"] == b"Mine."


def test_a_readme_that_is_not_utf_8_is_refused_by_name(folder: Path, hub: Hub) -> None:
    (folder / "README.md").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(AdapterError, match="README.md cannot be read: .*; save it as UTF-8"):
        sharing.push(folder, "mine")
    assert not hub.files


@pytest.mark.parametrize("base", ["", "../base", "absolute"])
def test_a_base_that_nobody_else_finds_is_refused_unless_its_hub_id_is_given(
    base: str, hub: Hub, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    place = str(tmp_path / "base") if base == "absolute" else base
    tiny_model(base_model=place).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="give its Hub id with base=OWNER/NAME"):
        sharing.push(tmp_path / "adapter", "me/adapter")
    assert not hub.files
    sharing.push(tmp_path / "adapter", "me/adapter", base="org/base")
    assert str(tmp_path).encode() not in b"".join(hub.files.values())
    assert b'"base_model": "org/base"' in hub.files["ccm_config.json"]


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        (LocalTokenNotFoundError("No token."), r"No token. The Hub has to know you: log in"),
        (HfHubHTTPError("403 Forbidden: you may not write here.", response=MagicMock(headers={})), "403 Forbidden"),
    ],
)
def test_a_refusal_of_the_hub_is_told(folder: Path, hub: Hub, refusal: Exception, message: str) -> None:
    hub.refuses = refusal
    with pytest.raises(AdapterError, match=f"The upload of me/adapter to the Hub failed: {message}"):
        sharing.push(folder, "me/adapter")
