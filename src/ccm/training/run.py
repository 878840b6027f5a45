"""The folder of a run: recipe, log, checkpoints, and in the end the result. The last good state always stays.

OUTPUT/  recipe.yaml  log.jsonl  checkpoints/step-000100/  tensorboard/  [the adapter, or the model]
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ccm.errors import ConfigError, TrainingError
from ccm.files import SafetensorError, load_tensors, save_json, save_tensors, write_atomically
from ccm.recipe import Recipe, read_table, write_recipe

RECIPE, LOG, CHECKPOINTS = "recipe.yaml", "log.jsonl", "checkpoints"
_PARTS, _STATE = ("trained", "first", "second"), ("step", "origin", "scaler", "updates", "told", "sums")
_FREE = {  # settings that may change when a run goes on: but for dropout, they change nothing of what is computed
    "output_dir", "pass_tokens", "device", "flex", "gradient_checkpointing", "shard", "log_every", "eval_every",
    "save_every", "keep", "tensorboard", "wandb",
}  # fmt: skip


Moments = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after so many steps.

    Attributes:
        step: optimizer steps made.
        origin: what the training is of, by name: fingerprints of the base and the data, the base's dtype.
        tensors: what is trained, by name.
        moments: the optimizer's first and second moments, by the same names.
        scaler: state of the scaling of the loss in float16 training; empty otherwise.
        updates: of each tensor by the optimizer: none in steps that gave it no gradient, or that float16 overflowed in.
        told: the step of the last report.
        sums: the losses since then, added up.
    """

    step: int
    origin: dict[str, str]
    tensors: dict[str, Tensor]
    moments: Moments
    scaler: dict[str, float]
    updates: dict[str, int]
    told: int
    sums: dict[str, float]


class Run:
    """A run's folder. Only the main process checks and writes."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe

    def check(self, *, resume: bool) -> None:
        """See whether a run can begin here, or go on.

        Raises:
            ConfigError: when the folder holds another run, or, to resume, none or one of another recipe.
        """
        if self.folder.is_file():
            raise ConfigError(f"output_dir is {self.folder}, a file; name a folder.")
        held = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
        if not resume:
            if held:
                other = "name another one with --set output_dir=DIR"
                if RECIPE in held:
                    raise ConfigError(
                        f"The output directory {self.folder} holds another run. Go on with it by --resume, {other}, or "
                        "delete it."
                    )
                raise ConfigError(
                    f"The output directory {self.folder} holds other files ({', '.join(held[:4])}); {other}."
                )
            return
        if RECIPE not in held:
            raise ConfigError(f"There is no run in {self.folder} to resume; leave --resume out to begin one.")
        defaults = {key: _plain(value) for key, value in Recipe().to_dict().items()}  # of settings that came later
        before = {**defaults, **read_table(self.folder / RECIPE)}
        differing = sorted(
            key for key, value in self.recipe.to_dict().items() if key not in _FREE and before.get(key) != _plain(value)
        )
        if differing:
            now = self.recipe.to_dict()
            told = ", ".join(f"{key} {before.get(key)} (now {_plain(now[key])})" for key in differing)
            raise ConfigError(
                f"The run in {self.folder} has other settings: {told}. Resume with those of its {RECIPE}, or begin "
                "another run elsewhere; with init_adapter it begins with what this one learned."
            )

    def begin(self) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            TrainingError: when that cannot be done.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            text = write_recipe(self.recipe)
            write_atomically(self.folder / RECIPE, lambda path: path.write_text(text, encoding="utf-8"))
            (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
            for left in (self.folder / CHECKPOINTS).glob(".step-*/"):
                shutil.rmtree(left)
        except OSError as error:
            raise TrainingError(f"The output directory {self.folder} cannot be written: {error}.") from error

    def log(self, record: Mapping[str, Any]) -> None:
        """Add one line to the log.

        Raises:
            TrainingError: when it cannot be written.
        """
        try:
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise TrainingError(
                f"{self.folder / LOG} cannot be written: {error}. Mend that and go on from the last checkpoint with "
                "--resume."
            ) from error

    def forget_after(self, step: int) -> None:
        """Drop the log's records of later steps, which are made anew.

        Raises:
            TrainingError: when it cannot be written.
        """
        path = self.folder / LOG
        if not path.is_file():
            return
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomically(path, lambda p: p.write_text("".join(line + "\n" for line in lines), encoding="utf-8"))
        except OSError as error:
            raise TrainingError(f"{path} cannot be written: {error}. Mend that and say --resume again.") from error

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        found = (path for path in (self.folder / CHECKPOINTS).glob("step-*") if path.name[5:].isdecimal())
        return sorted(found, key=lambda path: int(path.name[5:]))

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint in one move, then delete the oldest ones.

        Raises:
            TrainingError: when it cannot be written; those before it are untouched.
        """
        target = self.folder / CHECKPOINTS / f"step-{checkpoint.step:06d}"
        if target.exists():  # of a run that was interrupted right after it: the same
            return
        part = target.with_name(f".{target.name}")
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, tensors in zip(_PARTS, (checkpoint.tensors, *checkpoint.moments), strict=True):
                save_tensors(part / f"{name}.safetensors", tensors)
            save_json(part / "state.json", {name: getattr(checkpoint, name) for name in _STATE})
            part.replace(target)
            _sync(target.parent)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(part, ignore_errors=True)
            held = self.checkpoints()
            good = f"Go on from {held[-1].name} with --resume" if held else "There is none before it"
            raise TrainingError(
                f"The checkpoint of step {checkpoint.step} cannot be saved: {error}. {good}."
            ) from error
        for old in self.checkpoints()[: -self.recipe.keep]:
            shutil.rmtree(old, ignore_errors=True)  # one too many does no harm

    def last(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none.

        Raises:
            TrainingError: when it is damaged.
        """
        held = self.checkpoints()
        if not held:
            return None
        try:
            state = json.loads((held[-1] / "state.json").read_text(encoding="utf-8"))
            trained, first, second = (load_tensors(held[-1] / f"{name}.safetensors")[0] for name in _PARTS)
            return Checkpoint(tensors=trained, moments=(first, second), **{name: state[name] for name in _STATE})
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise TrainingError(
                f"The checkpoint {held[-1]} is damaged ({error}); delete it to go on from the one before."
            ) from error


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that an interruption cut off
        return 1 << 60


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    return yaml.safe_load(yaml.safe_dump(value))


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def state_of(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]) -> tuple[dict[str, int], Moments]:
    """Updates by an AdamW, and its first and second moments, by name; zeros where there was no update yet."""
    states = {name: optimizer.state.get(p, {}) for name, p in trained.items()}
    first, second = (
        {name: state.get(key, torch.zeros_like(trained[name])) for name, state in states.items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    return {name: int(state.get("step", 0)) for name, state in states.items()}, (first, second)


def restore_state(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Put an AdamW where it was at a checkpoint."""
    first, second = checkpoint.moments
    for name, p in trained.items():
        if checkpoint.updates[name]:
            optimizer.state[p] = {
                "step": torch.tensor(float(checkpoint.updates[name])),
                "exp_avg": first[name].to(p.device),
                "exp_avg_sq": second[name].to(p.device),
            }
