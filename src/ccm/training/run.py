"""The folder of a run: its recipe, log and checkpoints, and finally its result. The last good state is always kept.

OUTPUT/  recipe.yaml  log.jsonl  checkpoints/step-000100.safetensors  tensorboard/  [the adapter, or the model]
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor

from ccm.core.errors import ConfigError, TrainingError, reason
from ccm.core.files import (
    SafetensorError,
    holding,
    is_held,
    load_tensors,
    parse_json,
    read_json,
    write_atomically,
    writing,
)
from ccm.core.tensor_files import read_file, write_file
from ccm.training.recipe import Recipe, read_table, write_recipe

RECIPE, LOG, CHECKPOINTS, LOCK = "recipe.yaml", "log.jsonl", "checkpoints", ".lock"
KIND = "ccm_checkpoint"
FIRST_BATCH = "first batch"  # checkpoints of version 1 record the digest of this batch only
_PARTS, _STATE = ("trained", "first", "second"), ("step", "origin", "scaler", "updates", "told", "sums")
_OPTIONAL = ("mixed", "settings")  # what older checkpoints lack
_NAME = re.compile(r"step-\d+(\.safetensors)?")
_FREE = {  # settings that may change when a run resumes: except through dropout, the losses do not depend on them
    "pass_tokens", "saved_dtype", "device", "flex", "gradient_checkpointing", "shard", "log_every", "eval_every",
    "save_every", "keep", "tensorboard", "wandb",
}  # fmt: skip
_PLACES = {"output_dir", "model", "base_adapter", "init_adapter"}  # may move: fingerprints and tensors are compared
_DATA_PLACES = {"path", "eval_path"}  # may move: the digest of the drawn samples is compared
_ELSEWHERE = "Name another folder with output_dir=DIR."
_RESUME = "Fix the cause, then resume from the last checkpoint with resume=True."

Moments = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after some optimizer steps.

    Attributes:
        step: the number of optimizer steps made.
        origin: the fingerprint ("base") and the dtype of the base, and the digest of the data drawn so far.
        tensors: the trained tensors by name.
        moments: the optimizer's first and second moments, by the same names.
        scaler: the state of the loss scaler in float16 training; empty otherwise.
        updates: how often the optimizer has updated each tensor. It skips a tensor in steps without a gradient for it,
            and all tensors in steps in which float16 overflows.
        told: the step of the last report.
        sums: the sum of each loss since that report.
        mixed: whether matrices are multiplied in bfloat16; None in checkpoints that do not say it.
        settings: the settings of the recipe that must stay the same; None in version 1, where the run's folder has
            them.
        path: the path that the checkpoint was read from.
    """

    step: int
    origin: dict[str, str]
    tensors: dict[str, Tensor]
    moments: Moments
    scaler: dict[str, float]
    updates: dict[str, int]
    told: int
    sums: dict[str, float]
    mixed: bool | None = None
    settings: Mapping[str, Any] | None = None
    path: Path | None = None


class Run:
    """The folder of a run, and optionally a checkpoint of another run to start from.

    Only the main process checks the folder and writes into it.
    """

    def __init__(self, folder: Path, recipe: Recipe, start: Path | None = None) -> None:
        self.folder, self.recipe = folder, recipe
        self._new, self._start = False, start

    def check(self, *, resume: bool) -> None:
        """Check that the run can start in its folder, or resume from there or from the given checkpoint.

        Raises:
            ConfigError: if the folder is in use, holds another run, or holds no run to resume; or if the run to resume
                has other settings.
            TrainingError: if the checkpoint is absent or damaged.
        """
        if resume and self._start:
            raise ConfigError(
                f"resume=True resumes the run in {self.folder}, but start names {self._start}; give one of the two."
            )
        if self.folder.is_file():
            raise ConfigError(f"output_dir is {self.folder}, a file; name a folder.")
        if RECIPE in self._held and is_held(self.folder / LOCK):
            raise self._in_use()
        self._new = not resume
        if self._new:
            self._check_empty()
        elif RECIPE in self._held:
            self._compare(_fixed(read_table(self.folder / RECIPE)), f"in {self.folder}")
        else:
            raise ConfigError(f"There is no run in {self.folder} to resume; leave resume=True out to start one.")
        if self._brought is not None:
            if (settings := self._brought.settings) is None:
                raise ConfigError(
                    f"The checkpoint {self._start} has the format of version 1, which holds no settings; resume it in "
                    "the folder of its run."
                )
            self._compare(settings, f"of {self._start}")

    @cached_property
    def _brought(self) -> Checkpoint | None:
        """The checkpoint of another run that this run starts from."""
        return None if self._start is None else read_checkpoint(self._start)

    @property
    def _held(self) -> list[str]:
        """The names of the files in the folder."""
        return sorted({path.name for path in self.folder.iterdir()} - {LOCK}) if self.folder.is_dir() else []

    def _check_empty(self) -> None:
        if not (held := self._held):
            return
        if RECIPE in held:
            raise ConfigError(
                f"The output directory {self.folder} holds another run. Resume it with resume=True, or delete it. "
                f"{_ELSEWHERE}"
            )
        raise ConfigError(f"The output directory {self.folder} holds other files ({', '.join(held[:4])}). {_ELSEWHERE}")

    def _compare(self, before: Mapping[str, Any], which: str) -> None:
        """Refuse a recipe whose fixed settings differ from those of the run to resume."""
        before, now = {**_fixed(Recipe().to_dict()), **before}, self.settings  # older files lack newer settings
        if differing := sorted(key for key, value in now.items() if before.get(key) != value):
            told = ", ".join(f"{key} {before.get(key)} (now {now[key]})" for key in differing)
            raise ConfigError(
                f"The run {which} has other settings: {told}. Resume with the settings of its {RECIPE}, or start "
                "another run elsewhere; its init_adapter can be the adapter of this run."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the recipe that must stay the same when a run resumes."""
        return _fixed(self.recipe.to_dict())

    def _in_use(self) -> ConfigError:
        return ConfigError(
            f"The output directory {self.folder} is in use by another training; wait until it ends. {_ELSEWHERE}"
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Prepare the folder, and keep it locked against other trainings within the ``with`` block.

        Raises:
            ConfigError: if another training uses the folder, or has used it since :meth:`check`.
            TrainingError: if the folder cannot be written.
        """
        with ExitStack() as stack:
            with writing(self.folder, TrainingError, _ELSEWHERE):
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(holding(self.folder / LOCK))
                except BlockingIOError:
                    raise self._in_use() from None
            if self._new:
                self._check_empty()
            self.begin()
            yield

    def begin(self) -> None:
        """Make the folder; write the recipe, and a copy of the checkpoint of another run that this run starts from.

        Raises:
            TrainingError: if the folder cannot be written.
        """
        with writing(self.folder, TrainingError, _ELSEWHERE):
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            text = write_recipe(self.recipe)
            write_atomically(self.folder / RECIPE, lambda path: path.write_text(text, encoding="utf-8"))
            for left in (self.folder / CHECKPOINTS).glob(".step-*"):
                _delete(left)
        if self._brought is not None:
            self.save(self._brought)

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to the log.

        Raises:
            TrainingError: if the log cannot be written.
        """
        path = self.folder / LOG
        with writing(path, TrainingError, _RESUME), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def forget_after(self, step: int) -> None:
        """Delete the log's records of later steps, which the training repeats.

        Raises:
            TrainingError: if the log cannot be written.
        """
        path = self.folder / LOG
        if not path.is_file():
            return
        with writing(path, TrainingError, _RESUME):
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomically(path, lambda p: p.write_text("".join(line + "\n" for line in lines), encoding="utf-8"))

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints of the run, the oldest first."""
        return whole_checkpoints(self.folder / CHECKPOINTS)

    def saved(self) -> str:
        """A sentence on where an interrupted training can resume."""
        if not (held := self.checkpoints()):
            return "No checkpoint is saved. Start again with resume=True."
        return f"The last checkpoint is that of step {int(held[-1].stem[5:])}. Resume from it with resume=True."

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete the oldest ones.

        Raises:
            TrainingError: if the checkpoint cannot be written; earlier checkpoints then stay as they are.
        """
        path, held = self.folder / CHECKPOINTS / f"step-{checkpoint.step:06d}.safetensors", self.checkpoints()
        if path.stem in (other.stem for other in held):  # an interruption right after a checkpoint saves the same again
            return
        parts = zip(_PARTS, (checkpoint.tensors, *checkpoint.moments), strict=True)
        tensors = {f"{prefix}.{key}": tensor for prefix, part in parts for key, tensor in part.items()}
        manifest = {name: getattr(checkpoint, name) for name in (*_STATE, "mixed")} | {"settings": self.settings}
        advice = f"Resume from {held[-1].stem} with resume=True." if held else "There is no earlier checkpoint."
        with writing(path, TrainingError, advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, KIND, tensors, manifest)
        for old in self.checkpoints()[: -self.recipe.keep]:
            _delete(old)

    def previous(self) -> Checkpoint | None:
        """The checkpoint to resume from: the given one of another run, else the newest of this run, else None.

        Raises:
            TrainingError: as :meth:`last`.
        """
        return self._brought or self.last()

    def last(self) -> Checkpoint | None:
        """The newest checkpoint of the run, or None.

        Raises:
            TrainingError: if the checkpoint is damaged, or a newer version of ccm wrote it.
        """
        if not (held := self.checkpoints()):
            return None
        try:
            return read_checkpoint(held[-1])
        except TrainingError as error:
            raise TrainingError(f"{error} Delete it to resume from the one before.") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint: a file, or a folder in the format of version 1.

    Raises:
        TrainingError: if it is absent or damaged, a newer version of ccm wrote it, or the path is any other folder.
    """
    if path.is_dir() and not (path / "state.json").is_file():
        held = whole_checkpoints(path / CHECKPOINTS) or whole_checkpoints(path)
        which = f"the newest in it is {held[-1]}" if held else f"a run keeps them in its folder {CHECKPOINTS}"
        raise TrainingError(f"{path} is a folder, not a checkpoint; name a checkpoint: {which}.")
    try:
        if not path.is_dir():
            tensors, state = read_file(path, KIND, TrainingError)
            parts = [_part(tensors, f"{part}.") for part in _PARTS]
        else:
            state = read_json(path / "state.json")
            parts = [load_tensors(path / f"{part}.safetensors")[0] for part in _PARTS]
            state["origin"][FIRST_BATCH] = state["origin"].pop("data")
        told = {name: state[name] for name in _STATE} | {name: state.get(name) for name in _OPTIONAL}
        checkpoint = Checkpoint(tensors=parts[0], moments=(parts[1], parts[2]), path=path, **told)
        _check_parts(checkpoint)
        return checkpoint
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"The checkpoint {path} is damaged: {reason(error)}.") from error
    except MemoryError as error:
        raise TrainingError(f"The checkpoint {path} is larger than the memory of this machine.") from error


def whole_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, the oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem[5:]))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_parts(checkpoint: Checkpoint) -> None:
    """Raise ValueError if the parts of a checkpoint do not fit together, or a count is invalid."""
    sizes = [{name: t.shape for name, t in part.items()} for part in (checkpoint.tensors, *checkpoint.moments)]
    if any(part != sizes[0] for part in sizes) or checkpoint.updates.keys() != sizes[0].keys():
        raise ValueError("its tensors, moments and update counts differ in names or shapes")
    counts = (checkpoint.step, checkpoint.told, *checkpoint.updates.values())
    if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts):
        raise ValueError("a count is not a whole number from 0")


def _step_of(line: str) -> int:
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):  # an interruption cut the line off
        return 1 << 60


def _fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that must not change, as values of JSON."""
    held = {key: value for key, value in values.items() if key not in _FREE | _PLACES}
    if isinstance(data := values.get("data"), Mapping):
        held["data"] = {key: value for key, value in data.items() if key not in _DATA_PLACES}
    fixed: dict[str, Any] = json.loads(json.dumps(held, default=str))  # YAML has dates, JSON has not
    return fixed


def _delete(path: Path) -> None:
    """Delete a checkpoint, or the temporary file of a save; a failure to delete is harmless."""
    if path.is_dir():
        rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def state_of(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]) -> tuple[dict[str, int], Moments]:
    """The number of updates, and the first and second moments, of an AdamW by name; zeros before the first update."""
    states = {name: optimizer.state.get(p, {}) for name, p in trained.items()}
    first, second = (
        {name: state.get(key, torch.zeros_like(trained[name])) for name, state in states.items()}
        for key in ("exp_avg", "exp_avg_sq")
    )
    return {name: int(state.get("step", 0)) for name, state in states.items()}, (first, second)


def restore_state(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Restore the state that an AdamW had at a checkpoint."""
    first, second = checkpoint.moments
    for name, p in trained.items():
        if checkpoint.updates[name]:
            optimizer.state[p] = {
                "step": torch.tensor(float(checkpoint.updates[name])),
                "exp_avg": first[name].to(p.device),
                "exp_avg_sq": second[name].to(p.device),
            }
