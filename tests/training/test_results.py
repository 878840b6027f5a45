"""Checkpoints as adapters, before a training ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import Tiny, checkpoints

import ccm
from ccm.core.adapter_folders import is_plain_lora
from ccm.core.errors import TrainingError
from ccm.engine.adapter_files import read_stage1
from ccm.training.loop import train
from ccm.training.results import adapter_of
from ccm.training.run import read_checkpoint


def broken_off(tiny: Tiny, folder: Path, **changes: object) -> Path:
    """A run of two checkpoints that did not end."""

    def stop(step: int, _: object) -> None:
        if step == 4:
            raise RuntimeError("power")

    with pytest.raises(RuntimeError, match="power"):
        train(tiny.recipe(folder, max_steps=8, save_every=2, **changes), advance=stop)
    return folder


@pytest.mark.parametrize("which", ["checkpoints/step-000002.safetensors", "."])
def test_a_checkpoint_is_the_adapter_that_a_training_up_to_there_would_write(
    tiny: Tiny, tmp_path: Path, which: str
) -> None:
    run = broken_off(tiny, tmp_path / "run")
    steps = checkpoints(run)
    found = Path(adapter_of(run / which))
    assert found == run / "results" / (steps[-1] if which == "." else "step-000002")
    model, _ = ccm.load(adapter=found)
    held = read_checkpoint(run / "checkpoints" / f"{found.name}.safetensors").tensors
    ours = {name: tensor for name, tensor in model.named_parameters() if name in held}
    assert len(ours) == len(held) > 3
    assert all(torch.equal(ours[name], held[name]) for name in held)
    before = (found / "ccm_adapter.safetensors").stat().st_mtime_ns
    assert adapter_of(run / which) == found
    assert (found / "ccm_adapter.safetensors").stat().st_mtime_ns == before


def test_a_checkpoint_needs_no_adapter_that_it_began_with(tiny: Tiny, tmp_path: Path) -> None:
    begun = train(tiny.recipe(tmp_path / "begun", max_steps=2))
    run = broken_off(tiny, tmp_path / "run", init_adapter=str(begun))
    begun.rename(tmp_path / "elsewhere")
    assert ccm.load(adapter=adapter_of(run))[0].config.rule == "concat"


def test_a_checkpoint_of_the_first_stage_is_its_plain_lora(tiny: Tiny, tmp_path: Path) -> None:
    run = broken_off(tiny, tmp_path / "run", stage="base", objective={"every": 1.0})
    found = Path(adapter_of(run))
    assert is_plain_lora(found)
    assert read_stage1(found).fingerprint
    assert ccm.load(adapter=found)[0].config.rule == "full"


def test_other_places_are_themselves(tiny: Tiny, tmp_path: Path) -> None:
    done = train(tiny.recipe(tmp_path / "done", max_steps=2, save_every=1))
    assert adapter_of(done) == done
    assert adapter_of("org/name") == "org/name"
    assert adapter_of(tmp_path) == tmp_path


def test_a_checkpoint_without_its_run_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    run = broken_off(tiny, tmp_path / "run")
    (run / "recipe.yaml").unlink()
    with pytest.raises(TrainingError, match="lies outside the folder of its run"):
        adapter_of(run / "checkpoints" / f"{checkpoints(run)[-1]}.safetensors")
