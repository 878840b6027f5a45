"""The loop: gradients, the rate, interruption and resumption, and every way to fail early."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import TOLERANCE, ccm_config, tolerance
from tiny_training import (
    DROPOUT,
    Tiny,
    adapter,
    assert_same,
    assert_trained_alike,
    begin,
    checkpoints,
    gradients,
    make,
    records,
    with_lora,
)

import ccm
from ccm.core.errors import ConfigError, DataError, TrainingError
from ccm.core.files import load_tensors
from ccm.data import open_data
from ccm.data.settings import DataSettings
from ccm.training import loop, precision, run
from ccm.training.batches import Batch
from ccm.training.loop import StepReport, Training, train
from ccm.training.precision import bfloat16_speed
from ccm.training.recipe import Recipe, load_recipe

pytestmark = pytest.mark.usefixtures("one_thread")
FORK = multiprocessing.get_context("fork")  # a real process, without the seconds that the imports take
STOPPED = 42
OLD = Path(__file__).parents[1] / "version1"


def hard(tiny: Tiny, out: Path, **changes: Any) -> Recipe:
    """Eight steps of all that draws at random: dropout, steps, N, offsets; two losses, a rule with parameters.

    The log's lines are means of three steps, and so they cross checkpoints.
    """
    settings: dict[str, Any] = {
        "adapter": replace(ccm_config("gate", n_tok=2), lora=DROPOUT),
        "objective": {"every": 1.0, "distill": 0.5},
        "random_n_tok": True,
        "max_offset": 20,
        "max_steps": 8,
        "log_every": 3,
        "keep": 3,
    }
    return tiny.recipe(out, **{**settings, **changes})


@pytest.fixture(scope="module")
def uninterrupted(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(hard(tiny, tmp_path_factory.mktemp("run") / "whole"))


def assert_as_uninterrupted(out: Path, uninterrupted: Path) -> None:
    assert records(out) == records(uninterrupted)
    assert_same(adapter(out), adapter(uninterrupted))


class Killed(BaseException):
    """What breaks a training off in these tests, as a kill -9 does: nothing catches it."""


def at(step: int, act: Callable[[], Any]) -> Callable[[StepReport], None]:
    """A report that acts at a step."""

    def report(told: StepReport) -> None:
        if told.step == step:
            act()

    return report


def stop() -> None:
    raise Killed


# Gradients -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [{"every": 1.0}, {"last": 0.5, "distill": 2.0}])
def test_gradients_do_not_depend_on_the_number_of_passes(tiny: Tiny, weights: dict[str, float]) -> None:
    found = []
    for tokens in (10_000, 300, 1):
        training = begin(tiny.recipe(objective=weights, pass_tokens=tokens, batch_size=6))
        batch = next(training.batches.since(0))
        passes = len(batch.passes(tokens, 1))
        losses = training._gradients(batch)
        found.append((passes, losses, gradients(training.stage)))
    assert found[0][0] == 1 < found[1][0] < found[2][0] == 6
    for _, losses, grads in found[1:]:
        assert losses == pytest.approx(found[0][1], abs=TOLERANCE)
        assert_same(grads, found[0][2], tolerance(1.0))


def test_gradients_are_the_same_with_gradient_checkpointing(tiny: Tiny) -> None:
    """Which rows hold COMP tokens must be right in the second forward pass, too; with dropout, as it was drawn."""
    found = []
    for on in (False, True):
        recipe = tiny.recipe(gradient_checkpointing=on, adapter=with_lora(ccm_config("gate"), dropout=0.3))
        stage, calls = make(recipe), []
        stage.module.train()
        stage.base.model.layers[0].self_attn.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        samples = open_data(recipe.data, stage.turns, recipe.seed).pool(0, 4)
        torch.manual_seed(0)
        stage.sums(Batch(samples, [0] * 4, 2))["every"].backward()
        assert len(calls) == (2 if on else 1)
        found.append(gradients(stage))
    assert_same(found[0], found[1], tolerance(1.0))


def test_a_step_is_that_of_adamw_on_the_mean_loss_of_the_batch(tiny: Tiny) -> None:
    training = begin(tiny.recipe(max_grad_norm=1e9, warmup=0.0))
    reference = make(tiny.recipe(), seed=0)
    with torch.no_grad():
        for name, tensor in reference.trained.items():
            tensor.copy_(training.stage.trained[name])
    batch = next(training.batches.since(0))
    sums = reference.sums(batch)
    counts = reference.objective.counts(batch.samples)
    (sums["every"] / counts["every"]).backward()
    optimizer = torch.optim.AdamW(reference.trained.values(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0.0)
    expected = math.sqrt(sum(float((p.grad**2).sum()) for p in reference.trained.values() if p.grad is not None))
    optimizer.step()
    before = {name: tensor.detach().clone() for name, tensor in training.stage.trained.items()}
    losses, norm = training._step(batch)
    assert losses["loss"] == pytest.approx(sums["every"].item() / counts["every"], rel=1e-5)
    assert norm == pytest.approx(expected, rel=1e-4)
    assert_trained_alike(training.stage.trained, reference.trained)
    assert max((tensor - before[name]).abs().max().item() for name, tensor in reference.trained.items()) > 5e-3


def test_the_optimizer_is_the_recipes(tiny: Tiny) -> None:
    """Its rate follows the schedule, step by step, and what each batch draws is what the recipe asks for."""
    recipe = tiny.recipe(
        max_steps=8, warmup=0.5, betas=(0.8, 0.9), weight_decay=0.1, max_offset=50, random_n_tok=True,
        adapter=ccm_config("concat", n_tok=3),
    )  # fmt: skip
    training, used = begin(recipe), []
    training.optimizer.register_step_pre_hook(lambda optimizer, *_: used.append(dict(optimizer.param_groups[0])))
    batches = [*itertools.islice(training.batches.since(0), 8)]
    for batch in batches:
        training._step(batch)
    assert [group["lr"] for group in used] == [training._rate(step) for step in range(8)]
    assert len({group["lr"] for group in used}) > 5
    assert {(group["betas"], group["weight_decay"]) for group in used} == {((0.8, 0.9), 0.1)}
    assert {batch.n_tok for batch in batches} == {1, 2, 3}
    starts = {start for batch in batches for start in batch.starts}
    assert len(starts) > 10
    assert max(starts) > 40


def test_gradients_are_clipped(tiny: Tiny) -> None:
    training = begin(tiny.recipe(max_grad_norm=1e-3))
    batch = next(training.batches.since(0))
    seen = []

    def note(*_: Any) -> None:
        seen.append(math.sqrt(sum(float((p.grad**2).sum()) for p in training.parameters if p.grad is not None)))

    training.optimizer.register_step_pre_hook(note)
    _, norm = training._step(batch)
    assert norm > 1e-2
    assert seen == [pytest.approx(1e-3, rel=1e-2)]


def test_the_rate_rises_and_falls_as_a_cosine(tiny: Tiny) -> None:
    training = begin(tiny.recipe(max_steps=100, warmup=0.1, lr=1.0, lr_end=0.2))
    rates = [training._rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert max(rates) == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.6)  # half way down
    assert rates[99] == pytest.approx(0.2, abs=1e-3)
    assert begin(tiny.recipe(warmup=0.0, lr=0.5))._rate(0) == 0.5


def test_mixed_precision_multiplies_in_bfloat16_and_keeps_the_rest(tiny: Tiny) -> None:
    found = {}
    for mixed in (False, True):
        data = DataSettings(path=str(tiny.chats), random_steps=False)
        recipe = tiny.recipe(mixed_precision=mixed, adapter=ccm_config("gate"), data=data)
        training = begin(recipe)
        training.stage, outputs = make(recipe), []
        layer = training.stage.base.model.layers[0].mlp.up_proj
        layer.register_forward_hook(lambda *given, kept=outputs: kept.append(given[-1].dtype))
        losses = training._gradients(next(training.batches.since(0)))
        assert {*outputs} == {torch.bfloat16 if mixed else torch.float32}
        found[mixed] = losses["loss"], gradients(training.stage)
    (exact, grads), (mixed_loss, mixed_grads) = found[False], found[True]
    assert mixed_loss != exact
    assert mixed_loss == pytest.approx(exact, rel=0.01)
    assert {grad.dtype for grad in mixed_grads.values()} == {torch.float32}
    for name, grad in grads.items():
        assert (mixed_grads[name] - grad).norm() <= 0.1 * grad.norm(), name


@pytest.mark.parametrize(("speed", "mixed"), [(2.2, True), (0.5, False)])
def test_mixed_precision_may_follow_from_how_fast_it_is(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, speed: float, mixed: bool
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(loop, "bfloat16_speed", lambda width, inner, device: asked.append((width, inner)) or speed)
    training = begin(tiny.recipe(mixed_precision="auto"))
    assert training.mixed == mixed
    config = training.stage.base.config
    assert asked == [(config.hidden_size, config.intermediate_size)]
    told = f"bfloat16 multiplies matrices {speed:.1f} times as fast as float32: mixed precision "
    assert told + ("is on." if mixed else "stays off.") in caplog.text
    assert not begin(tiny.recipe(mixed_precision="auto", dtype="bfloat16")).mixed
    assert len(asked) == 1


def test_a_training_keeps_the_precision_that_it_began_with(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    speeds = iter([2.2, 2.2, 0.5])  # the last on a machine where it is slow
    monkeypatch.setattr(loop, "bfloat16_speed", lambda *_: next(speeds))

    def recipe(name: str) -> Recipe:
        return tiny.recipe(tmp_path / name, mixed_precision="auto", max_steps=4)

    whole = train(recipe("whole"))
    with pytest.raises(Killed):
        train(recipe("out"), report=at(3, stop))
    assert records(train(recipe("out"), resume=True)) == records(whole)
    assert "The training goes on as it began: mixed precision is on." in caplog.text


def test_the_speed_of_bfloat16_is_that_of_the_best_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.dtype] = []

    def seconds(way: Any, device: torch.device) -> float:
        taken.append(way().dtype)
        first = len(taken) <= 2  # which others disturbed
        return 9.0 if first else 3.0 if taken[-1] == torch.float32 else 1.5

    monkeypatch.setattr(precision, "_seconds", seconds)
    assert bfloat16_speed(8, 12, torch.device("cpu")) == 2.0
    assert taken[:4] == [torch.float32, torch.bfloat16] * 2  # by turns


@pytest.mark.parametrize("stage", ["base", "compress"])
def test_float16_trains_with_a_scaled_loss(tiny: Tiny, stage: Any) -> None:
    assert not begin(tiny.recipe(stage=stage, dtype="bfloat16")).scaler.is_enabled()
    assert begin(tiny.recipe(stage=stage, dtype="float16")).scaler.is_enabled()


# What a run leaves ---------------------------------------------------------------------------------------------------


def test_the_log_is_json_lines_of_what_was_reported(tiny: Tiny, tmp_path: Path) -> None:
    reports: list[StepReport] = []
    out = train(tiny.recipe(tmp_path / "out", log_every=2, max_steps=5), report=reports.append)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 5] == [report.step for report in reports]
    for line in lines:
        assert {"loss", "every", "lr", "grad_norm", "tokens_per_second", "seconds"} <= set(line)
        assert line["tokens_per_second"] > 0
    assert reports[-1].seconds_left == 0
    assert reports[0].seconds_left > 0
    assert lines[-1]["loss"] == lines[-1]["every"]


def test_the_loss_of_a_record_is_the_mean_since_the_last_one(tiny: Tiny, tmp_path: Path) -> None:
    each = records(train(tiny.recipe(tmp_path / "each", log_every=1)))
    three = records(train(tiny.recipe(tmp_path / "three", log_every=3)))
    for i, record in enumerate(three):
        mean = sum(r["loss"] for r in each[3 * i : 3 * i + 3]) / 3
        assert record["loss"] == pytest.approx(mean, rel=1e-6)


def test_it_learns(tiny: Tiny, tmp_path: Path) -> None:
    data = replace(tiny.recipe().data, random_steps=False, eval_samples=0)
    recipe = tiny.recipe(
        tmp_path / "out", data=data, batch_size=24, pool=1, max_steps=5, pass_tokens=4096, save_every=0
    )
    losses = [record["loss"] for record in records(train(recipe))]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.05


def test_the_newest_checkpoints_stay(tiny: Tiny, tmp_path: Path) -> None:
    out = train(tiny.recipe(tmp_path / "out", max_steps=7, save_every=2, keep=2))
    assert checkpoints(out) == ["step-000006", "step-000007"]
    out = train(tiny.recipe(tmp_path / "none", max_steps=3, save_every=0))
    assert checkpoints(out) == ["step-000003"]


def test_the_same_seed_trains_the_same_and_another_does_not(tiny: Tiny, uninterrupted: Path, tmp_path: Path) -> None:
    assert_as_uninterrupted(train(hard(tiny, tmp_path / "again")), uninterrupted)
    other = train(hard(tiny, tmp_path / "other", seed=1))
    assert records(other)[0]["loss"] != records(uninterrupted)[0]["loss"]


def test_the_result_is_an_adapter_that_opens(uninterrupted: Path) -> None:
    model, tokenizer = ccm.load(adapter=uninterrupted)
    assert model.config.rule == "gate"
    assert isinstance(ccm.Conversation(model, tokenizer).answer("Hello."), str)
    assert_same({name: t.detach() for name, t in model.adapter_tensors().items()}, adapter(uninterrupted))


def test_evaluation_is_logged_and_changes_nothing_of_the_training(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path
) -> None:
    out = train(hard(tiny, tmp_path / "out", eval_every=4, log_every=4, keep=1))
    lines = records(out)
    assert [line["step"] for line in lines if "eval_every" in line] == [4, 8]
    assert {"eval_every", "eval_distill"} <= set(lines[-1])
    assert_same(adapter(out), adapter(uninterrupted))


def test_an_evaluation_is_the_mean_loss_of_the_samples_held_out(tiny: Tiny, tmp_path: Path) -> None:
    for tokens in (50, 5000):
        recipe = tiny.recipe(
            tmp_path / str(tokens), max_steps=1, pass_tokens=tokens, adapter=with_lora(ccm_config(), dropout=0.5)
        )
        training = begin(recipe)
        with torch.no_grad():
            for tensor in training.parameters:  # LoRA B is 0 yet, and dropout would show nowhere
                tensor.add_(0.2)
        held = training.data.held_out()
        assert len(held) == 2
        measured = training._evaluate()
        training.stage.module.eval()
        sums = training.stage.sums(Batch(held, [0] * 2, 2))["every"]
        assert measured["every"] == pytest.approx(
            sums.item() / training.stage.objective.counts(held)["every"], rel=1e-5
        )


def test_tensorboard_has_what_the_log_has(tiny: Tiny, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = train(tiny.recipe(tmp_path / "out", max_steps=2, tensorboard=True))
    files = list(out.rglob("events.out.tfevents.*"))
    assert len(files) == 1
    events = EventAccumulator(str(files[0].parent)).Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    assert logged == [(record["step"], pytest.approx(record["loss"], rel=1e-5)) for record in records(out)]


def test_tensorboard_writes_where_the_docs_say(tiny: Tiny, tmp_path: Path) -> None:
    assert "tensorboard/" in (run.__doc__ or "")
    out = train(tiny.recipe(tmp_path / "out", max_steps=1, tensorboard=True))
    assert (out / "tensorboard").is_dir()


def test_without_loggers_nobody_is_warned(tiny: Tiny, recwarn: pytest.WarningsRecorder) -> None:
    begin(tiny.recipe())
    assert not [str(warning.message) for warning in recwarn if "log_with" in str(warning.message)]


# Interruption --------------------------------------------------------------------------------------------------------


def test_a_training_that_broke_off_goes_on_as_if_it_had_not(tiny: Tiny, uninterrupted: Path, tmp_path: Path) -> None:
    recipe = hard(tiny, tmp_path / "out")
    for step in (3, 6):  # after the checkpoints of step 2 and 4
        with pytest.raises(Killed):
            train(recipe, resume=step > 3, report=at(step, stop))
    assert checkpoints(tmp_path / "out") == ["step-000002", "step-000004"]
    train(recipe, resume=True)
    assert_as_uninterrupted(tmp_path / "out", uninterrupted)


def test_a_training_that_broke_off_before_its_first_checkpoint_begins_anew(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe = hard(tiny, tmp_path / "out", save_every=5)
    with pytest.raises(Killed):
        train(recipe, report=at(3, stop))
    train(recipe, resume=True)
    assert_as_uninterrupted(tmp_path / "out", uninterrupted)


def in_a_process(act: Callable[[], Any]) -> Any:
    """Run in a process of its own; Ctrl-C there ends it with its own exit status."""

    def main() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        try:
            act()
        except KeyboardInterrupt:
            os._exit(STOPPED)

    process = FORK.Process(target=main)
    process.start()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_the_training_goes_on_from_there(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "out"
    process = in_a_process(lambda: train(hard(tiny, out), report=at(3, lambda: os.kill(os.getpid(), number))))
    process.join(120)
    assert process.exitcode == STOPPED
    assert checkpoints(out) == ["step-000002", "step-000003"]
    train(hard(tiny, out), resume=True)
    assert_as_uninterrupted(out, uninterrupted)


def test_a_second_signal_ends_the_training_at_once(tiny: Tiny, tmp_path: Path) -> None:
    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
        os._exit(7)  # not reached

    process = in_a_process(lambda: train(hard(tiny, tmp_path / "out"), report=at(3, twice)))
    process.join(120)
    assert process.exitcode == STOPPED
    assert checkpoints(tmp_path / "out") == ["step-000002"]


def test_signals_are_handled_as_before_once_the_training_has_ended(tiny: Tiny, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tiny.recipe(tmp_path / "one", max_steps=1))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with pytest.raises(Killed):
        train(tiny.recipe(tmp_path / "two"), report=at(1, stop))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_training_in_another_thread_leaves_signals_alone(tiny: Tiny, tmp_path: Path) -> None:
    thread = threading.Thread(target=train, args=(tiny.recipe(tmp_path / "out", max_steps=1),))
    thread.start()
    thread.join()
    assert (tmp_path / "out" / "ccm_config.json").is_file()


def test_a_kill_in_the_middle_of_a_save_costs_nothing_but_the_steps_since_the_last(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def hanging(tensors: Any, metadata: Any) -> bytes:
        if '"step": 4,' in str(metadata):
            time.sleep(600)
        return real(tensors, metadata)

    real = safetensors.torch.save
    monkeypatch.setattr(safetensors.torch, "save", hanging)
    process = in_a_process(lambda: train(hard(tiny, out)))
    deadline = time.monotonic() + 120
    while not list((out / "checkpoints").glob(".step-000004.*")):
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    monkeypatch.undo()
    assert [path.name[:12] for path in sorted((out / "checkpoints").iterdir())] == [".step-000004", "step-000002."]
    train(hard(tiny, out), resume=True)
    assert_as_uninterrupted(out, uninterrupted)
    assert checkpoints(out) == ["step-000004", "step-000006", "step-000008"]


def test_a_training_that_was_complete_is_written_again_when_resumed(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path / "out", max_steps=2)
    before = adapter(train(recipe))
    (tmp_path / "out" / "ccm_adapter.safetensors").unlink()
    assert_same(adapter(train(recipe, resume=True)), before)
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2]


def test_float16_goes_on_as_if_it_had_not_been_interrupted(tiny: Tiny, tmp_path: Path) -> None:
    """The scaler leaves out steps whose gradients overflow; the optimizer's own count of steps is then another."""

    def recipe(name: str) -> Recipe:
        return tiny.recipe(tmp_path / name, stage="base", dtype="float16", max_steps=5, objective={"every": 40.0})

    whole = train(recipe("whole"))
    with pytest.raises(Killed):
        train(recipe("out"), report=at(3, stop))
    resumed = train(recipe("out"), resume=True)
    left_out = [record["step"] for record in records(whole) if record["grad_norm"] is None]
    assert 0 < len(left_out) < 5
    assert records(resumed) == records(whole)


@pytest.mark.parametrize("stage", ["base", "compress"])
def test_a_checkpoint_goes_on_in_another_clone_as_if_it_had_stayed(tiny: Tiny, tmp_path: Path, stage: Any) -> None:
    """Base and data are elsewhere there, under other names."""
    settings = {"stage": stage, "adapter": with_lora(ccm_config("concat"), dropout=0.2), "keep": 9}
    whole = train(tiny.recipe(tmp_path / "whole", **settings))
    elsewhere = Tiny(tmp_path / "there" / "model", tmp_path / "there" / "data.jsonl")
    shutil.copytree(tiny.base, elsewhere.base)
    shutil.copy(tiny.chats, elsewhere.chats)
    start = shutil.copy(whole / "checkpoints" / "step-000002.safetensors", tmp_path / "there" / "one file")
    recipe = elsewhere.recipe(tmp_path / "there" / "out", **settings)
    with pytest.raises(Killed):
        train(recipe, start=start, report=at(3, stop))
    out = train(recipe, resume=True)
    assert records(out) == records(whole)[2:]
    name = "ccm_adapter.safetensors" if stage == "compress" else "adapter_model.safetensors"
    assert_same(load_tensors(out / name)[0], load_tensors(whole / name)[0])
    assert checkpoints(out) == ["step-000002", "step-000004", "step-000006"]
    for other, message in (({"lr": 1e-3}, "has other settings: lr"), ({"batch_size": 2}, "batch_size")):
        with pytest.raises(ConfigError, match=message):
            train(replace(recipe, output_dir=str(tmp_path / "new"), **other), start=start)
    with pytest.raises(ConfigError, match="holds another run"):
        train(recipe, start=start)
    with pytest.raises(ConfigError, match="give one of the two"):
        train(recipe, start=start, resume=True)
    with pytest.raises(TrainingError, match="There is no file"):
        train(replace(recipe, output_dir=str(tmp_path / "new")), start="nowhere")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_of_version_1_goes_on(tmp_path: Path) -> None:
    """What its code trained without an interruption is beside it."""
    shutil.copytree(OLD, tmp_path / "old")
    recipe = load_recipe(tmp_path / "old" / "run" / "recipe.yaml")
    data = replace(recipe.data, path=str(tmp_path / "old" / "chats.jsonl"))
    recipe = replace(recipe, output_dir=str(tmp_path / "old" / "run"), data=data)
    train(recipe, resume=True)
    assert checkpoints(tmp_path / "old" / "run") == ["step-000002", "step-000004"]
    assert_same(adapter(tmp_path / "old" / "run"), load_tensors(OLD / "result.safetensors")[0], 1e-4)
    lines = (tmp_path / "old" / "chats.jsonl").read_text().replace("boats", "ships")
    (tmp_path / "old" / "chats.jsonl").write_text(lines)
    shutil.rmtree(tmp_path / "old" / "run")
    shutil.copytree(OLD / "run", tmp_path / "old" / "run")
    with pytest.raises(ConfigError, match="was made with another first batch"):
        train(recipe, resume=True)


def test_two_trainings_do_not_go_on_in_one_folder(tiny: Tiny, tmp_path: Path) -> None:
    recipe, said = tiny.recipe(tmp_path / "out"), []

    def second() -> None:
        for resume in (False, True):
            with pytest.raises(ConfigError, match=rf"{tmp_path / 'out'} is in use by another training"):
                train(recipe, resume=resume)
        training = begin(recipe)  # it has looked into the folder before
        with pytest.raises(ConfigError, match="is in use by another training"):
            training.go()
        said.append("refused")

    train(recipe, report=at(2, second))
    assert said == ["refused"]
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]
    late = run.Run(tmp_path / "late", recipe)
    late.check(resume=False)
    train(replace(recipe, output_dir=str(tmp_path / "late"), max_steps=1))
    with pytest.raises(ConfigError, match="late holds another run"), late.open():
        pass


def test_dropout_draws_anew_in_every_step_and_process(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(Training, "_gradients", lambda *_: seeds.append(torch.initial_seed()) or {"loss": 0.0})
    for process in (0, 1):
        training = begin(tiny.recipe())
        monkeypatch.setattr(type(training.accelerator), "process_index", process)
        for batch in itertools.islice(training.batches.since(0), 3):
            training._step(batch)
    assert len({*seeds}) == 6


def test_every_step_is_told_from_where_the_training_begins_or_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    steps: list[int] = []
    losses: list[float] = []

    def advance(step: int, stands: StepReport | None) -> None:
        steps.append(step)
        if stands is not None:
            assert stands.step == step
            assert stands.seconds_left >= 0
            losses.append(stands.losses["loss"])

    recipe = tiny.recipe(tmp_path / "out", log_every=4, save_every=2)
    with pytest.raises(Killed):
        train(recipe, report=at(4, stop), advance=advance)
    assert steps == [0, 1, 2, 3, 4]
    assert losses[-1] == records(tmp_path / "out")[-1]["loss"]
    train(recipe, resume=True, advance=advance)
    assert steps[5:] == [2, 3, 4, 5, 6]


# Failure -------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training_before_a_checkpoint_holds_it(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path / "out", max_steps=50, save_every=2)

    def poison() -> None:
        next(iter(training.stage.trained.values())).data.fill_(math.nan)

    training = begin(recipe, at(5, poison))
    with pytest.raises(TrainingError, match=r"The loss is nan at step 6.* Lower lr \(now 0.0"):
        training.go()
    assert checkpoints(tmp_path / "out") == ["step-000002", "step-000004"]
    assert not (tmp_path / "out" / "ccm_config.json").exists()
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 2, 3, 4, 5]
    resumed = begin(recipe)
    resumed._resume(resumed.run.previous())
    assert resumed.step == 4
    assert all(tensor.isfinite().all() for tensor in resumed.stage.trained.values())


def test_a_float16_loss_whose_gradients_never_are_finite_ends_the_training(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path / "out", stage="base", dtype="float16", max_steps=60, save_every=0)
    training = begin(recipe)
    for parameter in training.parameters:
        parameter.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(TrainingError, match="The gradients overflow at step 3"):
        training.go()


def test_a_rate_that_is_far_too_high_ends_the_training_early(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(tmp_path / "out", max_steps=50, lr=1e25)
    with pytest.raises(TrainingError, match="is (nan|inf) at step [2-5];"):
        train(recipe)


def test_gradients_that_are_not_finite_end_the_training_before_a_checkpoint_holds_them(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss may be finite still, as where a half-precision backward pass overflows."""
    real = Training._gradients

    def overflowing(training: Training, batch: Batch) -> dict[str, float]:
        losses = real(training, batch)
        if training.step == 3:
            training.parameters[0].grad.flatten()[0] = math.inf
        return losses

    monkeypatch.setattr(Training, "_gradients", overflowing)
    with pytest.raises(TrainingError, match="step 4"):
        train(tiny.recipe(tmp_path / "out", max_steps=4))
    assert checkpoints(tmp_path / "out") == ["step-000002"]


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


def test_a_full_disk_names_the_last_good_checkpoint_which_stays(
    tiny: Tiny, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, saved = tmp_path / "out", run.write_file, []

    def filling(path: Path, *args: Any) -> None:
        saved.append(path)
        real(path, *args) if len(saved) != 3 else full_disk()

    monkeypatch.setattr(run, "write_file", filling)
    with pytest.raises(
        TrainingError, match=r"step-000006.* cannot be written: .*No space left.*Resume from step-000004"
    ):
        train(hard(tiny, out))
    assert checkpoints(out) == ["step-000002", "step-000004"]
    train(hard(tiny, out), resume=True)
    assert_as_uninterrupted(out, uninterrupted)


def test_a_full_disk_at_the_first_checkpoint_says_that_there_is_none(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "write_file", full_disk)
    with pytest.raises(TrainingError, match="step-000002.* cannot be written.*There is no earlier checkpoint"):
        train(tiny.recipe(tmp_path / "out"))
    assert checkpoints(tmp_path / "out") == []


def test_a_full_disk_at_the_end_costs_the_result_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(tmp_path / "out", max_steps=2)
    monkeypatch.setattr(ccm.engine.adapter_files, "write_file", full_disk)
    with pytest.raises(TrainingError, match="The result cannot be saved.*fix the cause, then resume with resume=True"):
        train(recipe)
    monkeypatch.undo()
    assert (train(recipe, resume=True) / "ccm_config.json").is_file()


def test_a_log_that_cannot_be_written_is_an_error_of_ours(tiny: Tiny, tmp_path: Path) -> None:
    def spoil() -> None:
        (tmp_path / "out" / "log.jsonl").unlink()
        (tmp_path / "out" / "log.jsonl").mkdir()

    with pytest.raises(TrainingError, match=r"log\.jsonl"):
        train(tiny.recipe(tmp_path / "out"), report=at(1, spoil))


def test_malformed_data_is_refused_before_anything_is_written(tiny: Tiny, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n[]\n")
    recipe = tiny.recipe(tmp_path / "out", data=replace(tiny.recipe().data, path=str(bad)))
    with pytest.raises(DataError, match=r"(?s)bad\.jsonl, line 1: .*bad\.jsonl, line 2: "):
        train(recipe)
    assert not (tmp_path / "out").exists()


def test_no_output_directory_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match="for the result with output_dir=DIR"):
        train(tiny.recipe())
    with pytest.raises(ConfigError, match="cannot be the name of a file"):
        train(tiny.recipe(output_dir="a\0b"))
