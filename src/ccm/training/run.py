"""The folder of a run: recipe, log, checkpoints, and in the end the result. The last good state always stays.

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
from ccm.core.files import SafetensorError, holding, is_held, load_tensors, parse_json, read_json, write_atomically
from ccm.core.tensor_files import read_file, write_file
from ccm.training.recipe import Recipe, read_table, write_recipe

RECIPE, LOG, CHECKPOINTS, LOCK = "recipe.yaml", "log.jsonl", "checkpoints", ".lock"
KIND = "ccm_checkpoint"
FIRST_BATCH = "first batch"  # whose digest checkpoints of version 1 tell, of all data
_PARTS, _STATE = ("trained", "first", "second"), ("step", "origin", "scaler", "updates", "told", "sums")
_NAME = re.compile(r"step-\d+(\.safetensors)?")
_FREE = {  # settings that may change when a run goes on: but for dropout, they change nothing of what is computed
    "pass_tokens", "saved_dtype", "device", "flex", "gradient_checkpointing", "shard", "log_every", "eval_every",
    "save_every", "keep", "tensorboard", "wandb",
}  # fmt: skip
_PLACES = {"output_dir", "model", "base_adapter", "init_adapter"}  # of what fingerprints and tensors tell apart
_DATA_PLACES = {"path", "eval_path"}  # likewise, by the digest of what was drawn; what is held out is not trained on

Moments = tuple[dict[str, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after so many steps.

    Attributes:
        step: optimizer steps made.
        origin: what the training is of, by name: fingerprint and dtype of the base, digest of the data drawn so far.
        tensors: what is trained, by name.
        moments: the optimizer's first and second moments, by the same names.
        scaler: state of the scaling of the loss in float16 training; empty otherwise.
        updates: of each tensor by the optimizer: none in steps that gave it no gradient, or that float16 overflowed in.
        told: the step of the last report.
        sums: the losses since then, added up.
        settings: of the recipe, that must be the same to go on; None in version 1, whose recipe is in the run's folder.
        path: where it was read.
    """

    step: int
    origin: dict[str, str]
    tensors: dict[str, Tensor]
    moments: Moments
    scaler: dict[str, float]
    updates: dict[str, int]
    told: int
    sums: dict[str, float]
    settings: Mapping[str, Any] | None = None
    path: Path | None = None


class Run:
    """A run's folder, and the checkpoint of another run that this one goes on from, if any.

    Only the main process checks and writes.
    """

    def __init__(self, folder: Path, recipe: Recipe, start: Path | None = None) -> None:
        self.folder, self.recipe = folder, recipe
        self._new, self._start = False, start

    def check(self, *, resume: bool) -> None:
        """See whether a run can begin here, or go on from what is here or from that checkpoint.

        Raises:
            ConfigError: when the folder is in use, or holds another run or, to resume, none; or when what is to go on
                has another recipe.
            TrainingError: when the checkpoint is absent or damaged.
        """
        if resume and self._start:
            raise ConfigError(
                f"A run goes on from what is in {self.folder}, or from {self._start}; ask for one of them."
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
            raise ConfigError(f"There is no run in {self.folder} to resume; leave resume=True out to begin one.")
        if self._brought is not None:
            if (settings := self._brought.settings) is None:
                raise ConfigError(
                    f"{self._start} is of version 1 and has no settings; resume it in the folder of its run."
                )
            self._compare(settings, f"of {self._start}")

    @cached_property
    def _brought(self) -> Checkpoint | None:
        """The checkpoint of another run."""
        return None if self._start is None else read_checkpoint(self._start)

    @property
    def _held(self) -> list[str]:
        """What is in the folder."""
        return sorted({path.name for path in self.folder.iterdir()} - {LOCK}) if self.folder.is_dir() else []

    def _check_empty(self) -> None:
        if not (held := self._held):
            return
        other = "name another one with output_dir=DIR"
        if RECIPE in held:
            raise ConfigError(
                f"The output directory {self.folder} holds another run. Go on with it by resume=True, {other}, or "
                "delete it."
            )
        raise ConfigError(f"The output directory {self.folder} holds other files ({', '.join(held[:4])}); {other}.")

    def _compare(self, before: Mapping[str, Any], which: str) -> None:
        """The recipe must be that of a run that is to go on, but for what is free."""
        before, now = {**_fixed(Recipe().to_dict()), **before}, self.settings  # some settings came later
        if differing := sorted(key for key, value in now.items() if before.get(key) != value):
            told = ", ".join(f"{key} {before.get(key)} (now {now[key]})" for key in differing)
            raise ConfigError(
                f"The run {which} has other settings: {told}. Resume with those of its {RECIPE}, or begin another run "
                "elsewhere; with init_adapter it begins with what this one learned."
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the recipe that must be the same to go on."""
        return _fixed(self.recipe.to_dict())

    def _in_use(self) -> ConfigError:
        return ConfigError(
            f"The output directory {self.folder} is in use by another training; wait for its end, or name another one "
            "with output_dir=DIR."
        )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Begin, and keep other trainings out of the folder meanwhile.

        Raises:
            ConfigError: when one is in it, or has been since :meth:`check`.
            TrainingError: when it cannot be written.
        """
        with ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(holding(self.folder / LOCK))
            except BlockingIOError:
                raise self._in_use() from None
            except OSError as error:
                raise self._unwritable(error) from error
            if self._new:
                self._check_empty()
            self.begin()
            yield

    def begin(self) -> None:
        """Make the folder, and write into it the recipe and the checkpoint to go on from, if it is of another run.

        Raises:
            TrainingError: when that cannot be done.
        """
        try:
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            text = write_recipe(self.recipe)
            write_atomically(self.folder / RECIPE, lambda path: path.write_text(text, encoding="utf-8"))
            for left in (self.folder / CHECKPOINTS).glob(".step-*"):
                _delete(left)
        except OSError as error:
            raise self._unwritable(error) from error
        if self._brought is not None:
            self.save(self._brought)

    def _unwritable(self, error: OSError) -> TrainingError:
        return TrainingError(f"The output directory {self.folder} cannot be written: {reason(error)}.")

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
                f"{self.folder / LOG} cannot be written: {reason(error)}. Mend that and go on from the last checkpoint "
                "with resume=True."
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
            raise TrainingError(
                f"{path} cannot be written: {reason(error)}. Mend that and go on again with resume=True."
            ) from error

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, the oldest first."""
        return whole_checkpoints(self.folder / CHECKPOINTS)

    def saved(self) -> str:
        """What a training that broke off can go on from."""
        if not (held := self.checkpoints()):
            return "No step is saved. Begin again with resume=True."
        return f"Not saved since step {int(held[-1].stem[5:])}. Go on from there with resume=True."

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, then delete the oldest ones.

        Raises:
            TrainingError: when it cannot be written; those before it are untouched.
        """
        name = f"step-{checkpoint.step:06d}"
        if name in (held.stem for held in self.checkpoints()):  # of a run that was interrupted right after it: the same
            return
        parts = zip(_PARTS, (checkpoint.tensors, *checkpoint.moments), strict=True)
        tensors = {f"{part}.{key}": tensor for part, held in parts for key, tensor in held.items()}
        manifest = {name: getattr(checkpoint, name) for name in _STATE} | {"settings": self.settings}
        try:
            (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
            write_file(self.folder / CHECKPOINTS / f"{name}.safetensors", KIND, tensors, manifest)
        except (OSError, SafetensorError) as error:
            held = self.checkpoints()
            good = f"Go on from {held[-1].stem} with resume=True" if held else "There is none before it"
            raise TrainingError(
                f"The checkpoint of step {checkpoint.step} cannot be saved: {reason(error)}. {good}."
            ) from error
        for old in self.checkpoints()[: -self.recipe.keep]:
            _delete(old)

    def previous(self) -> Checkpoint | None:
        """The state to go on from, as it is before :meth:`open`: that of another run, or the newest one here, or None.

        Raises:
            TrainingError: as :meth:`last`.
        """
        return self._brought or self.last()

    def last(self) -> Checkpoint | None:
        """The newest checkpoint; None where there is none.

        Raises:
            TrainingError: when it is damaged, or of a newer version.
        """
        if not (held := self.checkpoints()):
            return None
        try:
            return read_checkpoint(held[-1])
        except TrainingError as error:
            raise TrainingError(f"{error} Delete it to go on from the one before.") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint: a file, or a folder of version 1.

    Raises:
        TrainingError: when it is absent, a folder that is none, damaged, or of a newer version.
    """
    if path.is_dir() and not (path / "state.json").is_file():
        held = whole_checkpoints(path / CHECKPOINTS) or whole_checkpoints(path)
        which = f"the newest that it holds is {held[-1]}" if held else f"a run has them in its folder {CHECKPOINTS}"
        raise TrainingError(f"{path} is a folder, not a checkpoint; name a checkpoint: {which}.")
    try:
        if not path.is_dir():
            tensors, state = read_file(path, KIND, TrainingError)
            parts = [_part(tensors, f"{part}.") for part in _PARTS]
        else:
            state = read_json(path / "state.json")
            parts = [load_tensors(path / f"{part}.safetensors")[0] for part in _PARTS]
            state["origin"][FIRST_BATCH] = state["origin"].pop("data")
        told = {name: state[name] for name in _STATE}
        settings = state.get("settings")
        checkpoint = Checkpoint(tensors=parts[0], moments=(parts[1], parts[2]), settings=settings, path=path, **told)
        _check_parts(checkpoint)
        return checkpoint
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TrainingError(f"The checkpoint {path} is damaged: {reason(error)}.") from error
    except MemoryError as error:
        raise TrainingError(f"The checkpoint {path} is larger than the memory of this machine.") from error


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those in a folder of checkpoints, the oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.stem[5:]))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check_parts(checkpoint: Checkpoint) -> None:
    """Refuse, by a ValueError, parts that do not belong together, and counts that are none."""
    sizes = [{name: t.shape for name, t in part.items()} for part in (checkpoint.tensors, *checkpoint.moments)]
    if any(part != sizes[0] for part in sizes) or checkpoint.updates.keys() != sizes[0].keys():
        raise ValueError("its tensors, moments and counts of updates are not of the same names and sizes")
    counts = (checkpoint.step, checkpoint.told, *checkpoint.updates.values())
    if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts):
        raise ValueError("its counts are not whole numbers from 0")


def _step_of(line: str) -> int:
    try:
        return int(parse_json(line)["step"])
    except (ValueError, KeyError, TypeError):  # the line that an interruption cut off
        return 1 << 60


def _fixed(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that are not free, as JSON gives them back."""
    held = {key: value for key, value in values.items() if key not in _FREE | _PLACES}
    if isinstance(data := values.get("data"), Mapping):
        held["data"] = {key: value for key, value in data.items() if key not in _DATA_PLACES}
    fixed: dict[str, Any] = json.loads(json.dumps(held, default=str))  # YAML knows dates, too
    return fixed


def _delete(path: Path) -> None:
    """Delete a checkpoint, or what a save left; one that stays does no harm."""
    if path.is_dir():
        rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


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
