"""MetaICL to train on: an example of a training task, after demonstrations drawn from the same task.

The rules are the authors' (Compressed Context Memory, ICLR 2024, section 4.1). Files are MetaICL's: a folder a task, in
it ``TASK_16384_100_train.jsonl``. In memory are the token ids of all inputs and outputs, two bytes each where all ids
of the vocabulary are below 65,536, else four: of a million examples of 60 tokens 120 MB, or 240.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, islice
from pathlib import Path

from ccm.chat.turns import Turns
from ccm.core.config import build_settings, check_types
from ccm.core.errors import ConfigError, DataError
from ccm.core.processes import get_logger
from ccm.data.examples import Epochs, folder_of, log_left_out, tell_held_out
from ccm.data.metaicl import LONGEST, Example, Prompt, evaluated_file, listed, pools, read_lines
from ccm.data.settings import DataSettings
from ccm.data.tasks import encode_words
from ccm.engine.layout import Sample

CHUNK = 1024  # examples that are tokenized at once
NOTHING = "no file, so not trained on"
logger = get_logger(__name__)


@dataclass(frozen=True)
class Options:
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
    longest: int = LONGEST
    max_length: int = 1024

    def __post_init__(self) -> None:
        check_types(self, "data.options.")
        if self.longest < 1:
            raise ConfigError(f"data.options.longest is {self.longest}; it must be at least 1.")
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

    def __getitem__(self, number: int) -> Example:
        begin, middle, end = self.bounds[2 * number : 2 * number + 3]
        return Example(self.ids[begin:middle], self.ids[middle:end])

    @property
    def trained(self) -> int:
        """Examples that are not held out: the first."""
        return len(self) - self.held

    def others(self, number: int, k: int, rng: random.Random) -> list[Example]:
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
    options: Options
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
        ConfigError: when it names no folder, or options that there are not.
        DataError: when files are absent or malformed, or nothing can be trained on.
    """
    folder = folder_of(settings, "MetaICL's tasks, a folder each, and hr_to_lr.json")
    options = build_settings(Options, settings.options, "data.options")
    prompt = Prompt.of(turns)
    left_out: Counter[str] = Counter()
    found = [read_pool(files, turns, prompt, options.longest, left_out) for files in _files(folder, options)]
    kept = _hold_out([pool for pool in found if len(pool) > 1], settings.eval_samples)
    held = sum(pool.held for pool in kept)
    tell_held_out(held, settings, "as many of each task, at most a tenth of it")
    left_out["the only ones of their tasks"] = sum(len(pool) == 1 for pool in found)
    log_left_out("MetaICL", left_out)
    if not kept:
        raise DataError(f"No task in {folder} has two examples of at most {options.longest} tokens to train on.")
    return MetaICLData(kept, prompt, turns.eos_id, options, settings.max_steps, settings.random_steps, seed)


def _files(folder: Path, options: Options) -> Iterator[list[Path]]:
    """The files of each task that has some."""
    tasks = [str(task) for task in options.tasks or listed(folder, "train") or ()]
    if not tasks:
        raise DataError(
            f"{folder} holds no hr_to_lr.json, the list of MetaICL's training tasks; put it there, or name the tasks "
            "with data.options.tasks=[...]."
        )
    chosen = {task: _sources(folder, task) for task in tasks}
    otherwise: dict[str, list[str]] = {}
    for task, (how, _) in chosen.items():
        if how:
            otherwise.setdefault(how, []).append(task)
    if otherwise and not options.fallback:
        raise DataError(
            f"{folder} lacks TASK_16384_100_train.jsonl of {', '.join(chain(*otherwise.values()))}. Leave "
            "data.options.fallback on to train on what else there is, or name other tasks as data.options.tasks."
        )
    if options.tasks and (absent := otherwise.get(NOTHING)):
        raise DataError(f"{folder} has no file to train on of the tasks {', '.join(absent)}.")
    for how, names in otherwise.items():
        logger.warning("MetaICL: %s: %d of %d tasks (%s)", how, len(names), len(tasks), ", ".join(names))
    return (files for _, files in chosen.values() if files)


def _sources(folder: Path, task: str) -> tuple[str, list[Path]]:
    """The files that a task is trained on from; before them, what is to be said where they are not the usual one."""
    if (whole := folder / task / f"{task}_16384_100_train.jsonl").is_file():
        return "", [whole]
    if evaluated := evaluated_file(folder, task):
        return "no training file, so trained on from the test file", [evaluated]
    few = [*pools(folder, task).values()]
    return "no training file, so trained on from the few-shot pools" if few else NOTHING, few


def read_pool(files: Sequence[Path], turns: Turns, prompt: Prompt, longest: int, left_out: Counter[str]) -> Pool:
    """The usable examples of files, of several each only once; those that are not are counted by reason.

    Raises:
        DataError: when a file is damaged.
    """
    encode, bounds = encode_words(turns), array("Q", [0])
    ids = array("H" if max(turns.tokenizer.get_vocab().values()) < 1 << 16 else "I")
    pairs = ((row["input"], row["output"]) for row in chain.from_iterable(map(read_lines, files)))
    distinct = iter(dict.fromkeys(pairs)) if len(files) > 1 else pairs
    while chunk := [*islice(distinct, CHUNK)]:
        tokens = encode([*chain.from_iterable(chunk)])
        for example in map(Example, tokens[::2], tokens[1::2]):
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
