"""Your own data: conversations and tasks in any of :mod:`ccm.data.formats`, or plain text that is cut into chunks.

    .jsonl, .json, each gzipped or not, .parquet     a conversation or task each line, item or row
    .txt, gzipped or not                             running text

Everything is read and checked before training begins; up to ten kinds of faults are reported at once, by file and line.
A warning of the log names what is not used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError, DataError, InputError
from ccm.data.examples import Examples, hold_out, tell_held_out
from ccm.data.formats import ExampleError, TooShortError, read_example
from ccm.data.kinds import Chat, Example, TaskExample, Text
from ccm.data.questions import Question
from ccm.data.reading import ROWS, ends, find_files, read_text, read_values, warn_once
from ccm.data.settings import DataSettings, TaskOptions
from ccm.data.tasks import Replies, Task, TaskSettings

FAULTS = 10  # reported at once
TEXTS = (".txt", ".txt.gz")
ENDINGS = (*ROWS, *TEXTS)
_WANTED = "your own file or folder"


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Examples:
    """Read and check the files that a recipe names.

    Raises:
        ConfigError: when it names none.
        DataError: when one is absent, empty or malformed.
    """
    settings.forbid_options()
    groups: Sequence[Sequence[Example]] = read_examples(settings.require_path(_WANTED), settings, turns)
    if settings.eval_path is not None:
        held = [*chain.from_iterable(read_examples(Path(settings.eval_path), settings, turns))]
    else:
        held, groups = hold_out(groups, settings.eval_samples, f"{seed} held out")
        every = len(held) + sum(map(len, groups))
        tell_held_out(len(held), settings, f"at most a tenth of {every:,}, conversations whole")
    return Examples([*chain.from_iterable(groups)], held, turns, settings.random_steps, seed)


class _TaskLengths(DataSettings):
    """How a task cuts its examples, for functions that training uses as well."""

    prefix = "task.options."


@dataclass(frozen=True)
class CustomTaskOptions(TaskOptions):
    """How your own data is evaluated; see :class:`ccm.data.settings.DataSettings`.

    Attributes:
        max_steps: the deepest time step; longer conversations and texts are cut into stretches.
        max_step_tokens: most tokens of a step; a longer one is an error.
        chunk_tokens: tokens of a step, where plain text is cut into chunks.
    """

    max_steps: int = bounded(16, 1)
    max_step_tokens: int = bounded(512, 1)
    chunk_tokens: int = bounded(128, 2)


@dataclass
class CustomTask(Task):
    """The last answer of each example, by the latest steps before it: accuracy over its choices, or perplexity.

    Every time step has the same targets; an example with fewer steps is asked with all that it has.

    Attributes:
        whole: what is measured: of each conversation or text, its stretches.
        turns: how they become tokens.
    """

    whole: Sequence[Sequence[Example]]
    turns: Turns

    def __post_init__(self) -> None:
        examples = [*chain.from_iterable(self.whole)]
        deepest = max(example.length for example in examples)
        self.depths = [2**i for i in range(deepest.bit_length())] or [0]
        chosen = sum(isinstance(example, TaskExample) and bool(example.choices) for example in examples)
        if chosen not in (0, len(examples)):
            raise DataError(
                f"{chosen} of {len(examples)} examples have choices; a task is measured by accuracy, where all "
                "have them, or by perplexity, where none has. Make two files of them."
            )
        self.measures = "acc_norm" if chosen else "perplexity"
        self.replies = None if chosen else Replies()

    def questions(self, depth: int) -> Iterator[Question]:
        if depth < 0:
            raise ConfigError(f"There is no time step {depth}; it is a number of steps, from 0.")
        self.skipped, self.noted = Counter(), Counter()
        for number, example in ((number, part) for number, parts in enumerate(self.whole) for part in parts):
            if example.length < depth:
                self.noted[f"fewer than {depth} steps, there are no more"] += 1
            cut = example.latest(max(depth, 1))
            sample, alone = (part.sample(self.turns, part.length) for part in (cut, cut.latest(0)))
            question = Question.of(sample, self.turns.eos_id, "custom", alone=alone)
            question = replace(question, source=str(number))
            if isinstance(cut, TaskExample) and cut.choices:
                answers = [self.turns.encode_reply(choice) for choice in cut.choices]
                right, before = cut.choices.index(cut.answer), question.query[-1:]
                question = replace(question, answers=answers, right=right, before=before)
            yield question if depth else question.alone()


def open_task(settings: TaskSettings, turns: Turns) -> CustomTask:
    """The examples of your own file or folder.

    Raises:
        ConfigError: when none is named, or an option is not allowed.
        DataError: when it is absent, empty or malformed.
    """
    path, lengths = settings.require_path(_WANTED), _TaskLengths(**vars(settings.read_options(CustomTaskOptions)))
    return CustomTask([*read_examples(path, lengths, turns)], turns)


@dataclass
class _Faults:
    """What is wrong with data: each reason once a file, with the first place that has it and how many more do."""

    places: dict[tuple[Path, str], list[str]] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        return len(self.places) == FAULTS

    def add(self, file: Path, where: str, fault: ExampleError) -> None:
        place = ", ".join(filter(None, (file.name, where, fault.at)))
        self.places.setdefault((file, fault.why), []).append(place)

    def check(self, path: Path) -> None:
        """Raise a DataError where there are some."""
        if not self.places:
            return
        more = f" The first {FAULTS} faults, there may be more:" if self.full else ""
        lines = [
            f"  {first}{f' (and {len(others):,} more)' if others else ''}: {why}"
            for (_, why), (first, *others) in self.places.items()
        ]
        raise DataError(f"{path} cannot be used.{more}\n" + "\n".join(lines))


def read_examples(path: Path, settings: DataSettings, turns: Turns) -> list[list[Example]]:
    """All examples of a file, or of all files of a folder: those of a conversation together, a text's one by one.

    Raises:
        DataError: when there is nothing, or with up to ten faults by file and line.
        ConfigError: when a file is Parquet, and pyarrow is not installed.
    """
    groups: list[list[Example]] = []
    faults = _Faults()
    for file in find_files(path, ENDINGS):
        if not ends(file, ENDINGS):
            raise DataError(f"{file} is of an unknown kind; its name must end in one of {', '.join(ENDINGS)}.")
        read = _text if ends(file, TEXTS) else _values
        for where, found in read(file, settings, turns):
            if isinstance(found, ExampleError):
                faults.add(file, where, found)
                if faults.full:
                    faults.check(path)
            else:
                groups.append(found)
    faults.check(path)
    if not groups:
        raise DataError(f"{path} holds no example; give a file with some.")
    return groups


def _values(file: Path, settings: DataSettings, turns: Turns) -> Iterator[tuple[str, list[Example] | ExampleError]]:
    """The examples of every line, item or row of a file, or what is wrong with it.

    Conversations of one turn are left out, if there are others.
    """
    told: set[str] = set()
    short: list[ExampleError] = []
    read = cut = replies = stripped = 0
    for where, value in read_values(file):
        read += 1
        try:
            if isinstance(value, DataError):
                raise ExampleError(str(value))
            whole = read_example(value, told)
            parts: list[Example] = [*whole.parts(settings.max_steps)]
            changed = 0
            if not (isinstance(whole, Chat) and whole.reads_plainly(turns, settings.max_step_tokens)):
                for part in parts:
                    _check_length(part, settings, turns)
                changed = _stripped(whole, turns)
        except TooShortError as fault:
            short.append(fault)
            continue
        except (ExampleError, ConfigError, InputError) as fault:  # the model's chat template may refuse a conversation
            yield where, fault if isinstance(fault, ExampleError) else ExampleError(str(fault))
            continue
        cut += isinstance(whole, TaskExample) and whole.length > settings.max_steps
        replies, stripped = replies + len(whole.replies), stripped + changed
        yield where, parts
    if short and len(short) == read:
        yield "", short[0]
    elif short:
        warn_once(f"{file}: {len(short):,} of {read:,} conversations are left out: one turn has nothing to remember.")
    if told:
        warn_once(f"{file}: not used are {', '.join(sorted(told))}.")
    if cut:
        warn_once(
            f"{file}: {cut:,} tasks have more than {settings.max_steps} steps ({settings.prefix}max_steps); the latest "
            "are read."
        )
    if stripped:
        warn_once(
            f"{file}: {stripped:,} of {replies:,} replies hold text that the chat template does not show, such as a "
            "thought; it is left out."
        )


def _stripped(example: Chat | TaskExample, turns: Turns) -> int:
    """How many replies of an example hold text that the chat template does not show.

    Raises:
        ExampleError: where it shows nothing of one.
    """
    count = 0
    for reply in example.replies:
        shown = turns.shown(reply).split()
        if not shown:
            raise ExampleError(
                "the chat template shows nothing of it, as of a thought alone; write what is said after the thought, "
                "or leave the example out",
                f"the reply that begins {reply.strip()[:40]!r}",
            )
        count += shown != reply.split()
    return count


def _check_length(example: Example, settings: DataSettings, turns: Turns) -> None:
    sample = example.sample(turns, example.length)
    for step in (*sample.steps, sample.query):
        if len(step.ids) > settings.max_step_tokens:
            begins = turns.tokenizer.decode(step.ids[:40]).strip()[:40]
            raise ExampleError(
                f"a step may have {settings.max_step_tokens} tokens at most; shorten it, or raise "
                f"{settings.prefix}max_step_tokens",
                f"the step of {len(step.ids)} tokens that begins {begins!r}",
            )


def _text(file: Path, settings: DataSettings, turns: Turns) -> Iterator[tuple[str, list[Example] | ExampleError]]:
    """The chunks of a text file, in stretches of at most ``max_steps`` and a query; a file's last chunk is shorter."""
    settings.check_chunks()
    ids, size = turns.plain.encode(read_text(file)), settings.chunk_tokens
    text = Text.of(ids, size, settings.query_chunks)
    if text is None:
        least, called = settings.query_chunks + 1, f"{settings.prefix}chunk_tokens"
        yield "", ExampleError(f"{len(ids)} tokens; at least {least} chunks of {size} tokens are needed ({called})")
        return
    for part in text.parts(settings.max_steps):
        yield "", [part]
