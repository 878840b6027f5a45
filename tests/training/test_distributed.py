"""Two processes on the CPU compute what one does: data parallel, and with the base spread over both (FSDP2)."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import tolerance
from tiny_training import Tiny, adapter, assert_same, assert_trained_alike, checkpoints, records
from two_processes import recipes, step

import ccm
from ccm.core.errors import ConfigError
from ccm.core.files import load_tensors
from ccm.training.loop import train

HERE = Path(__file__).parent


def launch(*arguments: object, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run two_processes.py twice, as torchrun does."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [*torchrun, str(HERE / "two_processes.py"), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([f"{HERE.parent}", *sys.path]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def both(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote."""
    out = tmp_path_factory.mktemp("both")
    done = launch(tiny.base, tiny.chats, out, timeout=600)
    if done.returncode:
        pytest.fail(done.stderr[-2000:], pytrace=False)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "shard", "shard_checkpointing", "first_stage"])
def test_two_processes_compute_the_gradients_and_steps_of_one(tiny: Tiny, both: Path, name: str) -> None:
    alone = step(replace(recipes(tiny)[name], shard=False))
    found, other = (load_tensors(both / f"{name}.{rank}.safetensors")[0] for rank in (0, 1))
    assert_same(found, other)
    assert sum(key.startswith("grad.") for key in alone) > 10
    losses = [tensors.pop("losses").tolist() for tensors in (found, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    trained = [
        {key: tensors.pop(key) for key in [*tensors] if key.startswith("trained.")} for tensors in (found, alone)
    ]
    assert_same(found, alone, tolerance(1.0))
    assert_trained_alike(*trained)


@pytest.mark.slow
def test_a_training_of_two_processes_writes_once_what_one_would(tiny: Tiny, both: Path, tmp_path: Path) -> None:
    alone = train(tiny.recipe(tmp_path / "alone", max_steps=2, eval_every=1, log_every=1))
    assert_trained_alike(adapter(both / "run"), adapter(alone))
    ours, theirs = records(alone), records(both / "run")
    assert [record["step"] for record in theirs] == [1, 2]
    for one, other in zip(ours, theirs, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    assert checkpoints(both / "run") == ["step-000002"]
    assert ccm.load(adapter=both / "run")[0].config.rule == "concat"


def test_one_process_alone_cannot_shard(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="shard=true spreads the base over several processes; start them with torchrun"
    ):
        train(tiny.recipe(tmp_path / "out", max_steps=1, shard=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_ends_both_with_a_checkpoint_that_goes_on_elsewhere(
    tiny: Tiny, tmp_path: Path
) -> None:
    done = launch(tiny.base, tiny.chats, tmp_path, "interrupted", timeout=120)
    assert "KeyboardInterrupt" in done.stderr
    assert checkpoints(tmp_path / "run")[-1] in ("step-000003", "step-000004")
    assert "RuntimeError" not in done.stderr
    assert launch(tiny.base, tiny.chats, tmp_path, "moved", timeout=120).returncode == 0
    assert [record["step"] for record in records(tmp_path / "moved")][-1] == 8
    assert_trained_alike(adapter(tmp_path / "moved"), adapter(train(tiny.recipe(tmp_path / "alone", max_steps=8))))
