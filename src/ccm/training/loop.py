"""The training loop: batches, passes, gradients over all processes, AdamW; checkpoints, a log and evaluations."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.distributed.fsdp import fully_shard

from ccm.chat.turns import Turns
from ccm.core.errors import AdapterError, ConfigError, TrainingError
from ccm.core.files import SafetensorError, as_path
from ccm.core.processes import get_logger, is_main
from ccm.data import DataSet, open_data
from ccm.engine.layout import length
from ccm.training import heap
from ccm.training.batches import Batch, Batches
from ccm.training.checks import base_origin, check, check_checkpoint, digest
from ccm.training.precision import WORTH, bfloat16_speed
from ccm.training.preview import mlp_width
from ccm.training.recipe import Recipe
from ccm.training.run import Checkpoint, Run, restore_state, state_of
from ccm.training.stages import Stage, make_stage, open_turns
from ccm.training.trackers import begin, trackers

LEAST_SCALE = 2.0**-14  # the smallest scale of a float16 loss; it starts at 2^16, and every overflow halves it

_log = get_logger(__name__)


@dataclass(frozen=True)
class StepReport:
    """The state of a training after a step.

    Attributes:
        step: the number of optimizer steps made.
        losses: the mean of each loss since the last report, by name; "loss" is their weighted sum.
        lr: the learning rate of the last step.
        grad_norm: the norm of the last step's gradient before clipping.
        tokens_per_second: text tokens of all processes per second since the last report.
        seconds: seconds since this process started.
        seconds_left: estimated seconds to the last step, at the mean speed so far.
        measured: the figures of the evaluation by name; empty in steps without one.
    """

    step: int
    losses: Mapping[str, float]
    lr: float
    grad_norm: float
    tokens_per_second: float
    seconds: float
    seconds_left: float
    measured: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """One flat record for JSON."""
        numbers = {name: getattr(self, name) for name in ("lr", "grad_norm", "tokens_per_second", "seconds")}
        evaluated = {f"eval_{name}": value for name, value in self.measured.items()}
        record = {"step": self.step, **self.losses, **evaluated, **numbers}
        return {name: value if math.isfinite(value) else None for name, value in record.items()}  # JSON has no NaN


Advance = Callable[[int, StepReport | None], None]


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    start: str | Path | None = None,
    report: Callable[[StepReport], None] = lambda report: None,
    advance: Advance = lambda step, report: None,
    make: Callable[[Recipe, Turns], Stage] = make_stage,
) -> Path:
    """Run the training of a recipe.

    Under ``torchrun``, every process calls this function. Ctrl-C saves a checkpoint, then ends the training.

    Args:
        recipe: the recipe; its ``output_dir`` must be set.
        resume: whether to resume from the last checkpoint in ``output_dir``.
        start: a checkpoint of another run to start from. Settings, base and data must be the same; their paths may
            differ.
        report: called in the main process every ``log_every`` steps.
        advance: called in the main process with the number of steps done: once at the start with None, and after every
            step with the state of the training.
        make: makes a stage other than the two of :func:`make_stage`.

    Returns:
        The output directory, which holds the result.

    Raises:
        ConfigError, DataError, AdapterError: if the training cannot start as asked; nothing is then written.
        TrainingError: if the loss is not finite, or a checkpoint cannot be read or saved.
        KeyboardInterrupt: on Ctrl-C; once the training has started, the message names the last checkpoint.
    """
    if recipe.output_dir is None:
        raise ConfigError("output_dir is not set; name a folder for the result with output_dir=DIR.")
    run = Run(as_path(recipe.output_dir, ConfigError), recipe, None if start is None else Path(start))
    if is_main():  # another process might already see files of the first one
        run.check(resume=resume)
    turns = open_turns(recipe)
    data = open_data(recipe.data, turns, recipe.seed)
    return Training(recipe, run, data, lambda placed: make(placed, turns), report, advance).go()


class Training:
    """One training in progress."""

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        data: DataSet,
        make: Callable[[Recipe], Stage],
        report: Callable[[StepReport], None],
        advance: Advance = lambda step, report: None,
    ) -> None:
        self.recipe, self.run, self.data, self.report, self.advance = recipe, run, data, report, advance
        on_cpu = recipe.device == "cpu" or not torch.cuda.is_available()
        logging = trackers(recipe, run.folder, resumed=bool(run.checkpoints())) or None
        self.accelerator = Accelerator(cpu=on_cpu, log_with=logging, project_dir=run.folder / "tensorboard")
        self.main = self.accelerator.is_main_process
        torch.manual_seed(recipe.seed)  # the same adapter in every process
        device = str(self.accelerator.device) if self.accelerator.num_processes > 1 else recipe.device
        self.stage = make(replace(recipe, device=device))
        self.stage.module.train()
        check(recipe, data, self.stage)
        self.mixed = self._mixes()
        self.parameters = [*self.stage.trained.values()]
        if recipe.shard:
            shard(self.stage)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        self.batches = Batches.of(recipe, data)
        half = self.stage.base.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.accelerator.device.type, enabled=half)
        self.interrupted = Event()
        self.agreed = False  # whether any process was interrupted; the same in all processes
        self.step = self.told = 0
        self.sums: dict[str, float] = {}  # losses since the last report
        self.drawn = ""  # digest of all batches so far

    def go(self) -> Path:
        """Train to the last step, write the result, and return its folder."""
        self._resume(self.run.previous())
        self.accelerator.wait_for_everyone()  # all have read the checkpoint before the first process writes
        with self.run.open() if self.main else nullcontext():
            try:
                return self._go()
            except KeyboardInterrupt as stop:
                if stop.args:  # the first Ctrl-C, after which a checkpoint was saved
                    raise
                raise KeyboardInterrupt(self.run.saved()) from None

    def _go(self) -> Path:
        if self.main:
            self.run.forget_after(self.step)
            self.advance(self.step, None)
        if self.step == self.recipe.max_steps:
            _log.warning("All %d steps were already made; writing the result again.", self.step)
        if self.recipe.tensorboard or self.recipe.wandb:
            begin(self.accelerator, self.recipe, self.run.folder)
        try:
            with _interruptible(self.interrupted):
                self._steps()
        finally:
            self.accelerator.end_training()
        if self._ending():
            self._save()
            raise KeyboardInterrupt(f"Step {self.step} is saved. Resume from it with resume=True.")
        if self.main:
            self._write()
        return self.run.folder

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        """Restore the state of a checkpoint, if there is one."""
        if checkpoint is None:
            return
        self.drawn = check_checkpoint(checkpoint, self.stage, self.batches)
        self.stage.restore(checkpoint.tensors)
        restore_state(self.optimizer, self.stage.trained, checkpoint)
        self.scaler.load_state_dict(checkpoint.scaler)
        self.step, self.told, self.sums = checkpoint.step, checkpoint.told, checkpoint.sums
        if checkpoint.mixed is not None and checkpoint.mixed != self.mixed:
            self.mixed = checkpoint.mixed
            _log.warning(
                "The training goes on as it began: mixed precision %s.", "is on" if self.mixed else "stays off"
            )

    def _steps(self) -> None:
        recipe, begun = self.recipe, time.monotonic()
        first, since, tokens = self.step, begun, 0
        for batch in self.batches.since(self.step):
            if self.step >= recipe.max_steps or self._ending():
                return
            losses, grad_norm = self._step(batch)
            self.drawn = digest(batch.samples, self.drawn)
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
            tokens += sum(map(length, batch.samples))
            now = time.monotonic()
            stands = StepReport(
                step=self.step,
                losses={name: value / (self.step - self.told) for name, value in self.sums.items()},
                lr=self._rate(self.step - 1),
                grad_norm=grad_norm,
                tokens_per_second=tokens / (now - since),
                seconds=now - begun,
                seconds_left=(now - begun) / (self.step - first) * (recipe.max_steps - self.step),
            )
            if self.main:
                self.advance(self.step, stands)
            if self._due(recipe.log_every) or self._due(recipe.eval_every):
                self._tell(replace(stands, measured=self._evaluate() if self._due(recipe.eval_every) else {}))
                self.sums, self.told, since, tokens = {}, self.step, time.monotonic(), 0
            if self._due(recipe.save_every):
                self._save()
            if self._due(heap.EVERY):
                heap.trim()

    def _ending(self) -> bool:
        """Whether to end now. All processes must end together, since each waits for the gradients of the others."""
        return self.agreed if self.accelerator.num_processes > 1 else self.interrupted.is_set()

    def _due(self, every: int) -> bool:
        """Whether a task that runs every ``every`` steps (0: never), and after the last step, is due now."""
        return self.step == self.recipe.max_steps or (every > 0 and self.step % every == 0)

    def _rate(self, step: int) -> float:
        """The learning rate of a step: a linear rise, then a cosine down to ``lr * lr_end``."""
        recipe = self.recipe
        rise = math.ceil(recipe.warmup * recipe.max_steps)
        if step < rise:
            return recipe.lr * (step + 1) / (rise + 1)
        done = (step - rise) / max(recipe.max_steps - rise, 1)
        return recipe.lr * (recipe.lr_end + (1 - recipe.lr_end) * 0.5 * (1 + math.cos(math.pi * done)))

    def _step(self, batch: Batch) -> tuple[dict[str, float], float]:
        """Make one optimizer step; return the losses by name and the norm of the gradient."""
        rate, index = self._rate(self.step), self.accelerator.process_index
        torch.manual_seed(hash((self.recipe.seed, self.step, index)) % (1 << 62))  # seeds dropout
        losses = self._gradients(batch)
        self.step += 1
        advice = (
            f"the training cannot continue. Lower lr (now {rate:g}), or use dtype=bfloat16 instead of float16. Earlier "
            "checkpoints are intact."
        )
        if not math.isfinite(losses["loss"]):
            raise TrainingError(f"The loss is {losses['loss']} at step {self.step}; {advice}")
        self.scaler.unscale_(self.optimizer)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.max_grad_norm))
        if not (math.isfinite(norm) or self.scaler.is_enabled()):  # the scaler skips such a step
            raise TrainingError(f"The gradient norm is {norm} at step {self.step}; {advice}")
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < LEAST_SCALE:
            raise TrainingError(
                f"The gradients overflow at step {self.step}, however small the scale of the loss; {advice}"
            )
        self.optimizer.zero_grad(set_to_none=True)
        return losses, norm

    def _gradients(self, batch: Batch) -> dict[str, float]:
        """Compute the gradients of a whole batch's mean losses, equal in every process; return the losses by name."""
        objective = self.stage.objective
        counts = objective.counts(batch.samples)
        found = dict.fromkeys(counts, 0.0)
        for part in self._share(batch):
            with self._precision():
                sums = self.stage.sums(part)
            self.scaler.scale(objective.total(sums, counts)).backward()
            for name, value in sums.items():
                found[name] += value.item() / max(counts[name], 1)
        if self.accelerator.num_processes > 1:
            found = self._sum_over_processes(found)
        return {"loss": sum(objective.weights[name] * value for name, value in found.items()), **found}

    def _mixes(self) -> bool:
        """Whether to multiply matrices in bfloat16, as the recipe says or as measured; the same in all processes."""
        if self.recipe.mixed_precision != "auto" or self.stage.base.dtype != torch.float32:
            return self.recipe.mixed_precision is True
        config = self.stage.base.config.get_text_config()
        speed = bfloat16_speed(config.hidden_size, mlp_width(config), self.stage.base.device)
        slowest = min(gather_object([speed]))
        chosen = "is on" if slowest >= WORTH else "stays off"
        _log.warning("bfloat16 multiplies matrices %.1f times as fast as float32: mixed precision %s.", slowest, chosen)
        return slowest >= WORTH

    def _precision(self) -> torch.autocast:
        """The context in which passes multiply matrices."""
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.mixed)

    def _share(self, batch: Batch) -> list[Batch]:
        """This process's share of the passes of a batch."""
        processes = self.accelerator.num_processes
        return batch.passes(self.recipe.pass_tokens, processes)[self.accelerator.process_index :: processes]

    def _sum_over_processes(self, losses: dict[str, float]) -> dict[str, float]:
        """Sum gradients and losses over the processes, in one exchange per step."""
        stop = float(self.interrupted.is_set())  # if any process was interrupted, all end after this step
        given = [float(p.grad is not None) for p in self.parameters]
        values = torch.tensor([stop, *losses.values(), *given], device=self.accelerator.device)
        grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters)
        flat = torch.cat([values, *(grad.flatten() for grad in grads)])
        dist.all_reduce(flat)
        stop, *sums = flat[: len(values)].tolist()
        self.agreed = stop > 0
        pieces = flat[len(values) :].split([p.numel() for p in self.parameters])
        for p, piece, count in zip(self.parameters, pieces, sums[len(losses) :], strict=True):
            p.grad = piece.view_as(p) if count else None  # AdamW skips a parameter without gradient, as in one process
        return dict(zip(losses, sums[: len(losses)], strict=True))

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """The mean losses on the held-out samples, and the figures that the data set measures of the model."""
        samples, objective = self.data.held_out(), self.stage.objective
        if len(samples) < self.accelerator.num_processes:
            samples = []
        self.stage.module.eval()
        measured = {}
        if samples:
            whole = Batch(samples, [0] * len(samples), self.recipe.adapter.n_tok)
            counts, found = objective.counts(samples), dict.fromkeys(objective.weights, 0.0)
            for part in self._share(whole):
                for name, value in self.stage.sums(part).items():
                    found[name] += value.item() / max(counts[name], 1)
            values = self.accelerator.reduce(torch.tensor([*found.values()], device=self.accelerator.device), "sum")
            measured = dict(zip(found, values.tolist(), strict=True))
        measured |= self.stage.measure(self.data)
        self.stage.module.train()
        return measured

    def _tell(self, report: StepReport) -> None:
        if not self.main:
            return
        record = report.to_dict()
        self.run.log(record)
        self.accelerator.log({k: v for k, v in record.items() if k != "step" and v is not None}, step=report.step)
        self.report(report)

    def _save(self) -> None:
        if self.main:
            trained = {name: tensor.detach() for name, tensor in self.stage.trained.items()}
            updates, moments = state_of(self.optimizer, self.stage.trained)
            scaler = self.scaler.state_dict()
            origin = {**base_origin(self.stage), "data": self.drawn}
            state = (scaler, updates, self.told, self.sums, self.mixed)
            self.run.save(Checkpoint(self.step, origin, trained, moments, *state))

    def _write(self) -> None:
        try:
            self.stage.save(self.run.folder)
        except (OSError, SafetensorError, AdapterError) as error:
            raise TrainingError(
                f"The result cannot be saved: {error}. The last checkpoint is intact; fix the cause, then resume with "
                "resume=True."
            ) from error


@contextmanager
def _interruptible(event: Event) -> Iterator[None]:
    """Within the ``with`` block, the first SIGINT or SIGTERM only sets the event; the second one acts at once."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in kept.items():
            signal.signal(number, handler)

    def note(*_: Any) -> None:
        event.set()
        restore()
        _log.warning("Finishing and saving the current step first; interrupt again to stop at once.")

    for number in kept:
        signal.signal(number, note)
    try:
        yield
    finally:
        restore()


def shard(stage: Stage) -> None:
    """Shard the frozen base's layers over all processes (FSDP2); every process keeps the trained tensors whole."""
    trained = set(stage.trained.values())
    layers = [m for m in stage.module.modules() if type(m).__name__ in stage.base._no_split_modules]
    for layer in layers:
        fully_shard(layer, ignored_params=trained)
