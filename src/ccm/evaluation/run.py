"""One evaluation: a task at several depths, with several methods; with several processes, each scores its share."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

import ccm
from ccm.builtin import NAME
from ccm.checkpoint import find_adapter, read_config, with_rule
from ccm.data.questions import Question
from ccm.data.tasks import PAPER_TURNS, Task, TaskSettings, open_task
from ccm.errors import ConfigError, InputError
from ccm.evaluation.baselines import Baseline, make_baseline, shortened
from ccm.evaluation.metrics import CHOICES, accuracy, chosen, distances, loss, macro_accuracy, macro_f1, perplexity
from ccm.evaluation.results import NOT_FINITE, Kept, Measured, Result
from ccm.evaluation.scoring import Scored, Scorer, Seconds
from ccm.evaluation.texts import means
from ccm.loading import TURNS
from ccm.model import CCMModel
from ccm.quantization import Quantization
from ccm.rules import rule_class
from ccm.turns import make_turns

GIST_ONLINE = "gist-online"  # concat, each step compressed by itself, by an adapter that was trained for gist


@dataclass(frozen=True)
class Method:
    """A rule on an adapter, or a baseline under the rule "full".

    Attributes:
        name: what it is called in tables and pictures.
        rule: None is the adapter's own.
        adapter: its folder; None where the base needs none.
        recurrent: whether a step sees the memory while it is read; None is the adapter's own.
        baseline: what is kept of a context; None for what the rule says.
    """

    name: str
    rule: str | None
    adapter: str | None
    recurrent: bool | None = None
    baseline: Baseline | None = None


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and with what.

    Attributes:
        task: the task.
        model: the base; None is that of the adapters, or the built-in one.
        adapters: each is measured under its own rule.
        rules: each is measured as well, on the first adapter that it runs with; :data:`GIST_ONLINE` on one of gist.
        baselines: likewise, by name (``ccm.evaluation.baselines``).
        room: raw entries that a baseline keeps of a context; None for as many as concat makes of it: N a step and one.
        embedder: model of the baseline "embedding".
        depths: time steps; None for all of the task.
        most: questions of each task within it, at every depth, at most; 0 for all.
        batch: answers at a time.
        generate: most new tokens of replies, which are judged as texts; 0 for none, None for what the task has.
        n_tok: N, of adapters that have several.
        device: such as "cpu" or "cuda".
        dtype: of the base.
        quantize: how its weights are stored in fewer bits (:mod:`ccm.quantization`).
    """

    task: TaskSettings
    model: str | None = None
    adapters: Sequence[str] = ()
    rules: Sequence[str] = ("full", "none")
    baselines: Sequence[str] = ()
    room: int | None = None
    embedder: str | None = None
    depths: Sequence[int] | None = None
    most: int = 0
    batch: int = 16
    generate: int | None = None
    n_tok: int | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        if self.most < 0 or self.batch < 1:
            raise ConfigError(f"most is {self.most}, batch {self.batch}; they must be at least 0 and 1.")
        if self.generate is not None and self.generate < 0:
            raise ConfigError(f"generate is {self.generate}; it is a number of new tokens, or 0 for no replies.")
        if self.room is not None and self.room < 1:
            raise ConfigError(f"room is {self.room}; a baseline keeps at least 1 entry.")

    def new_tokens(self, task: Task) -> int:
        """Most new tokens of a reply; 0 where none is generated.

        Raises:
            ConfigError: when replies are asked for where there are none.
        """
        if task.replies is None and self.generate:
            raise ConfigError("This task has no replies that could be judged; leave --generate out.")
        if task.replies is None:
            return 0
        return task.replies.most if self.generate is None else self.generate

    def methods(self) -> list[Method]:
        """The rules first, in their order, then the baselines, and the adapters under their own rules.

        Raises:
            ConfigError: when there is no such rule or baseline, it runs with none of the adapters, something is named
                twice, or there is nothing to measure.
            AdapterError: when an adapter cannot be read.
        """
        found = [self._method(name) for name in self.rules]
        full = adapter_for(self.adapters, "full")
        found += [Method(name, "full", full, baseline=make_baseline(name, self.embedder)) for name in self.baselines]
        rules = [read_config(find_adapter(adapter)).rule for adapter in self.adapters]
        folders = [Path(adapter).name for adapter in self.adapters]
        for adapter, rule, folder in zip(self.adapters, rules, folders, strict=True):
            alone = rules.count(rule) == 1 and rule not in self.rules
            place = folder if folders.count(folder) == 1 else adapter
            found.append(Method(rule if alone else f"{rule} ({place})", None, adapter))
        if not found:
            raise ConfigError("There is nothing to measure; give --adapter DIR, --rule NAME or --baseline NAME.")
        names = [method.name for method in found]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{', '.join(twice)} is to be measured twice; name each rule and adapter once.")
        return found

    def _method(self, name: str) -> Method:
        if name != GIST_ONLINE:
            rule_class(name)
            return Method(name, name, adapter_for(self.adapters, name))
        gists = [adapter for adapter in self.adapters if read_config(find_adapter(adapter)).rule == "gist"]
        if not gists:
            raise ConfigError(f"{GIST_ONLINE} runs on an adapter that was trained for the rule 'gist'; name one.")
        return Method(name, "concat", gists[0], recurrent=False)


def adapter_for(adapters: Sequence[str], rule: str) -> str | None:
    """The first adapter that runs with that rule; None where there are none, for the built-in one, or none at all.

    Raises:
        ConfigError: when it runs with none of them.
        AdapterError: when one cannot be read.
    """
    if not adapters:
        return None
    for adapter in adapters:
        try:
            with_rule(read_config(find_adapter(adapter)), rule)
        except ConfigError as error:
            refused = error
        else:
            return adapter
    raise refused


def evaluate(
    *evaluations: Evaluation,
    output: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Result]:
    """Measure every method at every depth.

    Under ``torchrun``, every process calls this, and gets all results; the first one keeps them.

    Args:
        evaluations: what to measure.
        output: folder that keeps it; what it holds of the same task, base and adapter is not measured again.
        progress: called with what is measured, how many of the questions are done, and how many there are.

    Raises:
        ConfigError: when something cannot be measured as asked.
        AdapterError, DataError: when files are absent or damaged.
        InputError: when a question runs beyond the model's positions, or no likelihood at all is finite.
    """
    kept = Kept(output)
    results: list[Result] = []
    for evaluation in evaluations:
        for method in evaluation.methods():
            results += _measure(evaluation, method, kept, progress)
    if processes().is_main_process:
        kept.finish([result.line for result in results])
    return results


def processes() -> PartialState:
    """This process among those that torchrun started, or alone."""
    return PartialState(cpu=not torch.cuda.is_available())


def _measure(
    evaluation: Evaluation, method: Method, kept: Kept, progress: Callable[[str, int, int], None]
) -> Iterator[Result]:
    compresses = method.rule is None or rule_class(method.rule).compresses != "never"
    several, baseline = processes().num_processes > 1, method.baseline or Baseline()
    model, tokenizer = ccm.load(
        evaluation.model,
        method.adapter,
        rule=method.rule,
        recurrent=method.recurrent,
        n_tok=evaluation.n_tok if compresses or method.baseline else None,
        device=evaluation.device or (str(processes().device) if several else None),
        dtype=evaluation.dtype,
        quantize=evaluation.quantize,
    )
    stock = method.adapter is None and evaluation.model not in (None, NAME)
    silent = stock and not (Path(evaluation.model or "") / TURNS).is_file()  # nothing says how its turns are written
    form = PAPER_TURNS if silent else model.config.turns
    turns = make_turns(tokenizer, form)
    task = open_task(evaluation.task, turns)
    depths = [*dict.fromkeys(evaluation.depths or task.depths)]
    generate = evaluation.new_tokens(task)

    def asked(depth: int) -> Iterator[Question]:
        questions = _asked(task, depth, evaluation.most)
        if model.rule.forgets:
            return (question.alone() for question in questions)
        if (select := baseline.select) is None:
            return questions
        room = evaluation.room
        return (shortened(q, select, room or model.config.n_tok * len(q.steps) + 1, tokenizer) for q in questions)

    counts = _counts(task, depths, evaluation.most)
    for depth in depths:
        known = {"task": asdict(evaluation.task), "most": evaluation.most, "dtype": str(model.base.dtype)}
        origin = repr(model.origin) if compresses else model.base_id  # whatever adapter named the base
        identity = {**known, "rule": model.config.rule, "origin": origin, "form": asdict(form), "depth": depth}
        identity["asked"] = counts[depth].digest
        if generate:
            identity["generate"] = generate
        if evaluation.quantize:
            identity["quantize"] = evaluation.quantize
        if method.baseline is not None:
            identity |= {"room": evaluation.room, "n_tok": model.config.n_tok, "embedder": evaluation.embedder}
        result = kept.read(method.name, identity)
        if result is None:
            scorer = Scorer(model, batch=evaluation.batch, generate=generate, turns=turns, fold=baseline.fold)
            advance = partial(progress, f"{method.name}, step {depth}")
            scored, seconds = _scored(scorer, asked(depth), counts[depth].total, advance)
            result = _result(evaluation, method, model, depth, counts[depth].digest, task, scored, seconds)
            if processes().is_main_process:
                kept.write(result, identity, [one.reply for one in scored if one.reply])
        yield result


def _scored(
    scorer: Scorer, questions: Iterable[Question], total: int, progress: Callable[[int, int], None]
) -> tuple[list[Scored], Seconds]:
    """All questions in their order, and the time of all processes; of n processes, each scores every n-th."""
    state = processes()
    count, index = state.num_processes, state.process_index

    def tell(done: int) -> None:
        if state.is_main_process:
            progress(min(done * count, total), total)

    share = scorer.score(islice(questions, index, None, count), tell)
    own = [(number * count + index, one) for number, one in enumerate(share)]
    every = sorted(gather_object(own), key=lambda pair: pair[0])
    times = gather_object([scorer.seconds])
    return [one for _, one in every], Seconds(sum(t.write for t in times), sum(t.read for t in times))


@dataclass(frozen=True)
class _Count:
    """The questions at a step: how many, and a digest of their targets; what stands in view of them is not in it."""

    total: int
    digest: str


def _counts(task: Task, depths: Sequence[int], most: int) -> dict[int, _Count]:
    """The questions at each step.

    Raises:
        ConfigError: when there is none at some of them.
    """
    counts: dict[int, _Count] = {}
    for depth in depths:
        total, digest = 0, hashlib.sha256()
        for question in _asked(task, depth, most):
            total += 1
            digest.update(repr(([*question.alone().query], [[*a] for a in question.answers], question.right)).encode())
        counts[depth] = _Count(total, digest.hexdigest()[:16])
    if empty := [depth for depth in depths if not counts[depth].total]:
        others = ",".join(str(depth) for depth in depths if counts[depth].total)
        raise ConfigError(
            f"No question of the task is left at step {', '.join(map(str, empty))} (left out: {dict(task.skipped)})."
            + (f" Measure the others with --steps {others}." if others else "")
        )
    return counts


def _asked(task: Task, depth: int, most: int) -> Iterator[Question]:
    """The first ``most`` questions under each name, or all where it is 0; read anew at every call, never all held."""
    counts: Counter[str] = Counter()
    for question in task.questions(depth):
        counts[question.task] += 1
        if not most or counts[question.task] <= most:
            yield question
        else:
            task.noted[f"beyond the first {most}, not asked"] += 1


def _result(
    evaluation: Evaluation,
    method: Method,
    model: CCMModel,
    depth: int,
    asked: str,
    task: Task,
    scored: Sequence[Scored],
    seconds: Seconds,
) -> Result:
    whole = len(scored)
    scored = [one for one in scored if one.finite]
    if not scored:
        raise InputError(
            f"No likelihood under {method.name} at step {depth} is a finite number. The model overflows, or its "
            "weights are damaged; try --dtype float32."
        )
    rights = [one.answers[one.right] for one in scored]
    count = len(scored)
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in scored:
        groups[one.task].append(one)
    by_task = {name: _figures(task, group) for name, group in groups.items()}
    if task.measures == "perplexity":
        figures = _figures(task, scored)
    else:
        means_by = {choice: task.averaging if choice == task.measures else None for choice in CHOICES}
        figures = {choice: macro_accuracy(by_task, choice, averaging) for choice, averaging in means_by.items()}
        figures |= _by_class(task, scored)
    options = {k: v for k, v in evaluation.task.options.items() if v is not None}
    generate = evaluation.new_tokens(task)
    replied = task.replies.figure if task.replies and generate else None
    place = evaluation.model or (model.config.base_model if method.adapter else None) or NAME
    line = Measured(
        task={"name": evaluation.task.name, **options, **({"generate": generate} if generate else {})},
        method=method.name,
        rule=model.config.rule if method.baseline is None else method.name,
        n_tok=None if model.rule.compresses == "never" else model.config.n_tok,
        adapter=method.adapter,
        model=f"{place}, {evaluation.quantize}" if evaluation.quantize else place,
        data=evaluation.task.path,
        base=model.base_id,
        depth=depth,
        asked=asked,
        questions=count,
        skipped={**task.skipped, **({NOT_FINITE: whole - count} if whole > count else {})},
        noted=dict(task.noted),
        main=replied or task.measures,
        figures=figures,
        by_task=by_task,
        tokens=sum(right.tokens for right in rights),
        entries=sum(s.entries for s in scored) / count,
        kv_bytes=sum(s.kv_bytes for s in scored) / count,
        peak_entries=sum(s.peak for s in scored) / count,
        peak_bytes=sum(s.peak_bytes for s in scored) / count,
        write_seconds=seconds.write,
        read_seconds=seconds.read,
    )
    if replied:
        rows = [(one.reply.figures[replied], 1, evaluation.task.name) for one in scored if one.reply]
    elif task.measures == "perplexity":
        rows = [(right.by("acc_norm"), right.tokens, evaluation.task.name) for right in rights]
    else:
        rows = [(float(hit), 1, one.task) for one in scored if (hit := _hit(task, one)) is not None]
    values, weights, tasks = map(list, zip(*rows, strict=True))
    return Result(line, values, weights, tasks)


def _hit(task: Task, one: Scored) -> bool | None:
    """Whether the right answer was taken, by the accuracy that counts; None where the question does not count."""
    assert task.measures != "perplexity"
    choice = task.averaging.choice(one.task, task.measures)
    return None if choice is None else chosen(one.answers, choice) == one.right


def _figures(task: Task, scored: Sequence[Scored]) -> dict[str, float]:
    """Of questions that are counted together."""
    if task.measures == "perplexity":
        rights = [one.answers[one.right] for one in scored]
        found = {"perplexity": perplexity(rights), "loss": loss(rights)}
    else:
        found = {choice: accuracy([(one.answers, one.right) for one in scored], choice) for choice in CHOICES}
    return found | means([one.reply for one in scored if one.reply])


def _by_class(task: Task, scored: Sequence[Scored]) -> dict[str, float]:
    """What is to be said of answers that are the same classes everywhere; of numbers, by how much they are wrong."""
    if not task.classes or task.measures == "perplexity":
        return {}
    taken, right = [chosen(one.answers, task.measures) for one in scored], [one.right for one in scored]
    figures = {"f1": macro_f1(taken, right, len(task.classes))}
    if all(name.isdecimal() for name in task.classes):
        numbers = [float(name) for name in task.classes]
        figures["mae"], figures["rmse"] = distances([numbers[i] for i in taken], [numbers[i] for i in right])
    return figures
