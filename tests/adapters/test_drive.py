"""The authors' adapters from their drive, by a stand-in for gdown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from authors import Malicious, authors_folder

from ccm.adapters.drive import download_adapters
from ccm.core.errors import AdapterError, ConfigError
from ccm.models.published import ADAPTERS


class DownloadError(Exception):
    """As gdown's: no OSError."""


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Puts a stand-in in gdown's place that calls what it is given with the folder; returns what is asked of it."""

    def stand_in(give: Callable[[Path], Any]) -> list[dict[str, Any]]:
        asked: list[dict[str, Any]] = []

        def download_folder(**options: Any) -> None:
            asked.append(options)
            Path(options["output"]).mkdir(exist_ok=True)
            give(Path(options["output"]))

        module = SimpleNamespace(
            __spec__=ModuleSpec("gdown", None),
            download_folder=download_folder,
            exceptions=SimpleNamespace(DownloadError=DownloadError),
        )
        monkeypatch.setitem(sys.modules, "gdown", module)
        return asked

    return stand_in


def one(folder: Path) -> None:
    authors_folder(folder / "llama-7b-no", pickled=True, comp=False)


def test_a_set_arrives_under_its_name_when_it_is_whole(tmp_path: Path, drive) -> None:
    asked = drive(one)
    output = tmp_path / "adapters" / "unified"
    assert download_adapters("unified", output) == [output / "llama-7b-no"]
    assert (output / "llama-7b-no" / "pytorch_model.bin").is_file()
    assert [p.name for p in output.parent.iterdir()] == ["unified"]
    assert asked[0]["url"] == ADAPTERS["unified"].drive
    assert asked[0]["resume"]
    assert download_adapters("unified", output) == [output / "llama-7b-no"]
    assert len(asked) == 1


def broken_off(folder: Path) -> None:
    one(folder)
    raise DownloadError("Too many users\nhave viewed the file.")


def cut(folder: Path) -> None:
    one(folder)
    path = folder / "llama-7b-no" / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])


def partial(folder: Path) -> None:
    one(folder)
    (folder / "llama-7b-no" / "pytorch_model.bin").rename(folder / "llama-7b-no" / "pytorch_model.binx.part")


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (broken_off, r"Too many users have viewed the file.\).*with a browser"),
        (cut, "is not whole.*delete the damaged file"),
        (partial, r"is incomplete: \['pytorch_model.binx.part'\]"),
        (lambda folder: None, "it holds no adapter"),
    ],
)
def test_what_is_not_whole_keeps_its_other_name_and_goes_on(
    tmp_path: Path, drive, give: Callable, message: str
) -> None:
    drive(give)
    with pytest.raises(AdapterError, match=message):
        download_adapters("dialog", tmp_path / "dialog")
    assert not (tmp_path / "dialog").exists()
    assert (tmp_path / "dialog.part").is_dir()


def test_a_poisoned_checkpoint_is_found_and_not_executed(tmp_path: Path, drive) -> None:
    def poisoned(folder: Path) -> None:
        one(folder)
        torch.save({"a": Malicious(tmp_path / "executed")}, folder / "llama-7b-no" / "pytorch_model.bin")

    drive(poisoned)
    with pytest.raises(AdapterError, match="holds more than tensors"):
        download_adapters("dialog", tmp_path / "dialog")
    assert not (tmp_path / "executed").exists()


def test_an_unknown_set_a_file_in_the_way_and_no_gdown_are_named(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="no set of published adapters 'unify'. Did you mean unified"):
        download_adapters("unify", tmp_path / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        download_adapters("unified", tmp_path / "file")
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(ConfigError, match=r"needs gdown, .*'\.\[adapters\]'.*drive.google.com"):
        download_adapters("unified", tmp_path / "b")


def test_a_folder_that_cannot_be_made_is_named_before_anything_is_asked_for(tmp_path: Path, drive) -> None:
    asked = drive(one)
    (tmp_path / "file").touch()
    with pytest.raises(AdapterError, match="file/unified.part cannot be written: Not a directory. Name another output"):
        download_adapters("unified", tmp_path / "file" / "unified")
    assert not asked
