"""The command ``ccm``: a table of verbs. What a verb does stands in ``ccm.commands`` and is imported when called."""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from functools import wraps
from json import loads
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ccm.errors import CCMError, ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
evaluate = typer.Typer(no_args_is_help=True, help="Measure a model on a task.")
app.add_typer(evaluate, name="evaluate")
data = typer.Typer(no_args_is_help=True, help="The data sets: where they are, and how to get them.")
app.add_typer(data, name="data")
adapters = typer.Typer(no_args_is_help=True, help="Adapters: the authors', and yours for others.")
app.add_typer(adapters, name="adapters")

Model = Annotated[
    str | None,
    typer.Option(help="Base model: folder, Hub id, short name, or 'builtin' (the default, without --adapter)."),
]
Adapter = Annotated[str | None, typer.Option(help="Compression adapter: folder or Hub id.")]
RuleName = Annotated[
    str | None, typer.Option(help="Rule of memory: concat, gate, merge, full, none ... (the adapter's own).")
]
RuleOptions = Annotated[
    list[str] | None, typer.Option("--rule-option", help="NAME=VALUE, such as weight=0.3 for ema; repeatable.")
]
NTok = Annotated[int | None, typer.Option(help="COMP tokens a step that the adapter must have.")]
Recurrent = Annotated[
    bool | None,
    typer.Option(
        "--recurrent/--no-recurrent", help="Whether a step sees the memory while it is read (the adapter's own)."
    ),
]
Adapters = Annotated[
    list[str] | None, typer.Option("--adapter", help="Compression adapter, under its own rule; repeatable.")
]
RuleNames = Annotated[
    list[str] | None,
    typer.Option("--rule", help="Rule to measure on the first adapter that it runs with; repeatable (full, none)."),
]
Protocol = Annotated[
    Literal["paper", "fixed-target"],
    typer.Option(help="paper: each dialogue's first turns; fixed-target: the same targets at every step."),
]
Baselines = Annotated[
    list[str] | None,
    typer.Option("--baseline", help="At equal K/V: window (with sink), bm25, embedding or pool; repeatable."),
]
Room = Annotated[int | None, typer.Option(help="Entries that a baseline keeps (as many as concat: N a step, and one).")]
Embedder = Annotated[str | None, typer.Option(help="Model of the baseline embedding: folder or Hub id.")]
Steps = Annotated[
    str | None, typer.Option("--steps", "--k", help="Time steps, such as 1,2,4; all of the task otherwise.")
]
Most = Annotated[int, typer.Option(help="Questions a step and task at most; 0 is all.")]
QuestionBatch = Annotated[int, typer.Option("--batch", help="Answers at a time.")]
Generate = Annotated[
    int | None, typer.Option(help="Most new tokens of replies, which are judged as texts; 0 is none (the task's own).")
]
Categories = Annotated[
    list[str] | None, typer.Option("--category", help="Questions, such as temporal or multi-session; repeatable (all).")
]
MaxLength = Annotated[int, typer.Option(help="Most tokens of context, query and answer.")]
Until = Annotated[
    Literal["evidence", "end"],
    typer.Option(help="Where a question is asked: after the session with its last evidence, or at the very end."),
]
Output = Annotated[Path | None, typer.Option(help="Folder for results, report and pictures; goes on where it was.")]
Lines = Annotated[bool, typer.Option("--json", help="One JSON object a line on standard output.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu or cuda:0.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Quantize = Annotated[
    Literal["int8", "8bit", "4bit"] | None,
    typer.Option(help="Store the base's weights in fewer bits: by torchao, or by bitsandbytes (8bit, 4bit)."),
]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compressed context memory for language models."""
    if version:
        from ccm import __version__

        print(f"ccm {__version__}")
        raise typer.Exit


@app.command()
def chat(
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    load: Annotated[Path | None, typer.Option(help="Go on from a saved memory.")] = None,
    window: Annotated[
        int | None,
        typer.Option(
            help="Talk without end in so many entries: memory, at most half of them, and recent text as it is."
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages repetition.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply, in tokens.")] = 256,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a turn on standard output.")] = False,
) -> None:
    """Talk to a model whose past is a compressed memory. /help lists what else you can say.

    Not on a terminal: one user turn a line on standard input, one reply a line on standard output.
    """
    from ccm.commands.chat import run
    from ccm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, repetition_penalty, max_new_tokens, seed)
    choice = _choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    raise typer.Exit(run(choice, sampling, load, window, as_json=json))


@app.command()
def demo(
    file: Annotated[Path | None, typer.Option(help="Your own example: turns, a question, the expected answer.")] = None,
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Answer one question in one parallel pass, from the memory built step by step, and without context."""
    from ccm.commands.demo import run

    choice = _choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    run(choice, file)


@app.command()
def writes(
    file: Annotated[Path | None, typer.Option(help="Your own example, as of the demo.")] = None,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("writes.png"),
    model: Model = None,
    adapter: Adapter = None,
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
) -> None:
    """Draw which step wrote which entry of a memory that mixes its steps."""
    from ccm.commands.writes import run

    if rule is None and adapter is None:
        rule = "gate"  # of the built-in adapters the one that mixes
    choice = _choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    run(choice, file, output)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe in the package, or a YAML file.")],
    changes: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over the recipe; repeatable.")] = None,
    stage: Annotated[
        Literal["base", "compress"] | None,
        typer.Option(help="base (a plain LoRA with full context) or compress (the recipe's own)."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained, and end.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in output_dir.")] = False,
    wandb: Annotated[bool, typer.Option("--wandb", help="Log to Weights & Biases, too.")] = False,
) -> None:
    """Train an adapter, or the model under it. With several processes: torchrun --no-python ccm train ..."""
    from ccm.commands.train import run

    run(recipe, [*(changes or ()), *(["wandb=true"] if wandb else ())], stage, dry_run=dry_run, resume=resume)


@app.command()
def stream(
    files: Annotated[list[Path], typer.Argument(help="Texts, as they are or gzipped, or folders of such.")],
    adapter: Adapters = None,
    rule: Annotated[
        list[str] | None,
        typer.Option("--rule", help="Rule to read with, on the first adapter that it runs with; repeatable."),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            help="With a sink: window (always full, the default) or blocks (drops what is compressed); repeatable."
        ),
    ] = None,
    cache_size: Annotated[int, typer.Option(help="Most entries: sink, memory and recent text.")] = 160,
    span: Annotated[int, typer.Option(help="Tokens that are compressed at a time.")] = 64,
    memory_size: Annotated[int, typer.Option(help="Most entries of the memory.")] = 8,
    sink: Annotated[int, typer.Option(help="First tokens that stay in view.")] = 1,
    tolerance: Annotated[
        int, typer.Option(help="Compress at sentence ends, too, so many tokens before or after a span's end.")
    ] = 0,
    offset: Annotated[int, typer.Option(help="First token that is read (9000 in the authors' run).")] = 0,
    tokens: Annotated[int, typer.Option(help="Most tokens that are read; 0 is all (16000 in theirs).")] = 0,
    generate: Annotated[int, typer.Option(help="Go on after the end of a text, by so many tokens.")] = 0,
    temperature: Annotated[float, typer.Option(help="Of what is generated; 0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0 is all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample from the likeliest tokens of this probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of the sampling.")] = None,
    output: Output = None,
    model: Model = None,
    n_tok: NTok = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    json: Lines = False,
) -> None:
    """Read texts of any length in a cache of fixed size, by several methods: perplexity along the text."""
    from ccm.commands.stream import run
    from ccm.evaluation.streams import StreamRun
    from ccm.evictions import StreamSettings
    from ccm.sampling import Sampling

    sampling = Sampling(temperature, top_k, top_p, seed=seed)
    asked = StreamRun(
        files,
        model=model,
        adapters=adapter or (),
        rules=rule or (),
        baselines=("window",) if baseline is None else baseline,
        settings=StreamSettings(cache_size, span, memory_size, sink, tolerance=tolerance),
        offset=offset,
        tokens=tokens,
        generate=generate,
        choose=sampling.choose,
        n_tok=n_tok,
        device=device,
        dtype=dtype,
        quantize=quantize,
    )
    run(asked, output, seed, as_json=json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="What evaluations wrote as --output.")],
    output: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path("report"),
    mean: Annotated[bool, typer.Option("--mean", help="They are draws, such as seeds: mean and deviation.")] = False,
) -> None:
    """One page of several evaluations: a table and two pictures for each task."""
    from ccm.commands.evaluate import run_report

    run_report(folders, output, draws=mean)


@data.command("list")
def list_data(
    verbose: Annotated[bool, typer.Option("--verbose", help="Addresses, papers, checksums, and the folders.")] = False,
    json: Lines = False,
) -> None:
    """The data sets that can be prepared."""
    from ccm.commands.data import run_list

    run_list(verbose=verbose, as_json=json)


@data.command("prepare")
def prepare_data(
    name: Annotated[str, typer.Argument(help="Of the data set; ccm data list has them.")],
    source: Annotated[Path | None, typer.Option(help="Folder of the publisher's files; nothing is downloaded.")] = None,
    output: Annotated[Path | None, typer.Option(help="The folder to make (data/NAME).")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Pattern of files in that folder, such as 'test/*'; repeatable.")
    ] = None,
) -> None:
    """Bring a data set into the folder that training and evaluation read."""
    from ccm.commands.data import run_prepare

    run_prepare(name, source, output, only or ())


@adapters.command("list")
def list_adapters(
    folder: Annotated[Path | None, typer.Argument(help="Where to look for adapters (the published ones).")] = None,
    json: Lines = False,
) -> None:
    """The adapters that the authors published, or those in a folder."""
    from ccm.commands.adapters import run_list

    run_list(folder, as_json=json)


@adapters.command("show")
def show_adapter(
    adapter: Annotated[str, typer.Argument(help="Folder, the authors' too, or Hub id.")],
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """What an adapter is: its rule, N, LoRA, turns, and base."""
    from ccm.commands.adapters import run_show

    run_show(adapter, as_json=json)


@adapters.command("import")
def import_adapter(
    folder: Annotated[Path, typer.Argument(help="One of the authors' folders: adapter_config.json and weights.")],
    output: Annotated[Path, typer.Option(help="The folder to make.")],
    base: Annotated[
        str | None,
        typer.Option(help="Its base: folder, Hub id or short name. It is loaded, and the adapter bound to it."),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="concat, merge, gist or pos_control (as the folder's name says, or concat).")
    ] = None,
    recurrent: Recurrent = None,
    sink: Annotated[
        bool | None, typer.Option("--sink/--no-sink", help="Whether the first token stays in view.")
    ] = None,
    trained_on: Annotated[
        str | None, typer.Option(help="Data set, which says how turns are written: unified, dialog, metaicl ...")
    ] = None,
    base_adapter: Annotated[
        str | None, typer.Option(help="Folder of the stage-1 adapter under it (beside it); none: the base has it in.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing, and replace what is there.")] = False,
) -> None:
    """Turn one of the authors' adapters into one of ours. What it has to assume, it says."""
    from ccm.commands.adapters import run_import
    from ccm.importing import Choices

    run_import(folder, output, Choices(base, rule, recurrent, sink, trained_on, base_adapter), yes=yes)


@adapters.command("download")
def download_adapters(
    name: Annotated[str, typer.Argument(help="unified, pretrain, metaicl, dialog or lamp.")],
    output: Annotated[Path | None, typer.Option(help="The folder to make (adapters/NAME).")] = None,
) -> None:
    """Fetch the authors' adapters from their public drive, to be imported. Needs gdown."""
    from ccm.commands.adapters import run_download

    run_download(name, output)


@adapters.command("merge")
def merge_adapter(
    adapter: Annotated[str, typer.Argument(help="An adapter of ours with a stage-1 adapter under it.")],
    output: Annotated[Path, typer.Option(help="The folder to make: the adapter, and its base as a whole model.")],
    base: Annotated[str | None, typer.Option(help="Its base, where it is not where the adapter says.")] = None,
) -> None:
    """Merge the stage-1 adapter under an adapter into its base, which can be quantized then."""
    from ccm.commands.adapters import run_merge

    run_merge(adapter, output, base)


@adapters.command("push")
def push_adapter(
    folder: Annotated[Path, typer.Argument(help="An adapter of ours.")],
    name: Annotated[str, typer.Argument(help="The repository on the Hub, such as you/name.")],
    base: Annotated[str | None, typer.Option(help="Hub id of its base, where the adapter names a folder.")] = None,
    results: Annotated[
        list[Path] | None, typer.Option(help="What an evaluation wrote as --output, for the card; repeatable.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="A private repository, where it is new.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card, and send nothing.")] = False,
) -> None:
    """Send an adapter to the Hub, with a model card made from its settings and results."""
    from ccm.commands.adapters import run_push

    run_push(folder, name, base, results or (), private=private, dry_run=dry_run)


@evaluate.callback()
def _evaluate() -> None:
    """Measure a model on a task."""


@evaluate.command()
def builtin(
    rule: RuleName = None,
    rule_option: RuleOptions = None,
    steps: Annotated[int, typer.Option(help="User lines a dialogue; the last four ask.")] = 12,
    facts: Annotated[int, typer.Option(help="Facts that the others tell, 4 to 10.")] = 8,
    dialogues: Annotated[int, typer.Option(help="Fresh dialogues.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the dialogues.")] = 0,
    batch: Annotated[int, typer.Option(help="Conversations held at a time.")] = 50,
    model: Model = None,
    adapter: Adapter = None,
    n_tok: NTok = None,
    recurrent: Recurrent = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Recall of told facts by the built-in model, replies generated freely."""
    from ccm.commands.evaluate import run_builtin

    choice = _choice(model, adapter, rule, rule_option, n_tok, recurrent, device, dtype, quantize)
    run_builtin(choice, steps=steps, facts=facts, dialogues=dialogues, seed=seed, batch=batch, as_json=json)


Asked = list[dict[str, Any]]  # what is measured, as of TaskSettings


def _measure(
    tasks: Asked,
    adapter: Adapters = None,
    rule: RuleNames = None,
    baseline: Baselines = None,
    room: Room = None,
    embedder: Embedder = None,
    steps: Steps = None,
    most: Most = 0,
    batch: QuestionBatch = 16,
    generate: Generate = None,
    output: Output = None,
    model: Model = None,
    n_tok: NTok = None,
    device: Device = None,
    dtype: Dtype = "auto",
    quantize: Quantize = None,
    json: Lines = False,
) -> None:
    from ccm.commands.evaluate import run_tasks
    from ccm.data.tasks import TaskSettings
    from ccm.evaluation.run import Evaluation

    evaluations = [
        Evaluation(
            TaskSettings(**task),
            model=model,
            adapters=adapter or (),
            rules=("full", "none") if rule is None else rule,
            baselines=baseline or (),
            room=room,
            embedder=embedder,
            depths=None if steps is None else _numbers(steps),
            most=most,
            batch=batch,
            generate=generate,
            n_tok=n_tok,
            device=device,
            dtype=dtype,
            quantize=quantize,
        )
        for task in tasks
    ]
    run_tasks(evaluations, output, as_json=json)


def _measured(task: Callable[..., Asked]) -> Callable[..., None]:
    """The command that measures what ``task`` makes of its options; it has those of :func:`_measure` as well."""
    own, every = (dict(inspect.signature(function, eval_str=True).parameters) for function in (task, _measure))
    shared = {name: option for name, option in every.items() if name != "tasks"}

    @wraps(task)
    def command(**given: Any) -> None:
        _measure(task(**{name: given[name] for name in own}), **{name: given[name] for name in shared})

    vars(command)["__signature__"] = inspect.Signature([*own.values(), *shared.values()])
    command.__annotations__ = {**task.__annotations__, **_measure.__annotations__}
    return evaluate.command()(command)


@_measured
def dialog(
    data: Annotated[Path, typer.Option(help="Folder of DailyDialog's files, as they are or gzipped.")],
    protocol: Protocol = "paper",
) -> Asked:
    """Perplexity of a dialogue's last turn, by the turns before it: DailyDialog."""
    return _asked("dialog", data, {"protocol": protocol})


@_measured
def soda(
    data: Annotated[Path, typer.Option(help="Folder of SODA's files: valid.parquet or valid.jsonl.")],
    protocol: Protocol = "paper",
) -> Asked:
    """Perplexity of a dialogue's last turn, by the turns before it: SODA."""
    return _asked("soda", data, {"protocol": protocol})


@_measured
def pg19(
    data: Annotated[Path, typer.Option(help="Folder of PG19's books, or of any texts: .txt or .txt.gz.")],
    split: Annotated[
        Literal["train", "validation", "test"], typer.Option(help="Of the folder, if it has them.")
    ] = "test",
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step.")] = 128,
    deepest: Annotated[int, typer.Option(help="The last time step, in chunks.")] = 8,
    targets: Annotated[int, typer.Option(help="Chunks of a book whose perplexity is taken.")] = 10,
) -> Asked:
    """Perplexity of chunks of books, by the latest chunks before them: PG19."""
    options = {"split": split, "chunk_tokens": chunk_tokens, "deepest": deepest, "targets": targets}
    return _asked("pg19", data, options)


@_measured
def metaicl(
    data: Annotated[Path, typer.Option(help="Folder of MetaICL's tasks, a folder each.")],
    task: Annotated[list[str] | None, typer.Option(help="A task; repeatable (those of hr_to_lr.json, or all).")] = None,
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    demonstrations: Annotated[
        str, typer.Option(help="Seeds in the names of the files of demonstrations, such as 100,13,21: a mean over all.")
    ] = "100",
    mean: Annotated[
        Literal["plain", "authors"], typer.Option(help="Over tasks; authors: with their script's two exceptions.")
    ] = "plain",
) -> Asked:
    """Accuracy over the options of an example, after k demonstrations of its task: MetaICL."""
    options = {"max_length": max_length, "mean": mean, "tasks": task}
    return _asked("metaicl", data, options, demonstrations=demonstrations)


@_measured
def lamp(
    data: Annotated[Path, typer.Option(help="Folder of LaMP's files of one task.")],
    number: Annotated[int, typer.Option(help="Of the task: 1 to 5, or 7.")] = 2,
    split: Annotated[Literal["train", "dev"], typer.Option(help="Of the files.")] = "dev",
    max_length: Annotated[int, typer.Option(help="Most tokens of context, query and answer.")] = 1024,
    seed: Annotated[str, typer.Option(help="Of the entries that are drawn; several give a mean over all.")] = "1337",
) -> Asked:
    """Accuracy over the classes of an example, after k entries of a profile: LaMP. Perplexity of 4, 5 and 7."""
    return _asked("lamp", data, {"number": number, "split": split, "max_length": max_length}, seed=seed)


@_measured
def locomo(
    data: Annotated[Path, typer.Option(help="LoCoMo's locomo10.json, plain or gzipped, or its folder.")],
    category: Categories = None,
    max_length: MaxLength = 2048,
    until: Until = "evidence",
) -> Asked:
    """F1 of replies to questions on long conversations, by the latest turns: LoCoMo."""
    return _asked("locomo", data, _asking(category, max_length, until))


@_measured
def longmemeval(
    data: Annotated[Path, typer.Option(help="One of LongMemEval's files, plain or gzipped.")],
    category: Categories = None,
    max_length: MaxLength = 2048,
    until: Until = "evidence",
) -> Asked:
    """F1 of replies to questions on a user's many sessions, by the latest turns: LongMemEval."""
    return _asked("longmemeval", data, _asking(category, max_length, until))


@_measured
def custom(
    data: Annotated[Path, typer.Option(help="File or folder of your own: JSON lines or texts, as for training.")],
    max_steps: Annotated[int, typer.Option(help="Deepest time step; what is longer is cut into stretches.")] = 16,
    max_step_tokens: Annotated[int, typer.Option(help="Most tokens of a step.")] = 512,
    chunk_tokens: Annotated[int, typer.Option(help="Tokens of a step of plain text.")] = 128,
) -> Asked:
    """Your own data: the last answer by the latest steps before it, its perplexity or, of choices, the accuracy."""
    options = {"max_steps": max_steps, "max_step_tokens": max_step_tokens, "chunk_tokens": chunk_tokens}
    return _asked("custom", data, options)


def _asking(categories: list[str] | None, max_length: int, until: str) -> dict[str, Any]:
    """The options of questions on long conversations."""
    return {"categories": categories, "max_length": max_length, "until": until}


def _asked(name: str, data: Path, options: dict[str, Any], **seeds: str) -> Asked:
    """A task by name, files and options; as often as there are seeds of what is drawn."""
    drawn = [{key: seed} for key, given in seeds.items() for seed in _numbers(given)] or [{}]
    return [{"name": name, "path": str(data), "options": {**options, **seed}} for seed in drawn]


def _numbers(given: str) -> list[int]:
    """Whole numbers with commas between them."""
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise ConfigError(f"{given}: write whole numbers with commas between them, such as 1,2,4.") from None


def _choice(
    model: str | None,
    adapter: str | None,
    rule: str | None,
    rule_option: list[str] | None,
    n_tok: int | None,
    recurrent: bool | None,
    device: str | None,
    dtype: str,
    quantize: str | None,
) -> dict[str, Any]:
    """The model that was asked for, as ``ccm.load`` takes it."""
    return {
        "model": model,
        "adapter": adapter,
        "rule": rule,
        "rule_options": _options(rule_option),
        "n_tok": n_tok,
        "recurrent": recurrent,
        "device": device,
        "dtype": dtype,
        "quantize": quantize,
    }


def _options(given: list[str] | None) -> dict[str, Any] | None:
    """NAME=VALUE pairs as a table; a value is written as in JSON."""
    table = {}
    for pair in given or ():
        name, _, value = pair.partition("=")
        try:
            table[name] = loads(value)
        except ValueError:
            raise ConfigError(f"--rule-option {pair}: write NAME=VALUE with a number, such as weight=0.3.") from None
    return table or None


def main() -> None:
    """The entry point; an error of ours is one line on standard error and exit status 2."""
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # imported with transformers, they warn at once
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        app()
    except CCMError as error:
        print(f"ccm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
