"""MetaICL: few-shot demonstrations as steps, and a query whose answer is one of several options.

    Input: x1 Output: y1 | Input: x2 Output: y2 | ... | Input: x Output:     a demonstration is a step

The rules of filtering, choice and room are the authors' (Compressed Context Memory, ICLR 2024, section 4.1). Files are
MetaICL's: a folder a task, in it ``TASK_16_100_test.jsonl`` (or ``TASK_test.jsonl``) to evaluate on and
``TASK_16_SEED_train.jsonl`` as demonstrations, a JSON object a line with input, output and options.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ccm.chat.turns import Turns
from ccm.core.config import build_settings, check_types
from ccm.core.errors import ConfigError, DataError, reason
from ccm.data.questions import Question
from ccm.data.tasks import Averaging, Task, TaskSettings, encode_word, encode_words

AUTHORS_MEAN = Averaging({"poem_sentiment": "acc_base"}, ("glue-mrpc",))  # of their script; it says no reason
LONGEST = 256  # tokens of an example, prefixes included
Ids = Sequence[int]


@dataclass(frozen=True)
class Example:
    """One example of a task, as token ids: of the options the output is one, or there are none."""

    input: Ids
    output: Ids
    options: Sequence[Ids] = ()


@dataclass(frozen=True)
class Prompt:
    """How examples read: ``Input: x Output: y``, nothing between them, BOS before all.

    Attributes:
        before_input: token ids of "Input:".
        before_output: of "Output:".
        bos: the token that begins a text; None where the tokenizer has none.
    """

    before_input: Ids
    before_output: Ids
    bos: int | None

    @staticmethod
    def of(turns: Turns) -> Prompt:
        """As a tokenizer has them."""
        before_input, before_output = encode_words(turns)(["Input:", "Output:"])
        return Prompt(before_input, before_output, turns.tokenizer.bos_token_id)

    def query(self, example: Example) -> list[int]:
        """The example up to where its output begins."""
        return [*self.before_input, *example.input, *self.before_output]

    def demonstration(self, example: Example) -> list[int]:
        """The example with its output."""
        return [*self.query(example), *example.output]

    def fits(self, example: Example, longest: int = LONGEST) -> bool:
        """Whether the example is short enough to be used at all; its other options may be longer."""
        return len(self.demonstration(example)) <= longest

    def context(self, demonstrations: Iterable[Example], room: int) -> list[list[int]]:
        """Demonstrations as steps, in order, up to the first that does not fit into ``room`` tokens any more."""
        steps: list[list[int]] = []
        for example in demonstrations:
            step = self.demonstration(example)
            room -= len(step)
            if room < 0:
                break
            steps.append(step)
        return steps

    def question(self, example: Example, demonstrations: Iterable[Example], max_length: int, task: str) -> Question:
        """The question of an example; ``max_length`` is of context, query and output without BOS."""
        query = self.query(example)
        answers = distinct(example.options) or [example.output]
        steps = self.context(demonstrations, max_length - len(query) - max(map(len, answers)))
        bare = self._opened(query)
        if steps:
            steps[0] = self._opened(steps[0])
        right = answers.index(example.output)
        return Question(steps, query if steps else bare, answers, right, task, self.before_output, bare)

    def _opened(self, ids: list[int]) -> list[int]:
        """Ids that open a text: BOS stands before them, where there is one and they do not begin with it."""
        return ids if self.bos is None or ids[0] == self.bos else [self.bos, *ids]


def distinct(options: Sequence[Ids]) -> list[Ids]:
    """Each option once, where it stands first."""
    return [option for i, option in enumerate(options) if option not in options[:i]]


def demonstrations_for(pool: Sequence[Example], spare: Sequence[Example], k: int) -> list[Example]:
    """The first ``k`` of a pool; where it has fewer, the first of another one for what is missing."""
    chosen = [*pool[:k]]
    return [*chosen, *spare[: k - len(chosen)]]


@dataclass(frozen=True)
class Options:
    """How MetaICL is evaluated.

    Attributes:
        max_length: most tokens of context, query and output.
        demonstrations: the seed in the name of the files with the demonstrations.
        spare: likewise, of those that fill up a pool that is too small; None for 13, or 100 where 13 is the seed above.
        mean: over tasks: "plain", or "authors", with the exceptions that their script makes of two tasks.
        tasks: which tasks; None for those of ``hr_to_lr.json`` in the folder, or all that have a test file.
    """

    max_length: int = 1024
    demonstrations: int = 100
    spare: int | None = None
    mean: Literal["plain", "authors"] = "plain"
    tasks: list | None = None

    def __post_init__(self) -> None:
        check_types(self, "task.options.")
        if self.spare == self.demonstrations:
            raise ConfigError(f"task.options.spare is {self.spare}, as demonstrations; it must be another pool's seed.")
        if self.max_length < 1:
            raise ConfigError(f"task.options.max_length is {self.max_length}; it must be at least 1.")

    @property
    def seeds(self) -> tuple[int, int]:
        """Of the demonstrations, and of those that fill up."""
        spare = 100 if self.demonstrations == 13 else 13
        return self.demonstrations, spare if self.spare is None else self.spare


@dataclass
class MetaICLTask(Task):
    """Accuracy over the options of each example, after k demonstrations.

    Attributes:
        folder: of the tasks.
        turns: whose tokenizer is used.
        options: how.
    """

    folder: Path
    turns: Turns
    options: Options
    depths = (1, 2, 4, 8, 16)
    measures = "acc_norm"

    def __post_init__(self) -> None:
        self.averaging = AUTHORS_MEAN if self.options.mean == "authors" else Averaging()
        self.encode = encode_word(self.turns)
        self.prompt = Prompt.of(self.turns)
        self.tasks = self.options.tasks or listed(self.folder, "test") or _found(self.folder)
        if absent := [task for task in self.options.tasks or () if evaluated_file(self.folder, task) is None]:
            raise DataError(f"{self.folder} has no test file of the tasks {', '.join(map(str, absent))}.")

    def questions(self, depth: int) -> Iterator[Question]:
        if depth < 0:
            raise ConfigError(f"There is no time step {depth}; it is a number of demonstrations, from 0.")
        self.skipped, self.noted = Counter(), Counter()
        for task in self.tasks:
            path = evaluated_file(self.folder, task)
            if path is None:
                self.noted[f"{task}: no test file"] += 1
                continue
            found = [self._pool(task, seed) for seed in self.options.seeds]
            pool, spare = ([example for example in pool if self.prompt.fits(example)] for pool in found)
            chosen = demonstrations_for(pool, spare, depth)
            self._note_pool(task, [*found[0], *found[1]])
            example = None
            for example in self._examples(path):
                yield from self._question(example, chosen, depth, task)
            if example is None:
                self.noted[f"{task}: no examples in its test file"] += 1

    def _question(self, example: Example, chosen: Sequence[Example], depth: int, task: str) -> Iterator[Question]:
        if not self.prompt.fits(example):
            self.skipped[f"{task}: longer than {LONGEST} tokens"] += 1
        elif not example.options:
            self.skipped[f"{task}: has no options"] += 1
        elif example.output not in example.options:
            self.skipped[f"{task}: the answer is none of its options"] += 1
        elif not (example.input and all(example.options)):
            self.skipped[f"{task}: has an empty input or option"] += 1
        else:
            question = self.prompt.question(example, chosen, self.options.max_length, task)
            if len(question.steps) < depth:
                why = "there are no more" if len(question.steps) == len(chosen) else "the others have no room"
                self.noted[f"{task}: fewer than {depth} demonstrations, {why}"] += 1
            yield question

    def _note_pool(self, task: str, pool: Sequence[Example]) -> None:
        if left_out := sum(not self.prompt.fits(example) for example in pool):
            self.noted[f"{task}: demonstrations longer than {LONGEST} tokens, not used"] += left_out

    def _pool(self, task: str, seed: int) -> list[Example]:
        found = pools(self.folder, task)
        if seed not in found:
            raise DataError(
                f"{self.folder / task} holds no {task}_16_{seed}_train.jsonl; it has demonstrations of the seeds "
                f"{', '.join(map(str, found)) or '(none)'}."
            )
        return [*self._examples(found[seed])]

    def _examples(self, path: Path) -> Iterator[Example]:
        for row in read_lines(path):
            options = [tuple(self.encode(option)) for option in row["options"]]
            yield Example(tuple(self.encode(row["input"])), tuple(self.encode(row["output"])), options)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The examples of a file.

    Raises:
        DataError: when it is absent, or a line is none; with the file and the line.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                where = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise DataError(f"{where}: not JSON ({error}); the file may not be whole.") from None
                texts = isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("input", "output"))
                options = row.get("options") if texts else None
                if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
                    raise DataError(f"{where}: an example has the texts input and output, and options, a list.")
                yield row
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; it belongs to the MetaICL data.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {reason(error)}.") from error


def listed(folder: Path, split: str) -> list[str] | None:
    """The tasks of a split, "train" or "test", by ``hr_to_lr.json`` in the folder; None where there is no such file.

    Raises:
        DataError: when it holds no list.
    """
    for place in (folder / "hr_to_lr.json", folder / "config" / "hr_to_lr.json"):
        if place.is_file():
            try:
                return [str(task) for task in json.loads(place.read_text(encoding="utf-8-sig"))[split]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise DataError(f"{place} holds no list of tasks under {split!r} ({error!r}).") from None
    return None


def _found(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.glob("*/") if evaluated_file(folder, path.name))
    if not found:
        raise DataError(f"{folder} holds no task: a folder TASK with TASK_test.jsonl or TASK_16_100_test.jsonl in it.")
    return found


def evaluated_file(folder: Path, task: str) -> Path | None:
    """The file of the examples of a task to evaluate on; None where there is none."""
    names = (f"{task}_16_100_test.jsonl", f"{task}_test.jsonl")
    return next((path for name in names if (path := folder / task / name).is_file()), None)


def pools(folder: Path, task: str) -> dict[int, Path]:
    """The files of 16 demonstrations a class, by the seed in their names."""
    name = re.compile(rf"{re.escape(task)}_16_(\d+)_train\.jsonl")
    found = ((name.fullmatch(path.name), path) for path in (folder / task).glob("*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def open_task(settings: TaskSettings, turns: Turns) -> MetaICLTask:
    """The MetaICL tasks in a folder.

    Raises:
        ConfigError: when no folder is named, or options that there are not.
        DataError: when it holds no task.
    """
    if settings.path is None:
        raise ConfigError("The task 'metaicl' needs the folder of MetaICL's tasks; name it as task.path.")
    return MetaICLTask(Path(settings.path), turns, build_settings(Options, settings.options, "task.options"))
