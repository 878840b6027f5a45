"""One evaluation: a task at several depths, with several methods on one base; what is measured already is not again.

OUTPUT/  evaluation.json  scores/METHOD-DEPTH.json ...  results.jsonl  report.md  *.png
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ccm
from ccm.checkpoint import find_adapter, read_config, with_rule
from ccm.data.questions import Question
from ccm.data.tasks import Task, TaskSettings, open_task
from ccm.errors import ConfigError
from ccm.evaluation.metrics import CHOICES, accuracy, loss, macro_accuracy, perplexity
from ccm.evaluation.scoring import Scored, Scorer
from ccm.files import save_json, write_atomically
from ccm.turns import make_turns


@dataclass(frozen=True)
class Method:
    """A rule on an adapter.

    Attributes:
        name: what it is called in tables and pictures.
        rule: None is the adapter's own.
        adapter: its folder; None where the base needs none.
    """

    name: str
    rule: str | None
    adapter: str | None


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and with what.

    Attributes:
        task: the task.
        model: the base; None is that of the adapters, or the built-in one.
        adapters: each is measured under its own rule.
        rules: each is measured as well, on the first adapter that it runs with.
        depths: time steps; None for all of the task.
        most: questions of each task within it, at every depth, at most; 0 for all.
        batch: questions at a time.
        n_tok: N, of adapters that have several.
        device: such as "cpu" or "cuda".
        dtype: of the base.
    """

    task: TaskSettings
    model: str | None = None
    adapters: Sequence[str] = ()
    rules: Sequence[str] = ("full", "none")
    depths: Sequence[int] | None = None
    most: int = 0
    batch: int = 16
    n_tok: int | None = None
    device: str | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.most < 0 or self.batch < 1:
            raise ConfigError(f"most is {self.most}, batch {self.batch}; they must be at least 0 and 1.")

    def methods(self) -> list[Method]:
        """The rules first, in their order, then the adapters under their own.

        Raises:
            ConfigError: when a rule runs with none of the adapters, or there is nothing to measure.
            AdapterError: when an adapter cannot be read.
        """
        found = [Method(rule, rule, self._adapter_for(rule)) for rule in self.rules]
        configs = [read_config(find_adapter(adapter)) for adapter in self.adapters]
        for adapter, config in zip(self.adapters, configs, strict=True):
            alone = [c.rule for c in configs].count(config.rule) == 1 and config.rule not in self.rules
            found.append(Method(config.rule if alone else f"{config.rule} ({Path(adapter).name})", None, adapter))
        if not found:
            raise ConfigError("There is nothing to measure; give --adapter DIR or --rule NAME.")
        if len({method.name for method in found}) < len(found):
            raise ConfigError(f"Two methods have one name: {', '.join(m.name for m in found)}. Leave one of them out.")
        return found

    def _adapter_for(self, rule: str) -> str | None:
        if not self.adapters:
            return None  # the built-in one, or none where the rule compresses nothing
        for adapter in self.adapters:
            try:
                with_rule(read_config(find_adapter(adapter)), rule)
            except ConfigError as error:
                refused = error
            else:
                return adapter
        raise refused

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """One method at one depth: a line of the results.

    Attributes:
        method: its name.
        rule: of memory.
        n_tok: N.
        adapter: its place.
        depth: the time step.
        questions: how many were scored.
        skipped: how many were left out, by reason.
        figures: "perplexity" and "loss", or "acc", "acc_norm" and "acc_base" as shares, each the mean over tasks.
        by_task: the same figures of each task.
        tokens: of the right answers.
        entries: of the memory, the mean.
        kv_bytes: of these.
        peak_entries: in view at the most at a time, the mean over questions.
        peak_bytes: of these.
        write_seconds: for all memories.
        read_seconds: for all queries and answers.
    """

    method: str
    rule: str
    n_tok: int
    adapter: str | None
    depth: int
    questions: int
    skipped: dict[str, int]
    figures: dict[str, float]
    by_task: dict[str, dict[str, float]]
    tokens: int
    entries: float
    kv_bytes: float
    peak_entries: float
    peak_bytes: float
    write_seconds: float
    read_seconds: float


@dataclass(frozen=True)
class Result:
    """A measured line, and what stands behind it: of every question the right answer's likelihood and its tokens."""

    line: Measured
    totals: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


def evaluate(
    evaluation: Evaluation,
    output: Path | None = None,
    *,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Result]:
    """Measure every method at every depth.

    Args:
        evaluation: what to measure.
        output: folder that keeps it; what it holds of the same evaluation is not measured again.
        progress: called with what is measured, how many of the questions are done, and how many there are.

    Raises:
        ConfigError: when something cannot be measured as asked, or the folder holds another evaluation.
        AdapterError, DataError: when files are absent or damaged.
    """
    kept = Kept(output, evaluation)
    results: list[Result] = []
    for method in evaluation.methods():
        results += _measure(evaluation, method, kept, progress)
    kept.finish([result.line for result in results])
    return results


def _measure(
    evaluation: Evaluation, method: Method, kept: Kept, progress: Callable[[str, int, int], None]
) -> Iterator[Result]:
    model, tokenizer = ccm.load(
        evaluation.model,
        method.adapter,
        rule=method.rule,
        n_tok=evaluation.n_tok if method.rule is None else None,
        device=evaluation.device,
        dtype=evaluation.dtype,
    )
    task = open_task(evaluation.task, make_turns(tokenizer, model.config.turns))
    for depth in evaluation.depths or task.depths:
        result = kept.read(method, depth)
        if result is None:
            scorer = Scorer(model, batch=evaluation.batch)
            total = sum(1 for _ in _asked(task, depth, evaluation.most))
            name, scored = f"{method.name}, step {depth}", []
            for done, one in enumerate(scorer.score(_asked(task, depth, evaluation.most)), start=1):
                scored.append(one)
                if done % 100 == 0 or done == total:
                    progress(name, done, total)
            if not scored:
                raise ConfigError(f"No question of the task has {depth} steps: {dict(task.skipped)}.")
            result = _result(method, model.config.rule, model.config.n_tok, depth, task, scored, scorer)
            kept.write(result)
        yield result


def _asked(task: Task, depth: int, most: int) -> Iterator[Question]:
    """The first ``most`` questions under each name, or all where it is 0; read anew at every call, never all held."""
    counts: Counter[str] = Counter()
    for question in task.questions(depth):
        counts[question.task] += 1
        if not most or counts[question.task] <= most:
            yield question


def _result(
    method: Method, rule: str, n_tok: int, depth: int, task: Task, scored: Sequence[Scored], scorer: Scorer
) -> Result:
    rights = [one.answers[one.right] for one in scored]
    count = len(scored)
    by_task: dict[str, dict[str, float]] = {}
    if task.measures == "perplexity":
        figures = {"perplexity": perplexity(rights), "loss": loss(rights)}
    else:
        pairs = defaultdict(list)
        for one in scored:
            pairs[one.task].append((one.answers, one.right))
        by_task = {name: {c: accuracy(of_task, c) for c in CHOICES} for name, of_task in pairs.items()}
        figures = {choice: macro_accuracy(by_task, usual=choice) for choice in CHOICES}
    line = Measured(
        method=method.name,
        rule=rule,
        n_tok=n_tok,
        adapter=method.adapter,
        depth=depth,
        questions=count,
        skipped=dict(task.skipped),
        figures=figures,
        by_task=by_task,
        tokens=sum(right.tokens for right in rights),
        entries=sum(s.entries for s in scored) / count,
        kv_bytes=sum(s.kv_bytes for s in scored) / count,
        peak_entries=sum(s.peak for s in scored) / count,
        peak_bytes=sum(s.peak_bytes for s in scored) / count,
        write_seconds=scorer.seconds.write,
        read_seconds=scorer.seconds.read,
    )
    return Result(line, [right.total for right in rights], [right.tokens for right in rights])


class Kept:
    """The folder of an evaluation; where it is None, nothing is kept."""

    def __init__(self, folder: Path | None, evaluation: Evaluation) -> None:
        self.folder = folder
        if folder is None:
            return
        settings = json.loads(json.dumps(evaluation.to_dict()))
        path = folder / "evaluation.json"
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"The output {folder} is a file; name a folder.")
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            free = ("batch", "device", "adapters", "rules", "depths")
            if other := sorted(k for k in settings if k not in free and settings[k] != before.get(k)):
                raise ConfigError(
                    f"The folder {folder} holds an evaluation with another {', '.join(other)}; name another folder."
                )
        (folder / "scores").mkdir(parents=True, exist_ok=True)
        save_json(path, settings)

    def _place(self, method: str, depth: int) -> Path:
        assert self.folder is not None
        return self.folder / "scores" / f"{re.sub('[^A-Za-z0-9_.-]+', '-', method).strip('-')}-{depth}.json"

    def read(self, method: Method, depth: int) -> Result | None:
        """What was measured of it, if anything."""
        if self.folder is None or not (path := self._place(method.name, depth)).is_file():
            return None
        held = json.loads(path.read_text(encoding="utf-8"))
        return Result(Measured(**held["line"]), held["totals"], held["tokens"])

    def write(self, result: Result) -> None:
        """Keep a result."""
        if self.folder is not None:
            save_json(self._place(result.line.method, result.line.depth), asdict(result))

    def finish(self, lines: Sequence[Measured]) -> None:
        """Write all lines as JSON lines."""
        if self.folder is not None:
            text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
            write_atomically(self.folder / "results.jsonl", lambda p: p.write_text(text, encoding="utf-8"))
