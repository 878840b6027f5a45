"""The recorded numbers, and that the check itself cannot pass by accident."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ccm import conformance

ROOT = Path(__file__).resolve().parent
COMPLETE = ROOT.parents[1] / "shared" / "goldens"
GOLDENS = next((p for p in (ROOT / "goldens", COMPLETE) if p.is_dir()), None)
pytestmark = pytest.mark.skipif(GOLDENS is None, reason="there is no folder of recorded numbers (tests/goldens)")
IMPLEMENTED = [name for name, check in conformance.GROUPS.items() if check is not None]


def status(folder: Path, *groups: str) -> int:
    """The exit status of the command line."""
    arguments = ["conformance", str(folder), *(part for group in groups for part in ("--group", group))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            conformance.main()
    return end.value.code


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the folder that may be changed."""
    return Path(shutil.copytree(GOLDENS, tmp_path / "goldens", copy_function=shutil.copyfile))


@pytest.mark.parametrize("group", IMPLEMENTED)
def test_we_compute_the_recorded_numbers(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(GOLDENS, group) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE.is_dir(), reason="the complete recorded numbers are not beside the project")
def test_we_compute_all_recorded_numbers() -> None:
    assert status(COMPLETE) == 0


def test_a_changed_number_fails_with_its_case(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(copy, "recursive") == 0
    case = next(iter(json.loads((copy / "manifest_recursive.json").read_text())["recursive"]))
    path = copy / "recursive" / f"{case}.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["logits_recursive"] = arrays["logits_recursive"] + 1e-3
    np.savez(path, **arrays)
    capsys.readouterr()
    assert status(copy, "recursive") == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert f"{case}: logits 0.001" in out


def test_a_changed_loss_of_a_training_step_fails(copy: Path) -> None:
    path = next((copy / "train").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["losses"][2] += 1e-4
    save_file(tensors, path)
    assert status(copy, "train") == 1


def test_a_number_that_is_none_fails(copy: Path) -> None:
    path = next((copy / "train").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["losses"][0] = torch.nan
    save_file(tensors, path)
    assert status(copy, "train") == 1


@pytest.mark.parametrize(
    ("group", "pattern"),
    [
        ("recursive", "recursive/*.npz"),
        ("interact", "interact/*.npz"),
        ("train", "train/*.safetensors"),
        ("grads", "grads/*.safetensors"),
        ("parallel", "parallel/*.npz"),
        ("train", "manifest_parallel.json"),
        ("parallel", "samples.json"),
    ],
)
def test_a_missing_file_fails(copy: Path, group: str, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    sorted(copy.glob(pattern))[0].unlink()
    assert status(copy, group) == 1
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["parallel", "grads", "recursive", "interact"])
def test_an_empty_manifest_fails(copy: Path, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "manifest_parallel.json").write_text('{"cases": {}}')
    (copy / "manifest_recursive.json").write_text('{"recursive": {}, "interact": {}}')
    assert status(copy, group) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert status(tmp_path / "nowhere") != 0
