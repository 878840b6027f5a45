"""``ccm evaluate``, a verb for each task, and ``ccm report``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ccm.cli.options import Adapters, BaseOptions, Lines, ModelOptions, Output, trained, unfold
from ccm.core.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Measure a model on a task.")

RuleNames = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        metavar="NAME",
        help="Rule to measure on the first adapter that it runs with; repeatable (full, none).",
    ),
]
Protocol = Annotated[
    Literal["paper", "fixed-target"],
    typer.Option(help="paper: each dialogue's first turns; fixed-target: the same targets at every step."),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline", metavar="NAME", help="At equal K/V: window (with sink), bm25, embedding or pool; repeatable."
    ),
]
Room = Annotated[int | None, typer.Option(help="Entries that a baseline keeps (as many as concat: N a step, and one).")]
Embedder = Annotated[str | None, typer.Option(help="Model of the baseline embedding: folder or Hub id.")]
Steps = Annotated[
    str | None, typer.Option("--steps", "--k", help="Time steps, such as 1,2,4; all of the task otherwise.")
]
Most = Annotated[
    int,
    typer.Option(
        help="Questions at most of each kind (a task of MetaICL, a category of LoCoMo), at every step; 0 is all."
    ),
]
QuestionBatch = Annotated[int, typer.Option("--batch", help="Answers at a time.")]
Generate = Annotated[
    int | None, typer.Option(help="Most new tokens of replies, which are judged as texts; 0 is none (the task's own).")
]

Control = Annotated[
    bool,
    typer.Option(help="Read each query with the memory of another conversation, too: how much of a gain is content."),
]


def report(
    folders: Annotated[list[Path], typer.Argument(help="What evaluations wrote as --output.")],
    output: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path("report"),
    mean: Annotated[bool, typer.Option("--mean", help="They are draws, such as seeds: mean and deviation.")] = False,
) -> None:
    """One page of several evaluations: a table and two pictures for each task."""
    from ccm.cli.commands.evaluate import run_report

    run_report(folders, output, draws=mean)


@app.callback()
def _evaluate() -> None:
    """Measure a model on a task."""


@app.command()
@unfold
def builtin(
    model: ModelOptions,
    steps: Annotated[int, typer.Option(help="User lines a dialogue; the last four ask.")] = 12,
    facts: Annotated[int, typer.Option(help="Facts that the others tell, 4 to 10.")] = 8,
    dialogues: Annotated[int, typer.Option(help="Fresh dialogues.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0,
    batch: Annotated[int, typer.Option(help="Conversations held at a time.")] = 50,
    before: Annotated[int, typer.Option(help="Lines of small talk that come first, without end.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Recall of told facts by the built-in model, replies generated freely."""
    from ccm.cli.commands.evaluate import run_builtin

    asked = {"steps": steps, "facts": facts, "dialogues": dialogues, "seed": seed, "batch": batch, "before": before}
    run_builtin(model.chosen(), **asked, as_json=json)


@dataclass(frozen=True)
class MethodOptions:
    """What is measured, and how much of it."""

    adapter: Adapters = None
    rule: RuleNames = None
    baseline: Baselines = None
    room: Room = None
    embedder: Embedder = None
    steps: Steps = None
    most: Most = 0
    batch: QuestionBatch = 16
    generate: Generate = None
    control: Control = True
    output: Output = None
    json: Lines = False


def _measure(
    methods: MethodOptions, base: BaseOptions, name: str, data: Path | None, options: dict[str, Any], **seeds: str
) -> None:
    """A task by name, files and options; as often as there are seeds of what is drawn."""
    from ccm.cli.commands.evaluate import run_tasks
    from ccm.data.tasks import TaskSettings
    from ccm.evaluation.run import Evaluation

    drawn = [{key: seed} for key, given in seeds.items() for seed in _numbers(given)] or [{}]
    evaluations = [
        Evaluation(
            TaskSettings(name, None if data is None else str(data), {**options, **seed}),
            adapters=[*map(trained, methods.adapter or ())],
            rules=("full", "none") if methods.rule is None else methods.rule,
            baselines=methods.baseline or (),
            room=methods.room,
            embedder=methods.embedder,
            depths=None if methods.steps is None else _numbers(methods.steps),
            most=methods.most,
            batch=methods.batch,
            generate=methods.generate,
            control=methods.control,
            **asdict(base),
        )
        for seed in drawn
    ]
    run_tasks(evaluations, methods.output, as_json=methods.json)


@app.command()
@unfold
def dialog(
    data: Annotated[Path, typer.Option(help="Folder of DailyDialog's files, as they are or gzipped.")],
    protocol: Protocol = "paper",
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Perplexity of a dialogue's last turn, by the turns before it: DailyDialog."""
    _measure(methods, base, "dialog", data, {"protocol": protocol})


@app.command()
@unfold
def soda(
    data: Annotated[Path, typer.Option(help="Folder of SODA's files: valid.parquet or valid.jsonl.")],
    protocol: Protocol = "paper",
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Perplexity of a dialogue's last turn, by the turns before it: SODA."""
    _measure(methods, base, "soda", data, {"protocol": protocol})


@app.command()
@unfold
def pg19(
    data: Annotated[Path, typer.Option(help="Folder of PG19's books, or of any texts: .txt or .txt.gz.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Of the folder, if it has them.")
    ] = "test",
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 128,
    deepest: Annotated[int, typer.Option(help="The last time step, in chunks.")] = 8,
    targets: Annotated[int, typer.Option(help="Chunks of a book whose perplexity is taken.")] = 10,
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Perplexity of chunks of books, by the latest chunks before them: PG19."""
    options = {"split": split, "chunk_tokens": chunk_tokens, "deepest": deepest, "targets": targets}
    _measure(methods, base, "pg19", data, options)


@app.command()
@unfold
def metaicl(
    data: Annotated[Path, typer.Option(help="Folder of MetaICL's tasks, a folder each.")],
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A task; repeatable (those of hr_to_lr.json, or all).")
    ] = None,
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    demonstrations: Annotated[
        str, typer.Option(help="Seeds in the names of the files of demonstrations, such as 100,13,21: a mean over all.")
    ] = "100",
    mean: Annotated[
        Literal["plain", "authors"], typer.Option(help="Over tasks; authors: with their script's two exceptions.")
    ] = "plain",
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Accuracy over the options of an example, after k demonstrations of its task: MetaICL."""
    options = {"max_length": max_length, "mean": mean, "tasks": task}
    _measure(methods, base, "metaicl", data, options, demonstrations=demonstrations)


@app.command()
@unfold
def lamp(
    data: Annotated[Path, typer.Option(help="Folder of LaMP's files of one task.")],
    number: Annotated[int, typer.Option(help="Of the task: 1 to 5, or 7.")] = 2,
    split: Annotated[Literal["train", "dev"], typer.Option(help="Of the files.")] = "dev",
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    seed: Annotated[str, typer.Option(help="Of the entries that are drawn; several give a mean over all.")] = "1337",
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Accuracy over the classes of an example, after k entries of a profile: LaMP. Perplexity of 4, 5 and 7."""
    _measure(methods, base, "lamp", data, {"number": number, "split": split, "max_length": max_length}, seed=seed)


@dataclass(frozen=True)
class AskingOptions:
    """What is asked of a long conversation, and where."""

    category: Annotated[
        list[str] | None,
        typer.Option(
            "--category", metavar="NAME", help="Questions, such as temporal or multi-session; repeatable (all)."
        ),
    ] = None
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query, and answer or reply.")] = 2048
    until: Annotated[
        Literal["evidence", "end"],
        typer.Option(help="Where a question is asked: after the session with its last evidence, or at the very end."),
    ] = "evidence"

    def options(self) -> dict[str, Any]:
        """As the tasks take them."""
        return {"categories": self.category, "max_length": self.max_length, "until": self.until}


@app.command()
@unfold
def locomo(
    data: Annotated[Path, typer.Option(help="LoCoMo's locomo10.json, plain or gzipped, or its folder.")],
    asking: AskingOptions,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """F1 of replies to questions on long conversations, by the latest turns: LoCoMo."""
    _measure(methods, base, "locomo", data, asking.options())


@app.command()
@unfold
def longmemeval(
    data: Annotated[Path, typer.Option(help="One of LongMemEval's files, plain or gzipped.")],
    asking: AskingOptions,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """F1 of replies to questions on a user's many sessions, by the latest turns: LongMemEval."""
    _measure(methods, base, "longmemeval", data, asking.options())


@app.command()
@unfold
def recall(
    dialogues: Annotated[int, typer.Option(help="Dialogues, each asked for four of its eight facts.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0,
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Facts told in ordinary words and asked for later: kinds of facts, wordings and values that no training has."""
    _measure(methods, base, "recall", None, {"dialogues": dialogues, "seed": seed})


@app.command()
@unfold
def custom(
    data: Annotated[Path, typer.Option(help="File or folder of your own: JSON lines or texts, as for training.")],
    max_steps: Annotated[int, typer.Option(help="Deepest time step; what is longer is cut into stretches.")] = 16,
    max_step_tokens: Annotated[int, typer.Option(help="Most tokens of a step.")] = 512,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step of plain text.")] = 128,
    *,
    methods: MethodOptions,
    base: BaseOptions,
) -> None:
    """Your own data: the last answer by the latest steps before it, its perplexity or, of choices, the accuracy."""
    options = {"max_steps": max_steps, "max_step_tokens": max_step_tokens, "chunk_tokens": chunk_tokens}
    _measure(methods, base, "custom", data, options)


def _numbers(given: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise ConfigError(f"{given}: write whole numbers with commas between them, such as 1,2,4.") from None
