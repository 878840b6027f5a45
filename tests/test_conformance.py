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
from tiny_t5 import needs_t5

import conformance
from conformance import __main__ as command

ROOT = Path(__file__).resolve().parent
COMPLETE = ROOT.parents[1] / "shared" / "goldens"
GOLDENS = next((p for p in (ROOT / "goldens", COMPLETE) if p.is_dir()), None)
pytestmark = pytest.mark.skipif(GOLDENS is None, reason="there is no folder of recorded numbers (tests/goldens)")
GROUPS = [*conformance.GROUPS]


def status(folder: Path, *groups: str) -> int:
    """The exit status of the command line."""
    arguments = ["conformance", str(folder), *(part for group in groups for part in ("--group", group))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            command.main()
    return end.value.code


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the folder that may be changed."""
    return Path(shutil.copytree(GOLDENS, tmp_path / "goldens", copy_function=shutil.copyfile))


@pytest.mark.parametrize("group", GROUPS)
def test_we_compute_the_recorded_numbers(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    if group == "t5":
        needs_t5()
    assert status(GOLDENS, group) == 0
    assert "passed" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not COMPLETE.is_dir(), reason="the complete recorded numbers are not beside the project")
def test_we_compute_all_recorded_numbers() -> None:
    assert status(COMPLETE) == 0


def test_a_changed_number_fails_with_its_case(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = next(iter(json.loads((copy / "manifest_recursive.json").read_text())["recursive"]))
    path = copy / "recursive" / f"{case}.npz"
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["logits_recursive"] = arrays["logits_recursive"] + 1e-3
    np.savez(path, **arrays)
    assert status(copy, "recursive") == 1
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert f"{case}: logits 0.001" in out


@pytest.mark.covers(cases=1)
@pytest.mark.parametrize(("name", "change"), [("nll", 1e-3), ("kv_len", 1), ("n_comp", 1), ("final_v", 1e-3)])
def test_a_changed_number_of_a_stream_fails(copy: Path, name: str, change: float) -> None:
    manifest = copy / "manifest_stream.json"
    case, entry = next(iter(json.loads(manifest.read_text())["cases"].items()))
    manifest.write_text(json.dumps({"cases": {case: entry}}))
    path = copy / "stream" / f"{case}.npz"
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays[name][-1] += change
    np.savez(path, **arrays)
    assert status(copy, "stream") == 1


@pytest.mark.covers(cases=1)
@pytest.mark.parametrize(("name", "change"), [("logits", 1e-2), ("loss", 1e-2), ("greedy", 1), ("input_ids", 1)])
def test_a_changed_number_of_an_encoder_decoder_fails(copy: Path, name: str, change: float) -> None:
    needs_t5()
    manifest = copy / "t5" / "manifest.json"
    entry = json.loads(manifest.read_text())["concat_ntok2"]
    manifest.write_text(json.dumps({"concat_ntok2": entry}))
    path = copy / "t5" / "cases" / "concat_ntok2.npz"
    assert status(copy, "t5") == 0
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    arrays[name] = arrays[name] + np.array(change, arrays[name].dtype)
    np.savez(path, **arrays)
    assert status(copy, "t5") == 1


def test_a_changed_loss_of_a_training_step_fails(copy: Path) -> None:
    path = next((copy / "train").glob("*.safetensors"))
    tensors = load_file(path)
    tensors["losses"][2] += 1e-4
    save_file(tensors, path)
    assert status(copy, "train") == 1


@pytest.mark.parametrize(("least", "most", "code"), [(0.0, 1e-6, 0), (1e-2, torch.inf, 1)])
def test_a_trained_element_is_compared_where_its_gradient_is_no_noise(
    copy: Path, least: float, most: float, code: int
) -> None:
    path = next((copy / "train").glob("*.safetensors"))
    tensors, moved = load_file(path), 0
    for name, gradient in load_file(copy / "grads" / path.name.replace("_adamw5", "")).items():
        changed = (gradient.abs() > least) & (gradient.abs() < most)
        tensors[name][changed] += 1e-3
        moved += int(changed.sum())
    save_file(tensors, path)
    assert moved
    assert status(copy, "train") == code


def test_few_elements_may_go_without_being_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.parallel.NOISE", 1e-3)
    assert status(GOLDENS, "train") == 1


@pytest.mark.parametrize("group", ["grads", "train"])
def test_a_tensor_that_was_not_recorded_fails(copy: Path, group: str) -> None:
    for path in (copy / group).glob("*.safetensors"):
        tensors = load_file(path)
        del tensors[next(name for name in tensors if "layers.0.self_attn.q_proj" in name)]
        save_file(tensors, path)
    assert status(copy, group) == 1


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
        ("stream", "stream/*.npz"),
        ("stream", "manifest_stream.json"),
    ],
)
def test_a_missing_file_fails(copy: Path, group: str, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    sorted(copy.glob(pattern))[0].unlink()
    assert status(copy, group) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_reference_that_is_not_a_number_fails(copy: Path) -> None:
    for path in (copy / "recursive").glob("*.npz"):
        with np.load(path) as file:
            np.savez(path, **{**file, "loss_recursive": np.float32("nan")})
    assert status(copy, "recursive") == 1


@pytest.mark.parametrize("differences", [{}, {"offset": float("nan")}])
def test_a_case_that_compares_nothing_fails(
    differences: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(conformance.GROUPS, "interact", lambda _: iter([("case", differences)]))
    assert status(GOLDENS, "interact") == 1
    assert "case: " in capsys.readouterr().out


def test_an_interaction_without_turns_fails(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (copy / "interact").glob("*.npz"):
        with np.load(path) as file:
            np.savez(path, **{name: file[name] for name in file.files if not name.startswith("query_")})
    assert status(copy, "interact") == 1
    assert "nothing was compared" in capsys.readouterr().out


def test_recorded_gradients_that_are_none_fail(copy: Path) -> None:
    for path in (copy / "grads").glob("*.safetensors"):
        save_file({}, path)
    assert status(copy, "grads") == 1


def test_a_manifest_without_its_entry_fails_and_names_it(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "manifest_parallel.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "train"}))
    assert status(copy, "train") == 1
    assert "absent from the manifest, the recorded arrays or the model: 'train'" in capsys.readouterr().out


@pytest.mark.parametrize("group", ["parallel", "grads", "recursive", "interact", "stream"])
def test_an_empty_manifest_fails(copy: Path, group: str, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "manifest_parallel.json").write_text('{"cases": {}}')
    (copy / "manifest_stream.json").write_text('{"cases": {}}')
    (copy / "manifest_recursive.json").write_text('{"recursive": {}, "interact": {}}')
    assert status(copy, group) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert status(tmp_path / "nowhere") != 0
