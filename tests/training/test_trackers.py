"""Where a training logs to beside its own log."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate.tracking import WandBTracker
from training.tiny_training import Tiny, records

from ccm.core.errors import ConfigError
from ccm.training.loop import StepReport, train
from ccm.training.trackers import check_trackers


class RefusedError(Exception):
    """As W&B's own errors."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module in the place of W&B, online, where nobody is logged in."""
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace(name="wandb")  # so that it is found
    module.Error, module.login = RefusedError, lambda prompt: False
    module.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_a_training_that_nobody_would_see_is_refused_before_it_begins(
    tiny: Tiny, wandb: ModuleType, tmp_path: Path
) -> None:
    recipe = tiny.recipe(tmp_path / "out", wandb=True)
    with pytest.raises(ConfigError, match="nobody is logged in .* `wandb login`, or set WANDB_MODE=offline"):
        train(recipe)

    def unreachable(prompt: bool) -> bool:
        raise RefusedError("No connection.")

    wandb.login = unreachable
    with pytest.raises(ConfigError, match=r"cannot be asked: No connection\. Run `wandb login`"):
        check_trackers(recipe)
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    assert check_trackers(recipe) == ["wandb"]
    assert not (tmp_path / "out").exists()


@pytest.mark.slow  # W&B itself runs, with a process of its own
def test_a_training_that_goes_on_goes_on_with_its_run_of_weights_and_biases(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    for name, value in {"WANDB_MODE": "offline", "WANDB_PROJECT": "mine", "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    told, log = dict[int, float](), WandBTracker.log

    def tell(tracker: WandBTracker, values: dict[str, float], step: int) -> None:
        told[step] = values["loss"]
        assert (tracker.run.project, tracker.run.name) == ("mine", "named")
        assert (tracker.run.config["max_steps"], tracker.run.config["adapter"]["n_tok"]) == (6, 2)
        log(tracker, values, step)

    monkeypatch.setattr(WandBTracker, "log", tell)
    recipe = tiny.recipe(tmp_path / "named", wandb=True)

    def stop(report: StepReport) -> None:
        if report.step == 3:
            raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        train(recipe, report=stop)
    out = train(recipe, resume=True)
    assert told == {record["step"]: record["loss"] for record in records(out)}
    runs = [path.name.rpartition("-")[2] for path in out.glob("wandb/offline-run-*")]
    assert (len(runs), len(set(runs))) == (2, 1)
