"""MetaICL: few-shot demonstrations as steps, and a query whose answer is one of several options.

    Input: x1 Output: y1 | Input: x2 Output: y2 | ... | Input: x Output:     a demonstration is a step

The rules of filtering, choice and room are the authors' (Compressed Context Memory, ICLR 2024, section 4.1). Files are
MetaICL's: a folder for each task, in it files of JSON objects with input, output and options, one a line:

    TASK_16384_100_train.jsonl                      to train on, each example after others of its task
    TASK_16_100_test.jsonl, or TASK_test.jsonl      to evaluate on
    TASK_16_SEED_train.jsonl                        demonstrations of an evaluation

While training, memory holds the token ids of all inputs and outputs, two bytes each where all ids of the vocabulary are
below 65,536, else four: of a million examples of 60 tokens 120 MB, or 240.
"""

from __future__ import annotations

import json
import random
import re
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, Literal

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError, DataError
from ccm.core.processes import get_logger
from ccm.data.examples import Epochs, log_left_out, tell_held_out
from ccm.data.questions import Question
from ccm.data.reading import read_rows
from ccm.data.settings import DataOptions, DataSettings, TaskOptions
from ccm.data.tasks import Averaging, Task, TaskSettings, encode_words
from ccm.engine.layout import Sample

AUTHORS_MEAN = Averaging({"poem_sentiment": "acc_base"}, ("glue-mrpc",))  # of their script; it says no reason
LONGEST = 256  # tokens of an example, prefixes included
_CHUNK = 1024  # examples that are tokenized at once to train on
_NOTHING = "no file, so not trained on"
_LOG = get_logger(__name__)
Ids = Sequence[int]


@dataclass(frozen=True)
class MetaICLExample:
    """One example of a task, as token ids: the output is one of the options, or there are none."""

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

    def query(self, example: MetaICLExample) -> list[int]:
        """The example up to where its output begins."""
        return [*self.before_input, *example.input, *self.before_output]

    def demonstration(self, example: MetaICLExample) -> list[int]:
        """The example with its output."""
        return [*self.query(example), *example.output]

    def fits(self, example: MetaICLExample, longest: int = LONGEST) -> bool:
        """Whether the example is short enough to be used at all; its other options may be longer."""
        return len(self.demonstration(example)) <= longest

    def context(self, demonstrations: Iterable[MetaICLExample], room: int) -> list[list[int]]:
        """Demonstrations as steps, in order, up to the first that does not fit into ``room`` tokens any more."""
        steps: list[list[int]] = []
        for example in demonstrations:
            step = self.demonstration(example)
            room -= len(step)
            if room < 0:
                break
            steps.append(step)
        return steps

    def question(
        self, example: MetaICLExample, demonstrations: Iterable[MetaICLExample], max_length: int, task: str
    ) -> Question:
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
        """Ids at the beginning of a text: after BOS, where there is one and they do not begin with it."""
        return ids if self.bos is None or ids[0] == self.bos else [self.bos, *ids]


def distinct(options: Sequence[Ids]) -> list[Ids]:
    """Each option once, where it stands first."""
    return [option for i, option in enumerate(options) if option not in options[:i]]


def demonstrations_for(pool: Sequence[MetaICLExample], spare: Sequence[MetaICLExample], k: int) -> list[MetaICLExample]:
    """The first ``k`` of a pool; where it has fewer, the first of another one for what is missing."""
    chosen = [*pool[:k]]
    return [*chosen, *spare[: k - len(chosen)]]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The examples of a file.

    Raises:
        DataError: when it is absent or not whole, or a row is no example.
    """
    for number, row in enumerate(read_rows(path, ["input", "output", "options"]), start=1):
        given, output, options = row.values()
        if not isinstance(options, list) or not all(isinstance(text, str) for text in (given, output, *options)):
            raise DataError(f"{path}, row {number}: an example has the texts input and output, and options, a list.")
        yield row


def listed_tasks(folder: Path, split: str) -> list[str] | None:
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


def few_shot_files(folder: Path, task: str) -> dict[int, Path]:
    """The files of 16 demonstrations a class, by the seed in their names."""
    name = re.compile(rf"{re.escape(task)}_16_(\d+)_train\.jsonl")
    found = ((name.fullmatch(path.name), path) for path in (folder / task).glob("*.jsonl"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


@dataclass(frozen=True)
class MetaICLTaskOptions(TaskOptions):
    """How MetaICL is evaluated.

    Attributes:
        max_length: most tokens of context, query and output.
        demonstrations: the seed in the name of the files with the demonstrations.
        spare: the seed of those that fill up a pool that is too small; None for 13, or 100 where 13 is the seed above.
        mean: over tasks: "plain", or "authors", with the exceptions that their script makes of two tasks.
        tasks: which tasks; None for those of ``hr_to_lr.json`` in the folder, or all that have a test file.
    """

    max_length: int = bounded(1024, 1)
    demonstrations: int = 100
    spare: int | None = None
    mean: Literal["plain", "authors"] = "plain"
    tasks: list | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spare == self.demonstrations:
            raise ConfigError(f"task.options.spare is {self.spare}, as demonstrations; it must be another pool's seed.")

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
    options: MetaICLTaskOptions
    depths = (1, 2, 4, 8, 16)
    measures = "acc_norm"

    def __post_init__(self) -> None:
        self.averaging = AUTHORS_MEAN if self.options.mean == "authors" else Averaging()
        self._encode = encode_words(self.turns)
        self.prompt = Prompt.of(self.turns)
        self.tasks = self.options.tasks or listed_tasks(self.folder, "test") or _found(self.folder)
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
            if left_out := sum(map(len, found)) - len(pool) - len(spare):
                self.noted[f"{task}: demonstrations longer than {LONGEST} tokens, not used"] += left_out
            example = None
            for example in self._examples(path):
                yield from self._question(example, chosen, depth, task)
            if example is None:
                self.noted[f"{task}: no examples in its test file"] += 1

    def _question(
        self, example: MetaICLExample, chosen: Sequence[MetaICLExample], depth: int, task: str
    ) -> Iterator[Question]:
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

    def _pool(self, task: str, seed: int) -> list[MetaICLExample]:
        found = few_shot_files(self.folder, task)
        if seed not in found:
            raise DataError(
                f"{self.folder / task} holds no {task}_16_{seed}_train.jsonl; it has demonstrations of the seeds "
                f"{', '.join(map(str, found)) or '(none)'}."
            )
        return [*self._examples(found[seed])]

    def _examples(self, path: Path) -> Iterator[MetaICLExample]:
        for row in read_lines(path):
            given, output, *options = map(tuple, self._encode([row["input"], row["output"], *row["options"]]))
            yield MetaICLExample(given, output, options)


def open_task(settings: TaskSettings, turns: Turns) -> MetaICLTask:
    """The MetaICL tasks in a folder.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when it holds no task.
    """
    folder = settings.require_path("the folder of MetaICL's tasks")
    return MetaICLTask(folder, turns, settings.read_options(MetaICLTaskOptions))


@dataclass(frozen=True)
class MetaICLOptions(DataOptions):
    """What is trained on.

    Attributes:
        tasks: which tasks; None for those under "train" in ``hr_to_lr.json`` in the folder.
        fallback: whether a task without its training file is trained on from its test file or, where that is absent
            too, from its few-shot pools, each example once; otherwise it is an error.
        longest: most tokens of an example, prefixes included; longer ones are left out.
        max_length: most tokens of demonstrations, query and output; what has no room is left out from the end.
    """

    tasks: list | None = None
    fallback: bool = True
    longest: int = bounded(LONGEST, 1)
    max_length: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 2 * self.longest:
            raise ConfigError(
                f"data.options.max_length is {self.max_length}; a demonstration and a query must fit, so it must be at "
                f"least twice data.options.longest, which is {self.longest}."
            )


@dataclass(frozen=True)
class Pool:
    """The examples of a task.

    Attributes:
        ids: token ids of inputs and outputs in turn.
        bounds: where they begin, and where the last one ends: two of each example, and one.
        held: how many of the examples are held out: the last.
    """

    ids: array
    bounds: array
    held: int = 0

    def __len__(self) -> int:
        return len(self.bounds) // 2

    def __getitem__(self, number: int) -> MetaICLExample:
        begin, middle, end = self.bounds[2 * number : 2 * number + 3]
        return MetaICLExample(self.ids[begin:middle], self.ids[middle:end])

    @property
    def trained(self) -> int:
        """Examples that are not held out: the first."""
        return len(self) - self.held

    def others(self, number: int, k: int, rng: random.Random) -> list[MetaICLExample]:
        """At most ``k`` of those that are not held out, none twice, never the one of that number."""
        drawn = rng.sample(range(self.trained), min(k + 1, self.trained))
        return [self[i] for i in drawn if i != number][:k]


@dataclass(frozen=True)
class MetaICLData(Epochs):
    """Samples of all tasks together, each task as often as it has examples.

    Attributes:
        pools: the tasks' examples.
        prompt: how they read.
        eos: the token that ends an output.
        options: which they are.
        k: demonstrations of a sample.
        random_steps: whether it is a random number of 1 to k instead.
        seed: of order, numbers and demonstrations.
    """

    pools: Sequence[Pool]
    prompt: Prompt
    eos: int
    options: MetaICLOptions
    k: int
    random_steps: bool
    seed: int

    @property
    def longest(self) -> int:
        """Most text tokens that a sample may have."""
        return min(self.options.max_length, (self.k + 1) * self.options.longest) + (self.prompt.bos is not None)

    @property
    def deepest(self) -> int:
        """Most demonstrations that a sample may have."""
        return self.k

    @cached_property
    def _ends(self) -> list[int]:
        return [*accumulate(pool.trained for pool in self.pools)]

    def __len__(self) -> int:
        return self._ends[-1]

    def sample(self, number: int, place: int) -> Sample:
        rng = random.Random(f"{self.seed} demonstrations {place}")
        task = bisect(self._ends, number)
        pool = self.pools[task]
        k = rng.randint(1, self.k) if self.random_steps else self.k
        return self._sample(pool, number - self._ends[task] + pool.trained, k, rng)

    def held_out(self) -> list[Sample]:
        rng = random.Random(f"{self.seed} held out")
        return [
            self._sample(pool, number, self.k, rng) for pool in self.pools for number in range(pool.trained, len(pool))
        ]

    def _sample(self, pool: Pool, number: int, k: int, rng: random.Random) -> Sample:
        demonstrations = pool.others(number, k, rng)
        question = self.prompt.question(pool[number], demonstrations, self.options.max_length, "MetaICL")
        return question.sample(self.eos)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> MetaICLData:
    """The training tasks in the folder of these settings, whose ``data.max_steps`` is the number of demonstrations.

    What is left out, or trained on from other files, is logged as a warning.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when files are absent or malformed, or nothing can be trained on.
    """
    folder = settings.published_folder("MetaICL's tasks, a folder each, and hr_to_lr.json")
    options, prompt = settings.read_options(MetaICLOptions), Prompt.of(turns)
    left_out: Counter[str] = Counter()
    found = [_read_pool(files, turns, prompt, options.longest, left_out) for files in _files(folder, options)]
    kept = _hold_out([pool for pool in found if len(pool) > 1], settings.eval_samples)
    held = sum(pool.held for pool in kept)
    tell_held_out(held, settings, "as many of each task, at most a tenth of it")
    left_out["the only ones of their tasks"] = sum(len(pool) == 1 for pool in found)
    log_left_out("MetaICL", left_out)
    if not kept:
        raise DataError(f"No task in {folder} has two examples of at most {options.longest} tokens to train on.")
    return MetaICLData(kept, prompt, turns.eos_id, options, settings.max_steps, settings.random_steps, seed)


def _files(folder: Path, options: MetaICLOptions) -> Iterator[list[Path]]:
    """The files of each task that has some."""
    tasks = [str(task) for task in options.tasks or listed_tasks(folder, "train") or ()]
    if not tasks:
        raise DataError(
            f"{folder} holds no hr_to_lr.json, the list of MetaICL's training tasks; put it there, or name the tasks "
            "with data.options.tasks=[...]."
        )
    chosen = {task: _training_files(folder, task) for task in tasks}
    otherwise: dict[str, list[str]] = {}
    for task, (how, _) in chosen.items():
        if how:
            otherwise.setdefault(how, []).append(task)
    if otherwise and not options.fallback:
        raise DataError(
            f"{folder} lacks TASK_16384_100_train.jsonl of {', '.join(chain(*otherwise.values()))}. Leave "
            "data.options.fallback on to train on what else there is, or name other tasks as data.options.tasks."
        )
    if options.tasks and (absent := otherwise.get(_NOTHING)):
        raise DataError(f"{folder} has no file to train on of the tasks {', '.join(absent)}.")
    for how, names in otherwise.items():
        _LOG.warning("MetaICL: %s: %d of %d tasks (%s)", how, len(names), len(tasks), ", ".join(names))
    return (files for _, files in chosen.values() if files)


def _training_files(folder: Path, task: str) -> tuple[str, list[Path]]:
    """The files that a task is trained on from, after what is to be said where they are not the usual one."""
    if (whole := folder / task / f"{task}_16384_100_train.jsonl").is_file():
        return "", [whole]
    if evaluated := evaluated_file(folder, task):
        return "no training file, so trained on from the test file", [evaluated]
    few = [*few_shot_files(folder, task).values()]
    return "no training file, so trained on from the few-shot pools" if few else _NOTHING, few


def _read_pool(files: Sequence[Path], turns: Turns, prompt: Prompt, longest: int, left_out: Counter[str]) -> Pool:
    """The usable examples of files, of several each only once; those that are not are counted by reason.

    Raises:
        DataError: when a file is damaged.
    """
    encode, bounds = encode_words(turns), array("Q", [0])
    ids = array("H" if max(turns.tokenizer.get_vocab().values()) < 1 << 16 else "I")
    pairs = ((row["input"], row["output"]) for row in chain.from_iterable(map(read_lines, files)))
    once = iter(dict.fromkeys(pairs)) if len(files) > 1 else pairs
    while chunk := [*islice(once, _CHUNK)]:
        tokens = encode([*chain.from_iterable(chunk)])
        for example in map(MetaICLExample, tokens[::2], tokens[1::2]):
            if not (example.input and example.output):
                left_out["without an input or output"] += 1
            elif not prompt.fits(example, longest):
                left_out[f"longer than {longest} tokens"] += 1
            else:
                for part in (example.input, example.output):
                    ids.extend(part)
                    bounds.append(len(ids))
    return Pool(ids, bounds)


def _hold_out(found: Sequence[Pool], most: int) -> list[Pool]:
    """The pools with ``most`` examples held out, as even over the tasks as may be; of none more than a tenth."""
    shares = (len(range(number, most, len(found))) for number in range(len(found)))
    return [Pool(p.ids, p.bounds, min(share, len(p) // 10)) for p, share in zip(found, shares, strict=True)]
