"""One evaluation: a task at several depths, with several methods; with several processes, each scores its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ccm.chat.turns import Turns, make_turns
from ccm.core.errors import ConfigError, InputError
from ccm.core.extras import needs
from ccm.core.rules import rule_class
from ccm.data.questions import Question
from ccm.data.tasks import PAPER_TURNS, TaskSettings, open_task
from ccm.engine.decoder import CCMModel
from ccm.engine.quantization import Quantization
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.evaluation.asked import Asked
from ccm.evaluation.baselines import Baseline, make_baseline, shortened
from ccm.evaluation.control import Control
from ccm.evaluation.figures import by_part, counting, figures, main_figure, values
from ccm.evaluation.methods import Method, Models, adapter_for, named_once, own_rules, settings_of
from ccm.evaluation.results import NOT_FINITE, Kept, Measured, Result
from ccm.evaluation.scoring import Scored, Scorer, Seconds
from ccm.models.builtin import NAME
from ccm.models.load import TURNS, check_alone, shipped

GIST_ONLINE = "gist-online"  # concat, each step compressed by itself, by an adapter that was trained for gist


@dataclass(frozen=True)
class Compared(Method):
    """A rule on an adapter, or a baseline under the rule "full".

    Attributes:
        recurrent: whether a step sees the memory while it is read; None is the adapter's own.
        baseline: what is kept of a context; None for what the rule says.
    """

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
        baselines: on the first adapter of concat, without one likewise, by name (``ccm.evaluation.baselines``).
        room: raw entries that a baseline keeps of a context; None for as many as concat makes of it: N a step and one.
        embedder: model of the baseline "embedding".
        depths: time steps; None for all of the task.
        most: questions of each task within it, at every depth, at most; 0 for all.
        batch: answers at a time.
        generate: most new tokens of replies, which are judged as texts; 0 for none, None for what the task has.
        control: whether each query is read with the memory of another conversation, too.
        n_tok: N, of adapters that have several.
        device: such as "cpu" or "cuda".
        dtype: of the base.
        quantize: how its weights are stored in fewer bits (:mod:`ccm.engine.quantization`).
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
    control: bool = True
    n_tok: int | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Quantization | None = None

    def __post_init__(self) -> None:
        for name, least in (("most", 0), ("batch", 1)):
            if (value := getattr(self, name)) < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
        if self.generate is not None and self.generate < 0:
            raise ConfigError(f"generate is {self.generate}; it is a number of new tokens, or 0 for no replies.")
        if self.room is not None and self.room < 1:
            raise ConfigError(f"room is {self.room}; a baseline keeps at least 1 entry.")

    def methods(self) -> list[Compared]:
        """The rules first, in their order, then the baselines, and the adapters under their own rules.

        Raises:
            ConfigError: when there is no such rule or baseline, it runs with none of the adapters, something is named
                twice, or there is nothing to measure.
            AdapterError: when an adapter cannot be read.
        """
        found = [self._method(name) for name in self.rules]
        full = adapter_for(self._trained_for("concat") or self.adapters, "full")  # whose memory baselines equal
        found += [Compared(name, "full", full, baseline=make_baseline(name, self.embedder)) for name in self.baselines]
        found += [Compared(**vars(one)) for one in own_rules(self.adapters, self.rules)]
        return named_once(found)

    def _method(self, name: str) -> Compared:
        if name != GIST_ONLINE:
            if not (self.adapters or shipped(model := self.model or NAME)):
                check_alone(model, name)
            rule_class(name)
            return Compared(name, name, adapter_for(self.adapters, name))
        gists = self._trained_for("gist")
        if not gists:
            raise ConfigError(f"{GIST_ONLINE} runs on an adapter that was trained for the rule 'gist'; name one.")
        return Compared(name, "concat", gists[0], recurrent=False)

    def _trained_for(self, rule: str) -> list[str]:
        return [adapter for adapter in self.adapters if settings_of(adapter).rule == rule]


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
        progress: called with what is measured, how many of the questions of all methods and steps are done, and how
            many there are; those of methods that were not begun are guessed.

    Raises:
        ConfigError: when something cannot be measured as asked.
        AdapterError, DataError: when files are absent or damaged.
        InputError: when a question runs beyond the model's positions, or no likelihood at all is finite.
    """
    needs("bm25s", "matplotlib", "nltk", "rouge_score", extra="eval", what="An evaluation")
    kept = Kept(output)
    results: list[Result] = []
    methods = [evaluation.methods() for evaluation in evaluations]
    work = _Work(sum(map(len, methods)), progress)
    for evaluation, compared in zip(evaluations, methods, strict=True):
        opened: dict[object, Asked] = {}
        models = _models(evaluation)
        for method in compared:
            results += _measure(evaluation, method, models, opened, kept, work)
    if processes().is_main_process:
        kept.write_lines(asdict(result.line) for result in results)
    return results


class _Work:
    """How many questions are done, and how many there are of all methods and steps; what is kept already is no work.

    Args:
        methods: how many. One that was not begun is thought to ask as many questions as the latest that was.
        progress: as of :func:`evaluate`.
    """

    def __init__(self, methods: int, progress: Callable[[str, int, int], None]) -> None:
        self._later, self._progress = methods, progress
        self._done = self._begun = self._latest = 0

    def begin(self, questions: int) -> None:
        """A method asks so many."""
        self._later -= 1
        self._begun += questions
        self._latest = questions

    def tell(self, part: str, done: int, _total: int) -> None:
        """So many questions of a step are done."""
        self._progress(part, self._done + done, self._begun + self._later * self._latest)

    def end(self, questions: int) -> None:
        """All so many of a step are done."""
        self._done += questions

    def skip(self, questions: int) -> None:
        """A step of so many was measured before."""
        self._begun -= questions


def processes() -> PartialState:
    """This process among those that torchrun started, or alone."""
    return PartialState(cpu=not torch.cuda.is_available())


def _measure(
    evaluation: Evaluation,
    method: Compared,
    models: Models,
    opened: dict[object, Asked],
    kept: Kept,
    work: _Work,
) -> Iterator[Result]:
    """One method at every depth; ``opened`` holds the task, once for each base and form of turns."""
    n_tok = evaluation.n_tok if _compresses(method) or method.baseline else None
    model, tokenizer = models.load(method, recurrent=method.recurrent, n_tok=n_tok)
    stock = method.adapter is None and not shipped(evaluation.model or NAME)
    silent = stock and not (Path(evaluation.model or "") / TURNS).is_file()  # nothing says how its turns are written
    form = PAPER_TURNS if silent and model.config.turns.template != "chat" else model.config.turns
    turns = make_turns(tokenizer, form)
    alike = tokenizer.name_or_path, model.base_id, form
    if alike not in opened:
        opened[alike] = _open(evaluation, turns)
    asked, baseline = opened[alike], method.baseline or Baseline()
    generate = asked.task.replies.most if asked.task.replies else 0

    def questions(depth: int) -> Iterator[Question]:
        found = asked.questions(depth)
        if model.rule.forgets:
            return (question.alone() for question in found)
        if (select := baseline.select) is None:
            return found
        room = evaluation.room
        return (shortened(q, select, room or model.config.n_tok * len(q.steps) + 1, tokenizer) for q in found)

    control = evaluation.control and not model.rule.forgets
    work.begin((1 + control) * sum(count.total for count in asked.counts.values()))
    for depth, count in asked.counts.items():
        known = {"task": asdict(evaluation.task), "most": evaluation.most, "dtype": str(model.base.dtype)}
        origin = repr(model.origin) if _compresses(method) else model.base_id  # whatever adapter named the base
        identity = {**known, "rule": model.config.rule, "origin": origin, "form": asdict(form), "depth": depth}
        identity["asked"] = count.digest
        if generate:
            identity["generate"] = generate
        if control:
            identity["control"] = True
        if evaluation.quantize:
            identity["quantize"] = evaluation.quantize
        if method.baseline is not None:
            identity |= {"room": evaluation.room, "n_tok": model.config.n_tok, "embedder": evaluation.embedder}
        place = kept.place(method.name, depth, identity)
        result = kept.read(place)
        if result is None:
            scorer = Scorer(model, batch=evaluation.batch, generate=generate, turns=turns, fold=baseline.fold)
            advance = partial(work.tell, f"{method.name}, step {depth}")
            scored, seconds = _scored(scorer, questions(depth), count.total, advance)
            work.end(count.total)
            if control:
                advance = partial(work.tell, f"{method.name}, step {depth}, other memories")
                scored = _with_others(scorer, questions(depth), scored, advance)
                work.end(count.total)
            result = _result(evaluation, method, model, asked, depth, scored, seconds)
            if processes().is_main_process:
                kept.write(place, result, [one.reply for one in scored if one.reply])
        else:
            work.skip((1 + control) * count.total)
        yield result


def _compresses(method: Compared) -> bool:
    return method.rule is None or rule_class(method.rule).compresses != "never"


def _models(evaluation: Evaluation) -> Models:
    """Those of an evaluation; of several processes, each has them on a device of its own."""
    several = processes().num_processes > 1
    device = evaluation.device or (str(processes().device) if several else None)
    return Models(evaluation.model, device=device, dtype=evaluation.dtype, quantize=evaluation.quantize)


def _open(evaluation: Evaluation, turns: Turns) -> Asked:
    """The questions of an evaluation, as those turns read them.

    Raises:
        ConfigError: when replies are asked for where there are none, or none is asked at some of the steps.
    """
    task = open_task(evaluation.task, turns)
    if task.replies is None and evaluation.generate:
        raise ConfigError("This task has no replies that could be judged; leave generate out.")
    if task.replies is not None and evaluation.generate is not None:
        task.replies = replace(task.replies, most=evaluation.generate)
    return Asked(task, evaluation.depths, evaluation.most)


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


def _with_others(
    scorer: Scorer, questions: Iterable[Question], scored: Sequence[Scored], progress: Callable[[int, int], None]
) -> list[Scored]:
    """Scored questions, with what the memory of another conversation makes of each."""
    control = Control(questions)
    plain = Scorer(scorer.model, batch=scorer.batch, fold=scorer.fold)
    read, _ = _scored(plain, control, len(scored), progress)
    others = iter(read)
    found = [next(others).answers[0].total if there else None for there in control.found]
    return [replace(one, other=other) for one, other in zip(scored, found, strict=True)]


def _result(
    evaluation: Evaluation,
    method: Compared,
    model: CCMModel | CCMEncoderDecoder,
    asked: Asked,
    depth: int,
    scored: Sequence[Scored],
    seconds: Seconds,
) -> Result:
    whole, task, count = len(scored), asked.task, asked.counts[depth]
    scored = [one for one in scored if one.finite]
    if not scored:
        raise InputError(
            f"No likelihood under {method.name} at step {depth} is a finite number. The model overflows, or its "
            "weights are damaged; try dtype='float32'."
        )
    options = {k: v for k, v in evaluation.task.options.items() if v is not None}
    if task.replies and task.replies.most:
        options["generate"] = task.replies.most
    place = evaluation.model or (model.config.base_model if method.adapter else None) or NAME
    line = Measured(
        task={"name": evaluation.task.name, **options},
        method=method.name,
        rule=model.config.rule if method.baseline is None else method.name,
        n_tok=None if model.rule.compresses == "never" else model.config.n_tok,
        adapter=method.adapter,
        model=f"{place}, {evaluation.quantize}" if evaluation.quantize else place,
        data=evaluation.task.path,
        base=model.base_id,
        depth=depth,
        asked=count.digest,
        questions=len(scored),
        skipped={**count.skipped, **({NOT_FINITE: whole - len(scored)} if whole > len(scored) else {})},
        noted=count.noted,
        main=main_figure(task),
        figures=figures(task, scored),
        by_task=by_part(task, scored),
        tokens=sum(one.answers[one.right].tokens for one in counting(task, scored)),
        entries=fmean(one.entries for one in scored),
        kv_bytes=fmean(one.kv_bytes for one in scored),
        peak_entries=fmean(one.peak for one in scored),
        peak_bytes=fmean(one.peak_bytes for one in scored),
        write_seconds=seconds.write,
        read_seconds=seconds.read,
        vocab_size=model.vocab_size,
    )
    rows = values(task, scored, evaluation.task.name)
    counted = counting(task, scored)
    nats = [one.answers[one.right].total for one in counted]
    value, weight, part = map(list, zip(*rows, strict=True))
    return Result(line, value, weight, part, nats, [one.other for one in counted])
