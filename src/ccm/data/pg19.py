"""PG19, books as running text: the publisher's folders ``train``, ``validation`` and ``test``, or any folder of texts.

Each file is a book, ``.txt`` or gzipped (Rae et al., Compressive Transformers for Long-Range Sequence Modelling, ICLR
2020; google-deepmind/pg19).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from pathlib import Path
from typing import Literal

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError
from ccm.data.questions import Question
from ccm.data.reading import find_files, read_text
from ccm.data.settings import TaskOptions
from ccm.data.tasks import Task, TaskSettings
from ccm.data.text import Library, open_stretches, split

Ids = Sequence[int]
TITLE, ENDINGS = "PG19", (".txt", ".txt.gz")


def read(file: Path) -> Iterator[str]:
    """The book that a file is.

    Raises:
        DataError: when it cannot be read.
    """
    yield read_text(file)


@dataclass(frozen=True)
class PG19TaskOptions(TaskOptions):
    """How books are evaluated.

    Attributes:
        split: which of the publisher's folders.
        chunk_tokens: tokens of a step.
        deepest: the last time step.
        targets: chunks of each book whose perplexity is taken.
    """

    split: Literal["train", "validation", "test"] = "test"
    chunk_tokens: int = bounded(128, 2)
    deepest: int = bounded(8, 1)
    targets: int = bounded(10, 1)


@dataclass
class PG19Task(Task):
    """Perplexity of chunks of books, given the latest chunks before them: the same targets at every time step.

    Attributes:
        files: the books.
        turns: whose tokenizer is used.
        options: how they are cut.
    """

    files: Sequence[Path]
    turns: Turns
    options: PG19TaskOptions

    def __post_init__(self) -> None:
        self.depths = [2**i for i in range(self.options.deepest.bit_length())]

    def questions(self, depth: int) -> Iterator[Question]:
        if not 0 <= depth <= self.options.deepest:
            raise ConfigError(f"There is no time step {depth}; the steps are chunks, up to {self.options.deepest}.")
        stretches, self.skipped, self.noted = self._stretches
        bos = self.turns.tokenizer.bos_token_id
        for book, stretch in stretches:
            *steps, target = stretch[-depth - 1 :]
            begin, query = [] if bos is None else [bos], target[:1]  # the first token of the target begins the query
            texts = [*steps, query]
            texts[0] = [*begin, *texts[0]]
            yield Question(texts[:-1], texts[-1], [target[1:]], task=TITLE, bare=[*begin, *query], source=book)

    @cached_property
    def _stretches(self) -> tuple[list[tuple[str, list[Ids]]], Counter[str], Counter[str]]:
        """Each target with the chunks before it, and its book: the first of every book, then the second of every book
        and so on; books that are left out, and that have fewer targets, by reason."""
        least = self.options.deepest + 1
        stretches: list[tuple[int, str, list[Ids]]] = []
        skipped: Counter[str] = Counter()
        noted: Counter[str] = Counter()
        for file in self.files:
            chunks = self._chunks(file)
            targets = spread(range(least - 1, len(chunks)), self.options.targets)
            stretches += [(i, file.name, chunks[end + 1 - least : end + 1]) for i, end in enumerate(targets)]
            if not targets:
                skipped[f"books of less than {least} chunks"] += 1
            elif len(targets) < self.options.targets:
                noted[f"books with fewer than {self.options.targets} targets"] += 1
        return [(book, stretch) for _, book, stretch in sorted(stretches, key=itemgetter(0))], skipped, noted

    def _chunks(self, file: Path) -> list[Ids]:
        """The whole chunks of a book."""
        ids, size = self.turns.plain.encode(read_text(file)), self.options.chunk_tokens
        return [ids[i : i + size] for i in range(0, len(ids) - size + 1, size)]


def spread(places: range, count: int) -> list[int]:
    """So many of the places, at equal distances, the last among them; all where there are fewer."""
    count = min(count, len(places))
    return [places[len(places) * (i + 1) // count - 1] for i in range(count)]


open_data = partial(open_stretches, Library(TITLE, ENDINGS, "train", read, files=16, texts=1))


def open_task(settings: TaskSettings, turns: Turns) -> PG19Task:
    """To evaluate on.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when there are no books.
    """
    folder, options = settings.require_path("the folder of PG19's books"), settings.read_options(PG19TaskOptions)
    return PG19Task(find_files(split(folder, options.split), ENDINGS), turns, options)
