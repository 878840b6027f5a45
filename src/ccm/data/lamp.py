"""LaMP: a user's earlier texts as steps, and a query that they help to answer as this user would.

    Instruction: entry 1 | , and entry 2 | ... | . question  Input: text  Output:      an entry of the profile is a step

The rules of templates, retrieval and room are the authors' (Compressed Context Memory, ICLR 2024, section 4.1), in the
layout of their online memories; every method reads the same text. Files are the publisher's: ``SPLIT_questions.json``,
a list of objects with id, input and profile, and ``SPLIT_outputs.json``, an object with a list of id and output, golds.

To train on are the examples of the split "train", each time after other entries of its profile; the split "dev" is
evaluated on. Every entry is tokenized once before training begins, to see whether it is short enough. Memory holds
where each example stands in its file and the numbers of its entries, four bytes each; texts are read again when they
are needed.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError, DataError
from ccm.data.examples import Epochs, log_left_out, tell_held_out
from ccm.data.questions import Question
from ccm.data.reading import Place, read_item, read_items, readable
from ccm.data.settings import DataOptions, DataSettings, TaskOptions
from ccm.data.tasks import Replies, Task, TaskSettings, encode_words
from ccm.engine.layout import Sample

SHORTEST, LONGEST = 1, 99  # tokens of an entry
KEPT, LEAST_REVIEWS = 0.9, 32  # what must be kept of a profile: a share of its entries, but so many of LaMP-3
MAX_LENGTH = 1024
DRAWN = 16  # entries that are drawn to evaluate on; of fewer the first are taken
NO_ROOM = "the query alone has no room"
Number = Literal[1, 2, 3, 4, 5, 7]  # of a task
Entry = Mapping[str, str]
Ids = list[int]


@dataclass(frozen=True)
class Template:
    """How the examples of one task read.

    Attributes:
        marker: what the fixed question ends with, in the text of an example.
        entry: an entry of the profile, with its fields in braces.
        after: what stands between the last entry and the question.
        classes: the possible answers, where there is a choice.
        head: characters of the question that stand before the entries.
    """

    marker: str
    entry: str
    after: str = ". "
    classes: tuple[str, ...] = ()
    head: int = 0

    def split(self, text: str) -> tuple[str, str]:
        """Question and input of an example.

        Raises:
            DataError: when it holds no such question.
        """
        question, found, rest = text.partition(self.marker)
        if not found:
            raise DataError(f"An example does not hold {self.marker!r}: {text[:80]!r}. Is it of another task?")
        return (question + found).strip(), rest.strip()

    def lay_out(self, text: str, profile: Sequence[Entry]) -> tuple[list[str], str]:
        """An example as the texts of its steps, and of its query up to where the answer begins.

        In LaMP-1 entries that the question itself holds are left out.
        """
        question, given = self.split(text)
        entries = [self.entry.format(**entry) for entry in profile]
        if self.head:
            entries = [entry for entry in entries if entry not in question]
        end = f"\nInput: {given}\nOutput:" if given else "\nOutput:"
        if not entries:
            return [], f"Instruction: {question}{end}"
        begins = [f"Instruction: {question[: self.head]}", *["\n, and "] * (len(entries) - 1)]
        steps = [f"{begin}{entry}\n" for begin, entry in zip(begins, entries, strict=True)]
        return steps, (f"\n, and {question[self.head :]}" if self.head else f"{self.after}{question}") + end


_TOPICS = (
    "travel", "style & beauty", "food & drink", "sports", "business", "science & technology", "education", "politics",
    "religion", "crime", "parents", "women", "healthy living", "entertainment", "culture & arts",
)  # fmt: skip
_PATTERNS = "Following the given patterns "
TEMPLATES = {
    1: Template("without explanation.", '"{title}"', classes=("[1]", "[2]"), head=55),
    2: Template("article:", 'the category for the article: "{text}" is "{category}"', classes=_TOPICS),
    3: Template("review:", '{score} is the score for "{text}"', classes=("1", "2", "3", "4", "5")),
    4: Template("Generate a headline for the following article:", '"{title}" is the title for "{text}"'),
    5: Template(
        "Generate a title for the following abstract of a paper:",
        '"{title}" is the title for "{abstract}"',
        f". {_PATTERNS}",
    ),
    7: Template(
        "Paraphrase the following tweet without any explanation before or after it:",
        '"{text}"',
        f" are written by a person. {_PATTERNS}",
    ),
}


def fit(
    layout: Template,
    text: str,
    profile: Sequence[Entry],
    encode: Callable[[str], Ids],
    room: int = MAX_LENGTH,
) -> tuple[list[Ids], Ids, int]:
    """Steps and query as token ids, from as many of the first entries as fit into ``room`` tokens.

    Returns:
        the steps, the query, and how many tokens too long it still is: 0 but where the query alone does not fit.
    """
    encode = cache(encode)  # most texts stay from one count to the next
    for count in range(len(profile), -1, -1):
        steps, query = layout.lay_out(text, profile[:count])
        ids = [[*encode(step)] for step in (*steps, query)]
        excess = sum(map(len, ids)) - room
        if excess <= 0:
            break
    return ids[:-1], ids[-1], max(excess, 0)


def kept_entries(lengths: Sequence[int], number: int) -> list[int] | None:
    """Which entries of a profile, of so many tokens each, are used; None where the example is left out."""
    kept = [i for i, length in enumerate(lengths) if SHORTEST <= length <= LONGEST]
    least = LEAST_REVIEWS if number == 3 else max(KEPT * len(lengths), 1)
    return kept if len(kept) >= least else None


def draw(generator: np.random.Generator, entries: int, count: int) -> list[int]:
    """Numbers of ``count`` entries of a profile of ``entries``, at random; none comes twice, unless it has fewer."""
    return generator.choice(entries, count, replace=entries < count).tolist()


def read_outputs(path: Path) -> dict[str, str]:
    """The answers of a file of outputs, by the ids of their questions.

    Raises:
        DataError: when it is absent or malformed.
    """
    with readable(path):
        outputs = json.loads(path.read_text(encoding="utf-8-sig"))
    try:
        return {gold["id"]: gold["output"].strip() for gold in outputs["golds"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no file of LaMP: {error!r}.") from None


@dataclass(frozen=True)
class LaMPExample:
    """One example, as texts.

    Attributes:
        text: question and input.
        profile: the user's entries.
        output: the answer.
        place: where it stands in the file.
    """

    text: str
    profile: Sequence[Entry]
    output: str
    place: Place


@dataclass(frozen=True)
class Reader:
    """The examples of a split, and how they become questions.

    Attributes:
        folder: of the files.
        split: of the files: "train" or "dev".
        number: of the task.
        max_length: most tokens of BOS, context, query, answer and EOS.
        turns: whose tokenizer is used.
    """

    folder: Path
    split: str
    number: Number
    max_length: int
    turns: Turns

    @property
    def template(self) -> Template:
        """How the examples read."""
        return TEMPLATES[self.number]

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.split}_questions.json"

    @cached_property
    def _encode_answers(self) -> Callable[[Sequence[str]], list[Ids]]:
        return encode_words(self.turns)

    @cached_property
    def _outputs(self) -> dict[str, str]:
        return read_outputs(self.folder / f"{self.split}_outputs.json")

    def usable(self, left_out: Counter[str]) -> Iterator[tuple[LaMPExample, list[int]]]:
        """The examples that can be used, with the numbers of their entries; the others are counted by reason.

        Raises:
            DataError: when a file is absent or malformed, or an entry is of another task.
        """
        for place, item in read_items(self._path):
            example = self._example(item, place)
            kept = kept_entries(self._lengths(example), self.number)
            if kept is None:
                left_out["too few entries of the profile are short enough, or it is empty"] += 1
            elif not example.output or example.output not in (self.template.classes or [example.output]):
                left_out["the answer is none of the classes, or empty"] += 1
            else:
                yield example, kept

    def example_at(self, place: Place) -> LaMPExample:
        """The example that stands there in the file."""
        return self._example(read_item(self._path, place), place)

    def _example(self, item: Any, place: Place) -> LaMPExample:
        try:
            return LaMPExample(item["input"], [*item["profile"]], self._outputs[item["id"]], place)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self._path} and {self.split}_outputs.json do not belong together, or are no LaMP files: {error!r}."
            ) from None

    def _lengths(self, example: LaMPExample) -> list[int]:
        """Tokens of each entry of the profile."""
        try:
            texts = [self.template.entry.format(**entry) for entry in example.profile]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self._path}: the profile of the example that begins {example.text[:40]!r} has no {error}, as "
                f"LaMP-{self.number} has; is it of another task?"
            ) from None
        return [len(ids) for ids in self.turns.plain.encode_all(texts)]

    def question(self, example: LaMPExample, entries: Sequence[int], answers: Sequence[str]) -> Question | None:
        """The question of an example after those entries; where they have no room, the last are left out.

        Args:
            example: what is asked.
            entries: their numbers in the profile.
            answers: the possible ones; the longest must fit.

        Returns:
            the question; None where the query alone has no room.
        """
        ids, encode = self._encode_answers(answers), self.turns.plain.encode
        bos = self.turns.tokenizer.bos_token_id
        begin = [] if bos is None else [bos]
        room = self.max_length - max(map(len, ids)) - 1 - len(begin)
        profile = [example.profile[i] for i in entries]
        steps, query, excess = fit(self.template, example.text, profile, encode, room)
        if excess:
            return None
        texts = [*steps, query]
        texts[0] = [*begin, *texts[0]]
        _, query, _ = fit(self.template, example.text, [], encode, room)
        before, bare = [*begin, *encode("Output:")], [*begin, *query]
        right = answers.index(example.output)
        return Question(texts[:-1], texts[-1], ids, right, f"LaMP-{self.number}", before, bare)


@dataclass(frozen=True)
class LaMPTaskOptions(TaskOptions):
    """How LaMP is evaluated.

    Attributes:
        number: of the task.
        split: of the files.
        max_length: most tokens of BOS, context, query, answer and EOS.
        seed: of the entries that are drawn; the authors' is 1337.
    """

    number: Number = 2
    split: Literal["train", "dev"] = "dev"
    max_length: int = bounded(MAX_LENGTH, 1)
    seed: int = bounded(1337, 0)


@dataclass
class LaMPTask(Task):
    """Accuracy over the classes of an example, by their likelihood as a whole; of generated answers the perplexity.

    Attributes:
        reader: of the examples.
        seed: of the entries that are drawn.
    """

    reader: Reader
    seed: int
    depths = (1, 2, 4, 8, DRAWN)

    def __post_init__(self) -> None:
        self.classes = self.reader.template.classes
        self.measures = "acc" if self.classes else "perplexity"
        self.replies = None if self.classes else Replies()

    def questions(self, depth: int) -> Iterator[Question]:
        if not 0 <= depth <= DRAWN:
            raise ConfigError(f"There is no time step {depth}; it is a number of entries, from 0 to {DRAWN}.")
        self.skipped, self.noted = Counter(), Counter()
        generator = np.random.default_rng(self.seed)
        for example, kept in self.reader.usable(self.skipped):
            entries = [kept[i] for i in draw(generator, len(kept), DRAWN)[:depth]]
            question = self.reader.question(example, entries, self.classes or [example.output])
            if question is None:
                self.skipped[NO_ROOM] += 1
                continue
            if len(question.steps) < depth:
                self.noted[f"fewer than {depth} entries: no room, or repeated in the question"] += 1
            yield question


def open_task(settings: TaskSettings, turns: Turns) -> LaMPTask:
    """The LaMP task in a folder.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
    """
    folder, options = settings.require_path("the folder of LaMP's files"), settings.read_options(LaMPTaskOptions)
    return LaMPTask(Reader(folder, options.split, options.number, options.max_length, turns), options.seed)


@dataclass(frozen=True)
class LaMPOptions(DataOptions):
    """What is trained on.

    Attributes:
        number: of the task.
        max_length: most tokens of BOS, entries, query, answer and EOS; entries without room are left out from the end.
    """

    number: Number = 2
    max_length: int = bounded(MAX_LENGTH, 1)


@dataclass(frozen=True)
class LaMPData(Epochs):
    """Samples of one task.

    Attributes:
        reader: of the training split.
        found: of each example that can be used, its place in the file and the numbers of its entries.
        held: samples to evaluate on.
        k: entries of a sample.
        random_steps: whether it is a random number of 1 to k instead.
        seed: of order, numbers and entries.
    """

    reader: Reader
    found: Sequence[tuple[Place, array]]
    held: Sequence[Sample]
    k: int
    random_steps: bool
    seed: int

    @property
    def longest(self) -> int:
        """Most text tokens that a sample may have."""
        return self.reader.max_length

    @property
    def deepest(self) -> int:
        """Most entries that a sample may have."""
        return self.k

    def __len__(self) -> int:
        return len(self.found)

    def sample(self, number: int, place: int) -> Sample:
        (at, kept), generator = self.found[number], _generator(f"{self.seed} entries {place}")
        k = int(generator.integers(1, self.k, endpoint=True)) if self.random_steps else self.k
        return _sample(self.reader, self.reader.example_at(at), kept, k, generator)

    def held_out(self) -> list[Sample]:
        return [*self.held]


def open_data(settings: DataSettings, turns: Turns, seed: int) -> LaMPData:
    """The training split in the folder of these settings, whose ``data.max_steps`` is the number of entries.

    What is left out is logged as a warning.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when files are absent or malformed, or nothing can be trained on.
    """
    left_out = Counter[str]()
    folder = settings.published_folder("train_questions.json, train_outputs.json and the same of dev")
    options = settings.read_options(LaMPOptions)
    train, dev = (Reader(folder, split, options.number, options.max_length, turns) for split in ("train", "dev"))
    found = [(example.place, array("I", kept)) for example, kept in _with_room(train, left_out)]
    log_left_out(f"LaMP-{options.number}", left_out)
    if not found:
        raise DataError(f"No example of LaMP-{options.number} in {folder} can be trained on.")
    generator = _generator(f"{seed} held out")
    held = [
        _sample(dev, example, kept, settings.max_steps, generator)
        for example, kept in islice(_with_room(dev, Counter()), settings.eval_samples)
    ]
    tell_held_out(len(held), settings, "the dev split has no more that can be used")
    return LaMPData(train, found, held, settings.max_steps, settings.random_steps, seed)


def _with_room(reader: Reader, left_out: Counter[str]) -> Iterator[tuple[LaMPExample, list[int]]]:
    """The usable examples whose query has room; the others are counted."""
    for example, kept in reader.usable(left_out):
        if reader.question(example, [], [example.output]) is None:
            left_out[NO_ROOM] += 1
        else:
            yield example, kept


def _generator(words: str) -> np.random.Generator:
    """One that these words alone determine."""
    return np.random.default_rng([*words.encode()])


def _sample(
    reader: Reader, example: LaMPExample, kept: Sequence[int], k: int, generator: np.random.Generator
) -> Sample:
    entries = [kept[i] for i in draw(generator, len(kept), k)]
    question = reader.question(example, entries, [example.output])
    assert question is not None  # its query has room
    return question.sample(reader.turns.eos_id)
