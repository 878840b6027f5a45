"""Our package beside the authors' code: the same weights, the same text, the same results, CPU time of one thread each.

Their code needs libraries of 2023; it runs in a process of its own (:mod:`benchmarks.authors_side`), by an interpreter
that has them. Both sides work in turns, and must have computed the same before anything is timed.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here needs the network

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks import authors_side, models, streaming
from benchmarks.authors_side import Work
from benchmarks.common import Comparison, Options, Report, compare, describe_machine, report_comparisons
from ccm.cli.console import quiet
from ccm.core.config import CCMConfig
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import build_layout
from ccm.engine.sampling import tokens
from ccm.streams.stream import StreamingMemory

LONG, PROMPT, NEW, SAME = 32, 20, 20, 5e-5
SINK = replace(models.MERGE, sink=True)
STREAM = {  # the authors' names of the sizes
    "window_size": streaming.SETTINGS.cache_size,
    "comp_size": streaming.SETTINGS.span,
    "comp_cache_size": streaming.SETTINGS.memory_size,
    "sink_size": streaming.SETTINGS.sink,
}
SETTING = (
    "The same weights and text on both sides, dropout 0, CPU time of one thread each. The ratio is how many times as "
    "long the authors' code takes. A training step is forward and backward of "
    f"{models.ROWS} rows of {models.STEPS} steps, or 1 row of {LONG}, of {models.STEP_TOKENS} tokens, and a query of "
    f"{models.QUERY_TOKENS}, {models.TARGET_TOKENS} targets a row; what a data loader prepares is not timed. "
    f"Compressing: one step of {models.STEP_TOKENS} tokens after {models.STEPS}. Replies: greedy, after the memory of "
    f"{models.STEPS} steps and a prompt of {PROMPT} tokens, by the authors' `generate` beside the loop of our chats, "
    "or beside our `generate`. merge has a sink in both: without one the authors' function fails. Streaming: "
    f"{streaming.PIECE} tokens after {streaming.BEGUN}, which the authors read one at a time; we read them at once, "
    "or one at a time. Before anything is timed, both sides must agree: to "
    f"{SAME:g} in losses, gradients of the COMP embeddings, keys, values, likelihoods; exactly in tokens."
)


@dataclass(frozen=True)
class Task:
    """What both sides do.

    Attributes:
        run: the authors' way, a key of ``authors_side.WORK``.
        ours: makes our way, of a model and the task.
        config: of our model; the authors' is called by its rule, N and sink.
        least: how many times as long theirs should take; None where it is only shown.
        context: S steps of ids (B, T), as lists.
        text: ids (B, T') after them.
        new: tokens to generate.
        factor: by how much the rounds are multiplied.
    """

    run: str
    ours: Callable[[CCMModel, Task], Work]
    config: CCMConfig
    least: float | None
    context: list[list[list[int]]]
    text: list[list[int]]
    new: int = 0
    factor: int = 1

    @property
    def adapter(self) -> str:
        """The folder of the adapter."""
        return f"{self.config.rule}-{self.config.n_tok}"

    def for_them(self) -> dict[str, Any]:
        """As the authors' side reads it."""
        config, told = self.config, {"adapter": self.adapter, "targets": models.TARGET_TOKENS}
        told |= {name: getattr(self, name) for name in ("run", "context", "text", "new")}
        return told | {"rule": config.rule, "n_tok": config.n_tok, "sink": config.sink, "stream": STREAM}


def tasks() -> dict[str, Task]:
    """All of them, by the names of the table's rows."""
    found = {}
    for steps, limits in ((models.STEPS, (2.5, 3.5)), (LONG, (8.0, 8.0))):
        for name, config, least in zip(("concat N=2", "merge N=8"), (models.CONCAT, models.MERGE), limits, strict=True):
            samples = models.training_samples(models.ROWS if steps == models.STEPS else 1, steps)
            context = [[[*s.steps[number].ids] for s in samples] for number in range(steps)]
            text = [[*s.query.ids, s.query.targets[-1]] for s in samples]
            task = Task("train", _train, config, least, context, text, factor=2)
            found[f"training step, {name}, {steps} steps"] = task
    context = [models.random_ids(1, models.STEP_TOKENS, seed=number).tolist() for number in range(models.STEPS)]
    step, prompt = (models.random_ids(1, size, seed=99).tolist() for size in (models.STEP_TOKENS, PROMPT))
    for name, config in (("concat N=2", models.CONCAT), ("merge N=8", SINK)):
        found[f"compressing a step, {name}"] = Task("compress", _compress, config, 2.0, context, step, factor=12)
        for way, ours in (("chat", _chat), ("`generate`", _generate)):
            for label, new in (("first token", 1), (f"{NEW} tokens", NEW)):
                task = Task("generate", ours, config, 1.5, context, prompt, new, factor=12 if new == 1 else 6)
                found[f"{label}, {name}, {way}"] = task
    begun, text = (models.random_ids(1, size, seed=7).tolist() for size in (streaming.BEGUN, streaming.PIECE))
    for label, ours in (("at once", _stream), ("one token at a time", _stream_singly)):
        found[f"streaming, concat N=2, {label}"] = Task("stream", ours, models.CONCAT, None, [begun], text)
    return found


def _train(model: CCMModel, task: Task) -> Work:
    samples = models.training_samples(len(task.text), len(task.context))
    layout = build_layout(samples, model.config, model.rule, pad_id=0)
    model.train()

    def run() -> Tensor:
        model.zero_grad()
        loss = model(layout).loss
        assert isinstance(loss, Tensor)
        loss.backward()
        return loss

    return run, lambda loss: [loss.item(), *_gradient(model).flatten().tolist()]


def _gradient(model: CCMModel) -> Tensor:
    gradient = model.comp_embeddings.weight.grad
    assert gradient is not None
    return gradient


def _compress(model: CCMModel, task: Task) -> Work:
    memory, step = models.remember(model, len(task.context)), torch.tensor(task.text)

    @torch.no_grad()
    def run() -> Any:
        return model.compress(memory, step)

    return run, lambda after: torch.cat([x.flatten() for x in (*after.keys, *after.values)]).tolist()


def _chat(model: CCMModel, task: Task) -> Work:
    memory, prompt = models.remember(model, len(task.context)), torch.tensor(task.text)

    def run() -> list[int]:
        read = model.reader(memory, memory.cache())
        return [int(chosen) for chosen in islice(tokens(read(prompt), read, before=prompt), task.new)]

    return run, lambda ids: ids


def _generate(model: CCMModel, task: Task) -> Work:
    memory, prompt = models.remember(model, len(task.context)), torch.tensor(task.text)
    return lambda: model.generate(memory, prompt, max_new_tokens=task.new, do_sample=False), lambda ids: ids[0].tolist()


def _stream(model: CCMModel, task: Task, pieces: int = streaming.PIECE) -> Work:
    stream, text = StreamingMemory(model, streaming.SETTINGS), torch.tensor(task.text)

    @torch.no_grad()
    def read(of: StreamingMemory, ids: Tensor) -> Tensor:
        return torch.cat([of.nll(piece) for piece in ids.split(pieces, dim=1)], dim=1)

    read(stream, torch.tensor(task.context[0]))
    return lambda: read(stream.fork(), text), lambda nll: nll[0].tolist()


def _stream_singly(model: CCMModel, task: Task) -> Work:
    return _stream(model, task, pieces=1)


class Authors:
    """The process of the authors' code."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._process, self._log = process, log
        self.versions: dict[str, str] = self._read()

    def do(self, task: str, *, answer: bool = False) -> dict[str, Any]:
        """Have a task done once: its ``seconds``, and its ``answer`` where it is asked for."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"task": task, "answer": answer}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        self._log.seek(0)
        raise RuntimeError(f"The authors' side ended:\n{self._log.read()[-3000:]}")


@contextmanager
def _authors(
    checkout: Path, python: str, asked: Mapping[str, Task], built: Mapping[str, CCMModel]
) -> Iterator[Authors]:
    """Write what they need, start them, and end them."""
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryFile("w+") as log:
        folder = Path(made)
        models.stock_model().save_pretrained(folder / "base")
        for name, task in asked.items():
            _write_adapter(built[name], folder / task.adapter)
        (folder / "tasks.json").write_text(json.dumps({name: task.for_them() for name, task in asked.items()}))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)  # it would lead to our libraries
        with subprocess.Popen(
            [python, authors_side.__file__, str(checkout.resolve()), made],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=made,
        ) as process:
            try:
                yield Authors(process, log)
            finally:
                process.kill()


def _write_adapter(model: CCMModel, folder: Path) -> None:
    """Our adapter as the authors' code reads one."""
    lora = model.config.lora
    folder.mkdir(exist_ok=True)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": lora.r, "lora_alpha": lora.alpha}
    settings |= {"lora_dropout": 0.0, "bias": "none", "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    named = {
        f"base_model.model.{'model.embed_tokens.' * name.startswith('comp_')}{name}": tensor.detach()
        for name, tensor in model.adapter_tensors().items()
    }
    save_file(named, folder / "model.safetensors", {"format": "pt"})


def run(checkout: Path, python: str, options: Options, only: str = "") -> Report:
    """Compare, time, and report."""
    asked = {name: task for name, task in tasks().items() if only in name}
    built = {name: _model(task.config) for name, task in asked.items()}
    comparisons = []
    with _authors(checkout, python, asked, built) as authors:
        for name, task in asked.items():
            work = task.ours(built[name], task)
            _check(name, work, authors.do(name, answer=True)["answer"])
            comparisons.append(_compare(name, work, authors, task.least, options.times(task.factor)))
        versions = ", ".join(f"{library} {version}" for library, version in authors.versions.items())
    return report_comparisons("Beside the authors' code", f"{SETTING} Theirs: {versions}.", comparisons)


def _model(config: CCMConfig) -> CCMModel:
    torch.manual_seed(1)
    return models.with_random_adapter(models.ccm_model(config)).eval()


def _check(name: str, work: Work, theirs: Sequence[float]) -> None:
    run, numbers = work
    apart = [abs(a - b) for a, b in zip(numbers(run()), theirs, strict=True)]
    worst = math.inf if any(map(math.isnan, apart)) else max(apart)
    if worst > SAME:
        raise AssertionError(f"{name}: the two sides differ by {worst:.2g}.")
    print(f"{name}: {len(theirs):,} numbers, {worst:.1g} apart at most.", flush=True)


def _compare(name: str, work: Work, authors: Authors, least: float | None, options: Options) -> Comparison:
    taken: dict[str, list[float]] = {name: [], "ours": []}
    gc.collect()
    gc.disable()
    for number in range(options.warmup + options.rounds):
        theirs = authors.do(name)["seconds"]
        begin = time.process_time()
        work[0]()
        ours = time.process_time() - begin
        if number >= options.warmup:
            taken[name].append(theirs)
            taken["ours"].append(ours)
    gc.enable()
    return compare(taken, name, "ours", least=least)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run, print, and write the JSON file if one is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.authors", description=__doc__)
    parser.add_argument("--authors", type=Path, required=True, metavar="DIR", help="a checkout of their repository")
    parser.add_argument(
        "--python", required=True, help="an interpreter with transformers 4.29.2, peft 0.4.0, numpy below 2"
    )
    parser.add_argument("--rounds", type=int, default=6, help="of the longest (default %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows that have it in their names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there too")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    quiet()
    options, machine = Options(asked.rounds, warmup=1, clock="cpu"), describe_machine()
    print(f"{', '.join(f'{key} {value}' for key, value in machine.items())}; clock: {options.clock}.")
    print(f"Model: {models.MODEL}.\n", flush=True)
    report = run(asked.authors, asked.python, options, asked.only)
    print(f"\n{report.markdown()}")
    if asked.json:
        everything = {"machine": machine, "options": asdict(options), "results": report.data}
        asked.json.write_text(json.dumps(everything, indent=2) + "\n")


if __name__ == "__main__":
    main()
