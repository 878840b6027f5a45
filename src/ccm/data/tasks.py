"""What an evaluation measures, behind one contract: each task is a row in ``TASKS``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal

from ccm.chat.turns import Turns
from ccm.core.config import TurnFormat
from ccm.core.errors import unknown_name
from ccm.data.questions import Question
from ccm.data.settings import SourceSettings

TASKS = {  # module with a function open_task
    "custom": "ccm.data.custom",
    "dialog": "ccm.data.dailydialog",
    "lamp": "ccm.data.lamp",
    "locomo": "ccm.data.locomo",
    "longmemeval": "ccm.data.longmemeval",
    "metaicl": "ccm.data.metaicl",
    "pg19": "ccm.data.pg19",
    "recall": "ccm.data.recall",
    "soda": "ccm.data.soda",
}
DRAWS = ("demonstrations", "seed")  # options of tasks that say what is drawn, and nothing else
PAPER_TURNS = TurnFormat(separator="\nA:", reply_separator="\nA:")  # of dialogues, where no adapter brings its own


@dataclass(frozen=True)
class TaskSettings(SourceSettings):
    """What is measured; its ``name`` is one of :data:`TASKS`."""

    kind, prefix = "task", "task."


@dataclass(frozen=True)
class Replies:
    """How generated replies are judged as texts.

    Attributes:
        figure: exact match, whether a reply holds the answer, F1 of words, or ROUGE-L.
        most: new tokens of a reply at most, 0 where none is generated; an evaluation sets what it was asked for.
    """

    figure: Literal["em", "holds", "answer_f1", "rouge_l"] = "rouge_l"
    most: int = 0


Choice = Literal["acc", "acc_norm", "acc_base"]


@dataclass(frozen=True)
class Averaging:
    """How the figures of a task's parts become one: accuracies by their plain mean, perplexities over all tokens.

    Attributes:
        exceptions: another accuracy than the task's own, by the beginnings of parts' names.
        left_out: beginnings of the names of parts that do not count; the replies of all parts are judged.
    """

    exceptions: Mapping[str, Choice] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def counts(self, part: str) -> bool:
        """Whether a part counts."""
        return not part.startswith(self.left_out)

    def choice(self, part: str, usual: Choice) -> Choice | None:
        """The accuracy that counts for a part; None where the part does not count."""
        if not self.counts(part):
            return None
        return next((choice for begins, choice in self.exceptions.items() if part.startswith(begins)), usual)


class Task(ABC):
    """What an evaluation asks of a task.

    Attributes:
        depths: the time steps that it is reported at.
        measures: the figure that counts: the "perplexity" of the one answer, or one of the accuracies.
        classes: the answers of every question, in order, where all questions have the same; else empty.
        replies: how generated replies are judged; None where none is generated, such as where an answer is chosen.
        averaging: how the figures of its parts become one.
        skipped: how many questions the latest call of :meth:`questions` left out, by reason.
        noted: how many it asked in another way than was meant, by reason.
    """

    depths: Sequence[int]
    measures: Literal["perplexity", "acc", "acc_norm"] = "perplexity"
    classes: Sequence[str] = ()
    replies: Replies | None = None
    averaging: Averaging = Averaging()
    skipped: Counter[str]
    noted: Counter[str]

    @abstractmethod
    def questions(self, depth: int) -> Iterator[Question]:
        """The questions at a time step, one after the other.

        Raises:
            ConfigError: when there is no such step.
        """


def open_task(settings: TaskSettings, turns: Turns) -> Task:
    """The task of that name; its files are looked at now.

    Raises:
        ConfigError: when there is no such task, or it lacks a setting.
        DataError: when its files are absent or malformed.
    """
    if settings.name not in TASKS:
        raise unknown_name("task", settings.name, TASKS)
    return import_module(TASKS[settings.name]).open_task(settings, turns)


def encode_words(turns: Turns) -> Callable[[Sequence[str]], list[list[int]]]:
    """A function from texts to their token ids as they read after a space, whether or not the tokenizer adds one."""
    both = [token for ids in turns.plain.encode_all("ab") for token in ids]
    space = "" if turns.tokenizer.decode(both) == "a b" else " "

    def encode(texts: Sequence[str]) -> list[list[int]]:
        stripped = (text.strip() for text in texts)
        return turns.plain.encode_all([text and space + text for text in stripped])

    return encode
