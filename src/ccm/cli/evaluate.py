"""``ccm evaluate``, a verb for each task, and ``ccm report``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ccm.cli.options import Lines, ModelOptions, existing, numbers, unfold
from ccm.evaluation.settings import EvaluationSettings, Selection

app = typer.Typer(no_args_is_help=True, help="Measure a model on a task.")


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="What evaluations wrote as --output.", callback=existing("the output of an evaluation that ended")
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path("report"),
    mean: Annotated[bool, typer.Option("--mean", help="They are draws, such as seeds: mean and deviation.")] = False,
) -> None:
    """One page of several evaluations: a table and two pictures for each task."""
    from ccm.cli.commands.evaluate import run_report

    run_report(folders, output, draws=mean)


def data_of(what: str) -> Any:
    """The option that names the files of a task."""
    return typer.Option("--data", help=what, callback=existing())


@app.callback()
def _evaluate() -> None:
    """Measure a model on a task."""


@dataclass(frozen=True)
class RecallOptions:
    """Conversations that are held with the built-in model."""

    steps: Annotated[int, typer.Option(help="User lines a dialogue; the last four ask.")] = 12
    facts: Annotated[int, typer.Option(help="Facts that the others tell, 4 to 10.")] = 8
    dialogues: Annotated[int, typer.Option(help="Fresh dialogues.")] = 500
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0
    batch: Annotated[int, typer.Option(help="Conversations held at a time.")] = 50
    before: Annotated[int, typer.Option(help="Lines of small talk that come first, without end.")] = 0


@app.command()
@unfold
def builtin(
    model: ModelOptions,
    asked: RecallOptions,
    json: Lines = False,
) -> None:
    """Recall of told facts by the built-in model, replies generated freely."""
    from ccm.cli.commands.evaluate import run_builtin

    run_builtin(model.chosen(), asdict(asked), as_json=json)


@dataclass(frozen=True)
class TaskOptions:
    """What every task takes: the methods, and how much is asked."""

    selection: Selection
    settings: EvaluationSettings
    json: Lines = False

    def measure(self, name: str, path: Path | None, options: dict[str, Any], **seeds: str) -> None:
        """Measure a task by its name, files and options, once for each seed of what is drawn."""
        from ccm.cli.commands.evaluate import run_tasks
        from ccm.data.tasks import TaskSettings

        drawn = [{key: seed} for key, given in seeds.items() for seed in numbers(given) or ()] or [{}]
        tasks = [TaskSettings(name, None if path is None else str(path), {**options, **seed}) for seed in drawn]
        run_tasks(tasks, self.selection, self.settings, as_json=self.json)


Protocol = Annotated[
    Literal["paper", "fixed-target"],
    typer.Option(help="paper: each dialogue's first turns; fixed-target: the same targets at every step."),
]


@app.command()
@unfold
def dialog(
    path: Annotated[Path, data_of("Folder of DailyDialog's files, as they are or gzipped.")],
    protocol: Protocol = "paper",
    *,
    asked: TaskOptions,
) -> None:
    """Perplexity of a dialogue's last turn, by the turns before it: DailyDialog."""
    asked.measure("dialog", path, {"protocol": protocol})


@app.command()
@unfold
def soda(
    path: Annotated[Path, data_of("Folder of SODA's files: valid.parquet or valid.jsonl.")],
    protocol: Protocol = "paper",
    *,
    asked: TaskOptions,
) -> None:
    """Perplexity of a dialogue's last turn, by the turns before it: SODA."""
    asked.measure("soda", path, {"protocol": protocol})


@app.command()
@unfold
def pg19(
    path: Annotated[
        Path,
        data_of("Folder of PG19's books, or of any texts: .txt or .txt.gz."),
    ],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Of the folder, if it has them.")
    ] = "test",
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 128,
    deepest: Annotated[int, typer.Option(help="The last time step, in chunks.")] = 8,
    targets: Annotated[int, typer.Option(help="Chunks of a book whose perplexity is taken.")] = 10,
    *,
    asked: TaskOptions,
) -> None:
    """Perplexity of chunks of books, by the latest chunks before them: PG19."""
    options = {"split": split, "chunk_tokens": chunk_tokens, "deepest": deepest, "targets": targets}
    asked.measure("pg19", path, options)


@app.command()
@unfold
def metaicl(
    path: Annotated[Path, data_of("Folder of MetaICL's tasks, a folder each.")],
    tasks: Annotated[
        list[str] | None,
        typer.Option("--task", metavar="NAME", help="A task; repeatable (those of hr_to_lr.json, or all)."),
    ] = None,
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    demonstrations: Annotated[
        str, typer.Option(help="Seeds in the names of the files of demonstrations, such as 100,13,21: a mean over all.")
    ] = "100",
    mean: Annotated[
        Literal["plain", "authors"], typer.Option(help="Over tasks; authors: with their script's two exceptions.")
    ] = "plain",
    *,
    asked: TaskOptions,
) -> None:
    """Accuracy over the options of an example, after k demonstrations of its task: MetaICL."""
    options = {"max_length": max_length, "mean": mean, "tasks": tasks}
    asked.measure("metaicl", path, options, demonstrations=demonstrations)


@app.command()
@unfold
def lamp(
    path: Annotated[Path, data_of("Folder of LaMP's files of one task.")],
    number: Annotated[int, typer.Option(help="Of the task: 1 to 5, or 7.")] = 2,
    split: Annotated[Literal["train", "dev"], typer.Option(help="Of the files.")] = "dev",
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    seed: Annotated[str, typer.Option(help="Of the entries that are drawn; several give a mean over all.")] = "1337",
    *,
    asked: TaskOptions,
) -> None:
    """Accuracy over the classes of an example, after k entries of a profile: LaMP. Perplexity of 4, 5 and 7."""
    asked.measure("lamp", path, {"number": number, "split": split, "max_length": max_length}, seed=seed)


@dataclass(frozen=True)
class LongTermOptions:
    """What is asked of a long conversation, and where."""

    categories: Annotated[
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


@app.command()
@unfold
def locomo(
    path: Annotated[Path, data_of("LoCoMo's locomo10.json, plain or gzipped, or its folder.")],
    options: LongTermOptions,
    asked: TaskOptions,
) -> None:
    """F1 of replies to questions on long conversations, by the latest turns: LoCoMo."""
    asked.measure("locomo", path, asdict(options))


@app.command()
@unfold
def longmemeval(
    path: Annotated[Path, data_of("One of LongMemEval's files, plain or gzipped.")],
    options: LongTermOptions,
    asked: TaskOptions,
) -> None:
    """F1 of replies to questions on a user's many sessions, by the latest turns: LongMemEval."""
    asked.measure("longmemeval", path, asdict(options))


@app.command()
@unfold
def recall(
    dialogues: Annotated[int, typer.Option(help="Dialogues, each asked for four of its eight facts.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0,
    known: Annotated[bool, typer.Option("--known", help="Kinds, wordings and values that training has.")] = False,
    others: Annotated[float, typer.Option(help="Share of the values and subjects with any words instead.")] = 0.0,
    *,
    asked: TaskOptions,
) -> None:
    """Facts told in ordinary words, asked for later: kinds, wordings and values that no training has, or known ones."""
    asked.measure("recall", None, {"dialogues": dialogues, "seed": seed, "known": known, "others": others})


@app.command()
@unfold
def custom(
    path: Annotated[
        Path,
        data_of("File or folder of your own: JSON lines or texts, as for training."),
    ],
    max_steps: Annotated[int, typer.Option(help="Deepest time step; what is longer is cut into stretches.")] = 16,
    max_step_tokens: Annotated[int, typer.Option(help="Most tokens of a step.")] = 512,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step of plain text.")] = 128,
    *,
    asked: TaskOptions,
) -> None:
    """Your own data: the last answer by the latest steps before it, its perplexity or, of choices, the accuracy."""
    options = {"max_steps": max_steps, "max_step_tokens": max_step_tokens, "chunk_tokens": chunk_tokens}
    asked.measure("custom", path, options)
