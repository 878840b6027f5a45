"""The folder of a run: what may begin or go on there, and that a whole checkpoint stays whatever happens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rewrite

from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError, TrainingError
from ccm.data.settings import DataSettings
from ccm.training.recipe import Recipe
from ccm.training.run import Checkpoint, Run, restore_state, state_of


def run_at(folder: Path, **settings: Any) -> Run:
    return Run(folder, Recipe(output_dir=str(folder), **settings))


def checkpoint(step: int) -> Checkpoint:
    tensors = {"a": torch.full((2, 3), float(step)), "b": torch.arange(4.0)}
    moments = {name: t + 1 for name, t in tensors.items()}, {name: t + 2 for name, t in tensors.items()}
    updates, scaler = dict.fromkeys(tensors, step), {"scale": 1024.0, "_growth_tracker": 7}
    return Checkpoint(step, {"base": "ab"}, tensors, moments, scaler, updates, step - 1, {"loss": 0.1 * step})


def held(run: Run) -> list[str]:
    return [path.stem for path in run.checkpoints()]


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    run.begin()
    run.save(checkpoint(3))
    found, expected = run.last(), checkpoint(3)
    assert found is not None
    assert (found.origin, found.updates) == ({"base": "ab"}, {"a": 3, "b": 3})
    assert (found.step, found.scaler, found.told) == (3, {"scale": 1024.0, "_growth_tracker": 7}, 2)
    assert found.sums == {"loss": 0.1 * 3}
    for one, other in zip((found.tensors, *found.moments), (expected.tensors, *expected.moments), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_there_is_no_checkpoint_in_a_new_run(tmp_path: Path) -> None:
    run = run_at(tmp_path / "new")
    run.check(resume=False)
    run.begin()
    assert run.last() is None


def test_the_newest_stay_and_the_last_is_the_newest(tmp_path: Path) -> None:
    run = run_at(tmp_path, keep=2)
    for step in (9, 10, 100):
        run.save(checkpoint(step))
    assert held(run) == ["step-000010", "step-000100"]
    last = run.last()
    assert last is not None
    assert last.step == 100


def test_the_last_is_the_newest_beyond_a_million_steps(tmp_path: Path) -> None:
    run = run_at(tmp_path, keep=2)
    for step in (999_998, 999_999, 1_000_000):
        run.save(checkpoint(step))
    last = run.last()
    assert last is not None
    assert last.step == 1_000_000


def test_saving_a_step_again_leaves_its_checkpoint_as_it_is(tmp_path: Path) -> None:
    """So a training does that is interrupted in a step whose checkpoint was due; it would be the same."""
    run = run_at(tmp_path, keep=1)
    run.save(checkpoint(4))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")}
    run.save(checkpoint(4))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").rglob("*")} == files


def test_what_a_killed_save_left_is_no_checkpoint_and_is_cleared_away(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    run.begin()
    run.save(checkpoint(2))
    old, part = (tmp_path / "checkpoints" / f".step-000004{end}" for end in ("", ".safetensors.0123abcd.part"))
    old.mkdir()
    (old / "trained.safetensors").write_bytes(b"half")
    part.write_bytes(b"half")
    last = run.last()
    assert last is not None
    assert last.step == 2
    run.begin()
    assert not part.exists()
    assert not old.exists()
    assert held(run) == ["step-000002"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda tensors, state: tensors.pop("second.a"),
        lambda tensors, state: tensors.pop("trained.b"),
        lambda tensors, state: tensors.update({"first.a": tensors["first.a"][:1].clone()}),
        lambda tensors, state: state["updates"].pop("a"),
        lambda tensors, state: state.update(step=-4),
        lambda tensors, state: state.update(step="4"),
        lambda tensors, state: state.pop("told"),
        lambda tensors, state: state.update(format_version=3),
    ],
)
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: Callable[[dict, dict], Any]) -> None:
    run = run_at(tmp_path)
    for step in (2, 4):
        run.save(checkpoint(step))
    rewrite(run.checkpoints()[-1], damage)
    with pytest.raises(TrainingError, match=r"step-000004.*Delete it to resume from the one before"):
        run.last()


def test_a_folder_is_no_checkpoint_and_the_newest_within_is_named(tmp_path: Path) -> None:
    run = run_at(tmp_path / "out")
    for step in (9, 10):
        run.save(checkpoint(step))
    (tmp_path / "empty").mkdir()
    newest = f"the newest in it is {tmp_path / 'out' / 'checkpoints' / 'step-000010.safetensors'}"
    where = "a run keeps them in its folder checkpoints"
    for name, which in (("out", newest), ("out/checkpoints", newest), ("empty", where)):
        folder = tmp_path / name
        with pytest.raises(TrainingError, match=f"^{folder} is a folder, not a checkpoint; name a checkpoint: {which}"):
            Run(tmp_path / "there", Recipe(), folder).check(resume=False)


def test_the_log_forgets_what_is_made_anew_and_a_line_cut_off(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    run.forget_after(2)
    assert [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2]
    run.log({"step": 3})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_a_folder_that_holds_another_run_is_refused(tmp_path: Path) -> None:
    run_at(tmp_path).begin()
    with pytest.raises(
        ConfigError,
        match=f"{tmp_path} holds another run. Resume it with resume=True",
    ):
        run_at(tmp_path).check(resume=False)


def test_a_folder_that_holds_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\)"):
        run_at(tmp_path).check(resume=False)


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    for resume in (False, True):
        with pytest.raises(ConfigError, match=f"output_dir is {path}, a file; name a folder"):
            run_at(path).check(resume=resume)


def test_a_folder_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot be written: .* Name another folder with output_dir=DIR"):
        run_at(tmp_path / "file" / "out").begin()


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    run_at(tmp_path).check(resume=False)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_there_must_be_a_run_to_resume(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"There is no run in .* to resume; leave resume=True out to start one"):
        run_at(tmp_path / name).check(resume=True)


def test_a_run_goes_on_with_the_same_settings_only_and_the_others_are_named(tmp_path: Path) -> None:
    settings = {"lr": 1e-5, "betas": (0.8, 0.9), "data": DataSettings(path="a.jsonl", options={"x": [1]})}
    run_at(tmp_path, **settings).begin()
    run_at(tmp_path, **settings).check(resume=True)
    changed = {**settings, "lr": 2e-5, "data": DataSettings(path="b.jsonl"), "adapter": CCMConfig(n_tok=4)}
    with pytest.raises(
        ConfigError,
        match=r"has other settings: adapter .*, data .*, lr .* \(now .*\). Resume with the settings of its recipe.yaml",
    ):
        run_at(tmp_path, **changed).check(resume=True)


@pytest.mark.parametrize(
    "change", [{"max_steps": 7}, {"seed": 1}, {"batch_size": 2}, {"pool": 3}, {"objective": {"every": 1.0}}]
)
def test_what_is_computed_must_not_change(tmp_path: Path, change: dict[str, Any]) -> None:
    run_at(tmp_path).begin()
    with pytest.raises(ConfigError, match=f"has other settings: {next(iter(change))} [^(]*\\(now "):
        run_at(tmp_path, **change).check(resume=True)


def test_how_it_is_computed_and_told_may_change(tmp_path: Path) -> None:
    run_at(tmp_path).begin()
    free: dict[str, Any] = {"pass_tokens": 99, "device": "cpu", "gradient_checkpointing": True, "shard": True}
    free |= {"log_every": 3, "eval_every": 5, "save_every": 7, "keep": 9, "tensorboard": False, "wandb": True}
    run_at(tmp_path, **free).check(resume=True)


def test_a_damaged_recipe_of_a_run_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        run_at(tmp_path).check(resume=True)


def test_moments_come_back_to_another_optimizer() -> None:
    """Two steps at once, or one, a checkpoint and one: AdamW's weights are the same to the last bit."""
    torch.manual_seed(0)
    grads = torch.randn(3, 5)
    one, other = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    whole = torch.optim.AdamW([one], lr=0.1)
    for grad in grads:
        one.grad = grad.clone()
        whole.step()
    first = torch.optim.AdamW([other], lr=0.1)
    assert not any(m["p"].any() for m in state_of(first, {"p": other})[1])
    for grad in grads[:2]:
        other.grad = grad.clone()
        first.step()
    updates, kept = state_of(first, {"p": other})
    second = torch.optim.AdamW([other], lr=0.1)
    restore_state(second, {"p": other}, Checkpoint(2, {}, {}, kept, {}, updates, 2, {}))
    other.grad = grads[2].clone()
    second.step()
    assert torch.equal(one, other)


def test_each_tensor_has_its_own_count_of_updates() -> None:
    """One that often has no gradient, as the gates of a base that is rarely trained with them."""
    weights = {name: torch.nn.Parameter(torch.ones(2)) for name in ("always", "rarely", "never")}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.1)
    for number in range(4):
        weights["always"].grad = torch.ones(2)
        weights["rarely"].grad = torch.ones(2) if number == 2 else None
        optimizer.step()
        state_of(optimizer, weights)  # leaves no trace
    updates, moments = state_of(optimizer, weights)
    assert updates == {"always": 4, "rarely": 1, "never": 0}
    again = torch.optim.AdamW(weights.values(), lr=0.1)
    restore_state(again, weights, Checkpoint(4, {}, {}, moments, {}, updates, 4, {}))
    assert state_of(again, weights)[0] == updates


def test_what_is_no_checkpoint_is_left_alone(tmp_path: Path) -> None:
    run = run_at(tmp_path)
    run.begin()
    run.save(checkpoint(2))
    (tmp_path / "checkpoints" / ".DS_Store").write_bytes(b"")
    (tmp_path / "checkpoints" / "step-000001.bak").mkdir()
    run.begin()
    assert held(run) == ["step-000002"]
