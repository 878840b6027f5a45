"""Evaluations: tasks at several depths, by several methods. Of several processes, each scores its share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, InputError
from ccm.core.extras import needs
from ccm.core.rules import rule_class
from ccm.data.questions import Question
from ccm.data.tasks import PAPER_TURNS, TaskSettings, open_task
from ccm.evaluation.baselines import Baseline, make_baseline, shortened
from ccm.evaluation.control import ControlQuestions
from ccm.evaluation.figures import by_part, counting, figures, main_figure, values
from ccm.evaluation.methods import Method, Models, adapter_for, named_once, own_rules, read_configs, shipped_rules
from ccm.evaluation.question_set import QuestionSet
from ccm.evaluation.results import NOT_FINITE, SCORES, Measurement, Result, build_result
from ccm.evaluation.scoring import ScoredQuestion, Scorer, Seconds
from ccm.evaluation.settings import EvaluationSettings, Selection
from ccm.evaluation.store import ResultStore
from ccm.models.builtin import NAME
from ccm.models.load import TURNS, check_alone
from ccm.models.shipped import shipped

BOUNDS = ("full", "none")  # that are compared where no rule is named
PAIRS = 2  # the version of how questions are paired for the control: results of another one are measured anew
GIST_ONLINE = "gist-online"  # concat, each step compressed by itself, by an adapter that was trained for gist
ProgressReport = Callable[[str, int, int], None]


@dataclass(frozen=True)
class EvaluationMethod(Method):
    """A rule on an adapter, or a baseline under the rule "full".

    Attributes:
        recurrent: whether a step sees the memory while it is read; None is the adapter's own.
        baseline: what is kept of a context; None for what the rule says.
    """

    recurrent: bool | None = None
    baseline: Baseline | None = None

    @property
    def compresses(self) -> bool:
        """Whether the adapter plays a part."""
        return self.rule is None or rule_class(self.rule).compresses != "never"


def evaluation_methods(selection: Selection, embedder: str | None = None) -> list[EvaluationMethod]:
    """The rules of a selection in their order, then the baselines, and the adapters under their own rules.

    Args:
        selection: what to compare; where no rule is named, the bounds, and the rule of an adapter that ships for the
            model. A baseline runs on the first adapter of concat, or else on the first one.
        embedder: model of the baseline "embedding".

    Raises:
        ConfigError: when there is no such rule or baseline, a rule runs with none of the adapters, two methods have the
            same name, or there is no method.
        AdapterError: when an adapter cannot be read.
    """
    configs = read_configs(selection.adapters)
    rules = (*BOUNDS, *shipped_rules(selection)) if selection.rules is None else selection.rules
    methods = []
    for rule in rules:
        if rule == GIST_ONLINE:
            gist = next((adapter for adapter, config in configs.items() if config.rule == "gist"), None)
            if gist is None:
                raise ConfigError(f"{rule} runs on an adapter that was trained for the rule 'gist'; name one.")
            methods.append(EvaluationMethod(rule, "concat", gist, recurrent=False))
        else:
            if not (configs or shipped(model := selection.model or NAME)):
                check_alone(model, rule)
            rule_class(rule)
            methods.append(EvaluationMethod(rule, rule, adapter_for(configs, rule)))
    concat = {adapter: config for adapter, config in configs.items() if config.rule == "concat"}
    full = adapter_for(concat or configs, "full")
    for name in selection.baselines or ():
        methods.append(EvaluationMethod(name, "full", full, baseline=make_baseline(name, embedder)))
    return named_once(methods + [EvaluationMethod(**vars(method)) for method in own_rules(configs, rules)])


def evaluate(
    tasks: Sequence[TaskSettings],
    selection: Selection,
    settings: EvaluationSettings | None = None,
    progress: ProgressReport = lambda name, done, total: None,
) -> list[Result]:
    """Measure every method on every task, at every depth.

    Under ``torchrun``, every process calls this and gets all results; the first one keeps them.

    Args:
        tasks: what to measure, such as one task with several seeds.
        selection: the methods, their base, and the folder for the results. What the folder holds of the same task,
            base and adapter is not measured again.
        settings: how much of a task is asked, and how.
        progress: called with the part under way, how many questions of all methods and depths are done, and how many
            there are, 0 as long as that is not known; the questions of methods that were not begun are estimated.

    Returns:
        the results, task by task, method by method.

    Raises:
        ConfigError: when something cannot be measured as asked.
        AdapterError, DataError: when files are absent or damaged.
        InputError: when a question runs beyond the model's positions, or no likelihood at all is finite.
    """
    needs("bm25s", "matplotlib", "nltk", "rouge_score", extra="eval", what="An evaluation")
    settings = settings or EvaluationSettings()
    methods = evaluation_methods(selection, settings.embedder)
    if processes().num_processes > 1 and selection.device is None:
        selection = replace(selection, device=str(processes().device))  # each process has one of its own
    models, store = Models(selection), ResultStore(selection.output, SCORES, build_result)
    main = processes().is_main_process
    work = _Progress(len(tasks) * len(methods), progress if main else lambda name, done, total: None)
    opened: dict[object, QuestionSet] = {}
    found: dict[tuple[int, str], list[Result]] = {}
    for method in models.grouped(methods):
        n_tok = selection.n_tok if method.compresses or method.baseline else None
        work.tell(f"loading {method.name}", 0)
        model, tokenizer = models.load(method, recurrent=method.recurrent, n_tok=n_tok)
        turns = make_turns(tokenizer, _turn_format(selection, method, model))
        for number, task in enumerate(tasks):
            alike = number, tokenizer.name_or_path, model.base_id, turns.form
            if alike not in opened:
                opened[alike] = _open(task, settings, turns)
            run = _MethodRun(task, selection, settings, method, model, turns, opened[alike], work)
            found[number, method.name] = run.measure(store)
    results = [result for number in range(len(tasks)) for method in methods for result in found[number, method.name]]
    if main:
        store.write_lines("results.jsonl", (asdict(result.line) for result in results))
    return results


def processes() -> PartialState:
    """This process among those that torchrun started, or alone."""
    return PartialState(cpu=not torch.cuda.is_available())


class _Progress:
    """Counts the questions that are done, and all that there are. Kept results count for nothing.

    Args:
        parts: methods on tasks. One that was not begun is taken to ask as many questions as the latest that was.
        report: as of :func:`evaluate`.
    """

    def __init__(self, parts: int, report: ProgressReport) -> None:
        self._later, self._report = parts, report
        self._done = self._begun = self._latest = 0

    def begin(self, questions: int) -> None:
        """The next part asks so many questions."""
        self._later -= 1
        self._begun += questions
        self._latest = questions

    def tell(self, name: str, done: int) -> None:
        """So many questions are done since the latest call of :meth:`end`."""
        self._report(name, self._done + done, self._begun + self._later * self._latest)

    def end(self, questions: int, *, kept: bool = False) -> None:
        """So many questions are done, or were measured before."""
        if kept:
            self._begun -= questions
        else:
            self._done += questions


def _turn_format(selection: Selection, method: Method, model: Any) -> TurnFormat:
    """The turns of the adapter or base; the paper's for a base that says nothing of its turns."""
    base = selection.model or NAME
    says = method.adapter or shipped(base) or (Path(base) / TURNS).is_file()
    return model.config.turns if says or model.config.turns.template == "chat" else PAPER_TURNS


def _open(settings: TaskSettings, asked: EvaluationSettings, turns: Turns) -> QuestionSet:
    """The questions of a task, as those turns read them.

    Raises:
        ConfigError: when the task has no replies to judge, or a depth has no questions.
    """
    task = open_task(settings, turns)
    if task.replies is None and asked.generate:
        raise ConfigError("This task has no replies that could be judged; leave generate out.")
    if task.replies is not None and asked.generate is not None:
        task.replies = replace(task.replies, most=asked.generate)
    return QuestionSet(task, asked.depths, asked.most)


@dataclass(frozen=True)
class _MethodRun:
    """One method on one task."""

    task: TaskSettings
    selection: Selection
    settings: EvaluationSettings
    method: EvaluationMethod
    model: Any
    turns: Turns
    asked: QuestionSet
    work: _Progress

    def measure(self, store: ResultStore[Result]) -> list[Result]:
        """The results at every depth, measured unless they are kept."""
        self.work.begin((1 + self.control) * self.asked.total)
        results = []
        for depth, count in self.asked.counts.items():
            path = store.path(self.method.name, depth, self._identity(depth))
            result = store.read(path)
            if result is None:
                scored, seconds = self._score(depth)
                result = self._result(depth, scored, seconds)
                if processes().is_main_process:
                    replies = [asdict(one.reply) for one in scored if one.reply]
                    if path and replies:  # for people to read
                        store.write_lines(f"replies/{path.stem}.jsonl", replies)
                    store.write(path, result)
            else:
                self.work.end((1 + self.control) * count.total, kept=True)
            results.append(result)
        return results

    @property
    def control(self) -> bool:
        """Whether each query is also read with the memory of another conversation."""
        return self.settings.control and not self.model.rule.forgets

    @property
    def baseline(self) -> Baseline:
        """What is kept of a context; all of it where the method is no baseline."""
        return self.method.baseline or Baseline()

    def _identity(self, depth: int) -> dict[str, Any]:
        """All that a result depends on. Earlier versions used the same values, so that their results are found."""
        settings, model = self.settings, self.model
        identity = {
            "task": asdict(self.task),
            "most": settings.most,
            "dtype": str(model.base.dtype),
            "rule": model.config.rule,
            "origin": repr(model.origin) if self.method.compresses else model.base_id,  # whatever adapter named it
            "form": asdict(self.turns.form),
            "depth": depth,
            "asked": self.asked.counts[depth].digest,
        }
        optional = {
            "generate": self.asked.generate,
            "control": PAIRS * self.control,
            "quantize": self.selection.quantize,
        }
        identity |= {name: value for name, value in optional.items() if value}
        if self.method.baseline is not None:
            identity |= {"room": settings.room, "n_tok": model.config.n_tok, "embedder": settings.embedder}
        return identity

    def _score(self, depth: int) -> tuple[list[ScoredQuestion], Seconds]:
        """All questions at a depth, in their order, and the time that they took without the control."""
        total, name = self.asked.counts[depth].total, f"{self.method.name}, step {depth}"
        make = partial(Scorer, self.model, batch=self.settings.batch, fold=self.baseline.fold)
        self.work.tell(name, 0)
        scorer = make(generate=self.asked.generate, turns=self.turns)
        scored = _score_share(scorer, self._questions(depth), total, partial(self.work.tell, name))
        self.work.end(total)
        if self.control:
            control = ControlQuestions(self.asked.questions(depth))
            tell = partial(self.work.tell, f"{name}, other memories")
            others = iter(_score_share(make(), map(self._seen, control), total, tell))
            found = [next(others).answers[0].total if there else None for there in control.found]
            scored = [replace(one, other=other) for one, other in zip(scored, found, strict=True)]
            self.work.end(total)
        times = gather_object([scorer.seconds])
        return scored, Seconds(sum(time.write for time in times), sum(time.read for time in times))

    def _questions(self, depth: int) -> Iterator[Question]:
        """The questions at a depth, with as much of their contexts as the method reads."""
        return map(self._seen, self.asked.questions(depth))

    def _seen(self, question: Question) -> Question:
        if self.model.rule.forgets:
            return question.alone()
        if self.baseline.select is None:
            return question
        room = self.settings.room or self.model.config.n_tok * len(question.steps) + 1
        return shortened(question, self.baseline.select, room, self.turns.tokenizer)

    def _result(self, depth: int, every: Sequence[ScoredQuestion], seconds: Seconds) -> Result:
        method, model, task, count = self.method, self.model, self.asked.task, self.asked.counts[depth]
        scored = [one for one in every if one.finite]
        if not scored:
            raise InputError(
                f"No likelihood under {method.name} at step {depth} is a finite number. The model overflows, or its "
                "weights are damaged; try dtype='float32'."
            )
        broken, counted = len(every) - len(scored), counting(task, scored)
        options = {name: value for name, value in self.task.options.items() if value is not None}
        if self.asked.generate:
            options["generate"] = self.asked.generate
        base = self.selection.model or (model.config.base_model if method.adapter else None) or NAME
        line = Measurement(
            task={"name": self.task.name, **options},
            method=method.name,
            rule=model.config.rule if method.baseline is None else method.name,
            n_tok=None if model.rule.compresses == "never" else model.config.n_tok,
            adapter=method.adapter,
            model=f"{base}, {self.selection.quantize}" if self.selection.quantize else base,
            data=self.task.path,
            base=model.base_id,
            depth=depth,
            asked=count.digest,
            questions=len(scored),
            skipped={**count.skipped, **({NOT_FINITE: broken} if broken else {})},
            noted=count.noted,
            main=main_figure(task),
            figures=figures(task, scored),
            by_task=by_part(task, scored),
            tokens=sum(one.answers[one.right].tokens for one in counted),
            entries=fmean(one.entries for one in scored),
            kv_bytes=fmean(one.kv_bytes for one in scored),
            peak_entries=fmean(one.peak for one in scored),
            peak_bytes=fmean(one.peak_bytes for one in scored),
            write_seconds=seconds.write,
            read_seconds=seconds.read,
            vocab_size=model.vocab_size,
        )
        value, weight, part = map(list, zip(*values(task, scored, self.task.name), strict=True))
        nats = [one.answers[one.right].total for one in counted]
        return Result(line, value, weight, part, nats, [one.other for one in counted])


def _score_share(
    scorer: Scorer, questions: Iterable[Question], total: int, tell: Callable[[int], None]
) -> list[ScoredQuestion]:
    """All questions, scored, in their order; of n processes, each scores every n-th."""
    state = processes()
    count, index = state.num_processes, state.process_index

    def advance(done: int) -> None:
        tell(min(done * count, total))

    share = scorer.score(islice(questions, index, None, count), advance)
    own = [(number * count + index, one) for number, one in enumerate(share)]
    return [one for _, one in sorted(gather_object(own), key=lambda pair: pair[0])]
