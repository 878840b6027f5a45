"""LaMP: a user's earlier texts as steps, and a query that they help to answer as this user would.

    Instruction: entry 1 | , and entry 2 | ... | . question  Input: text  Output:      an entry of the profile is a step

The rules of templates, retrieval and room are the authors' (Compressed Context Memory, ICLR 2024, section 4.1), in the
layout of their online memories; every method reads the same text. Files are the publisher's: ``SPLIT_questions.json``,
a list of objects with id, input and profile, and ``SPLIT_outputs.json``, an object with a list of id and output, golds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from ccm.config import build_settings, check_types
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings, encode_word
from ccm.errors import ConfigError, DataError
from ccm.turns import Turns

SHORTEST, LONGEST, KEPT, LEAST_REVIEWS = 1, 99, 0.9, 32  # tokens of an entry; share of entries; entries of LaMP-3
MAX_LENGTH = 1024
Entry = Mapping[str, str]
Ids = list[int]


@dataclass(frozen=True)
class Template:
    """How the examples of one of the tasks read.

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
    2: Template(
        "article:",
        'the category for the article: "{text}" is "{category}"',
        classes=_TOPICS,
    ),
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


def template(number: int) -> Template:
    """The template of a task.

    Raises:
        ConfigError: when there is none of that number.
    """
    if number not in TEMPLATES:
        raise ConfigError(f"There is no LaMP-{number}; there are {', '.join(map(str, TEMPLATES))}.")
    return TEMPLATES[number]


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
    if not lengths or len(kept) / len(lengths) < KEPT or (number == 3 and len(kept) < LEAST_REVIEWS):
        return None
    return kept


class Retriever:
    """Draws entries of a profile: the authors take them at random.

    Args:
        k: how many.
        train: whether for training (seed 42), else for evaluation (seed 1337): the first k of 16, so at most 16.
    """

    POOL = 16

    def __init__(self, k: int, *, train: bool) -> None:
        self.k, self.train = k, train
        self.generator = np.random.default_rng(42 if train else 1337)

    def draw(self, entries: int) -> list[int]:
        """Numbers of entries, of a profile that has so many; again and again the same where it has too few."""
        count = self.k if self.train else self.POOL
        return self.generator.choice(entries, count, replace=entries < count).tolist()[: self.k]


@dataclass(frozen=True)
class Options:
    """How LaMP is evaluated.

    Attributes:
        number: of the task: 1 to 5 or 7.
        split: of the files.
        max_length: most tokens of BOS, context, query, answer and EOS.
    """

    number: int = 2
    split: Literal["train", "dev"] = "dev"
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        check_types(self, "task.options.")
        template(self.number)
        if self.max_length < 1:
            raise ConfigError(f"task.options.max_length is {self.max_length}; it must be at least 1.")


@dataclass
class LaMPTask:
    """Accuracy over the classes of an example, by their likelihood as a whole; of generated answers the perplexity.

    Attributes:
        folder: of the files.
        turns: whose tokenizer is used.
        options: how.
    """

    folder: Path
    turns: Turns
    options: Options
    depths: ClassVar = (1, 2, 4, 8, 16)

    def __post_init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()
        self.template = template(self.options.number)
        self.classes = self.template.classes
        self.measures: Literal["perplexity", "acc"] = "acc" if self.template.classes else "perplexity"
        self.encode_answer = encode_word(self.turns)

    @cached_property
    def _examples(self) -> list[tuple[str, list[Entry], str]]:
        """Input, profile and output of all examples."""
        names = [f"{self.options.split}_{part}.json" for part in ("questions", "outputs")]
        questions, outputs = (_read(self.folder / name) for name in names)
        try:
            golds = {gold["id"]: gold["output"] for gold in outputs["golds"]}
            return [(q["input"], q["profile"], golds[q["id"]]) for q in questions]
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder / names[0]} and {names[1]} do not belong together, or are no LaMP files: {error!r}."
            ) from None

    def questions(self, depth: int) -> Iterator[Question]:
        if not 0 <= depth <= Retriever.POOL:
            raise ConfigError(f"There is no time step {depth}; it is a number of entries, from 0 to {Retriever.POOL}.")
        self.skipped, self.noted = Counter(), Counter()
        retriever = Retriever(depth, train=False)
        for number, (text, profile, output) in enumerate(self._examples):
            lengths = [len(self.turns.encode_reply(self._text(number, entry))) for entry in profile]
            kept = kept_entries(lengths, self.options.number)
            answers = [*self.template.classes] or [output.strip()]
            if kept is None:
                self.skipped["too few entries of the profile are short enough, or it is empty"] += 1
            elif output.strip() not in answers or not output.strip():
                self.skipped["the answer is none of the classes, or empty"] += 1
            else:
                drawn = [profile[kept[i]] for i in retriever.draw(len(kept))]
                yield from self._question(text, drawn, answers, answers.index(output.strip()))

    def _question(self, text: str, profile: Sequence[Entry], answers: list[str], right: int) -> Iterator[Question]:
        ids = [self.encode_answer(answer) for answer in answers]
        bos = self.turns.tokenizer.bos_token_id
        begin = [] if bos is None else [bos]
        room = self.options.max_length - max(map(len, ids)) - 1 - len(begin)
        steps, query, excess = fit(self.template, text, profile, self.turns.encode_reply, room)
        if excess:
            self.skipped["the query alone has no room"] += 1
            return
        if len(steps) < len(profile):
            self.noted[f"fewer than {len(profile)} entries: no room, or repeated in the question"] += 1
        texts = [*steps, query]
        texts[0] = [*begin, *texts[0]]
        before = [*begin, *self.turns.encode_reply("Output:")]
        yield Question(texts[:-1], texts[-1], ids, right, f"LaMP-{self.options.number}", before)

    def _text(self, number: int, entry: Entry) -> str:
        try:
            return self.template.entry.format(**entry)
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.folder}: the profile of example {number} has no {error}, as LaMP-{self.options.number} has; is "
                "it of another task?"
            ) from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"There is no file {path}; download it from the LaMP benchmark into that folder.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from None


def open_task(settings: TaskSettings, turns: Turns) -> LaMPTask:
    """The LaMP task in a folder.

    Raises:
        ConfigError: when no folder is named, or options that there are not.
    """
    if settings.path is None:
        raise ConfigError("The task 'lamp' needs the folder of LaMP's files; name it as --data.")
    return LaMPTask(Path(settings.path), turns, build_settings(Options, settings.options, "task.options"))
