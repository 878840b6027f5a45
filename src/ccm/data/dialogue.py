"""DailyDialog and SODA: every turn is a step, the last but one the query, the last the answer.

The rules of layout and filtering are the authors' (Compressed Context Memory, ICLR 2024, section 4.1); of DailyDialog
the publisher's files are read, ``dialogues_train.txt`` and so on, as they are or gzipped.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from ccm.config import build_settings, check_types
from ccm.data.examples import Examples
from ccm.data.questions import Question
from ccm.data.tasks import TaskSettings
from ccm.errors import ConfigError, DataError
from ccm.layout import Sample, Step
from ccm.recipe import Recipe
from ccm.turns import Turns

LEAST_TURNS, LONGEST_TURN = 3, 128  # shorter dialogues and longer turns are left out
_SPACES = re.compile(r" (?=[,.;?!])")


@dataclass(frozen=True)
class Corpus:
    """What differs between the two.

    Attributes:
        tidy: a turn's text as it is trained on.
        shortest_turn: fewest tokens of a turn.
        longest: most tokens of a whole dialogue to train on, and to evaluate on.
        depths: turns of an evaluation's dialogues, by the time step that they are reported as; the authors report 13
            context turns of DailyDialog as step 12.
    """

    tidy: Callable[[str], str]
    shortest_turn: int
    longest: tuple[int, int]
    depths: Mapping[int, int]

    def fits(self, counts: Sequence[int], longest: int) -> bool:
        """Whether a dialogue whose turns have so many tokens each is kept, where ``longest`` are allowed together."""
        turns = len(counts) >= LEAST_TURNS and self.shortest_turn <= min(counts) and max(counts) <= LONGEST_TURN
        return turns and sum(counts) <= longest


def tidy_soda(text: str) -> str:
    """No space before punctuation, and the plain forms of two signs."""
    return _SPACES.sub("", text.replace("。", ".").replace("\u2019", "'")).strip()


def tidy_daily(text: str) -> str:
    """As of SODA; apostrophes without spaces, and every full stop ends a sentence: "3.5" becomes "3. 5"."""
    text = text.replace("。", ".").replace("\u2019", "'")
    for sign in (",", ".", ";", "'", "?", "!"):  # one after the other: a space may only then stand before another
        text = text.replace(f" {sign}", sign)
    return ". ".join(part.strip() for part in text.replace("' ", "'").split(".")).strip()


DAILY = Corpus(tidy_daily, 0, (400, 600), {1: 3, 2: 4, 4: 6, 8: 10, 12: 15})
SODA = Corpus(tidy_soda, 1, (512, 512), {1: 3, 4: 6, 7: 9})


@dataclass(frozen=True)
class Options:
    """How a corpus is read.

    Attributes:
        drop_leaks: leave out the dialogues to train on that stand among those to evaluate on, too.
    """

    drop_leaks: bool = True

    def __post_init__(self) -> None:
        check_types(self, "data.options.")


@dataclass(frozen=True)
class Dialogue:
    """The texts of its turns. A sample is its beginning; its last turn alone is a target."""

    turns: tuple[str, ...]

    @property
    def length(self) -> int:
        return len(self.turns) - 2

    def cut(self, begin: int, end: int) -> Dialogue:
        """The turns from number ``begin``, counted from 0, to before number ``end``."""
        return Dialogue(self.turns[begin:end])

    def sample(self, turns: Turns, steps: int) -> Sample:
        *context, query, answer = self.turns[: steps + 2]
        read = [Step(turns.statement(text, first=i == 0)) for i, text in enumerate(context)]
        return Sample(read, turns.exchange(query, answer, first=not context))


def open_data(recipe: Recipe, turns: Turns) -> Examples:
    """The dialogues of a recipe whose ``data.path`` is the folder of the publisher's files.

    Raises:
        ConfigError: when it names no folder, or options that there are not.
        DataError: when a file is absent or malformed.
    """
    settings, corpus = recipe.data, DAILY
    options = build_settings(Options, settings.options, "data.options")
    if settings.path is None:
        raise ConfigError(f"The data set {settings.name!r} needs data.path, the folder that holds {_names('train')}.")
    folder = Path(settings.path)
    seen = {split: [*read_dialogues(folder, split, corpus)] for split in ("validation", "test")}
    known = {dialogue.turns for dialogues in seen.values() for dialogue in dialogues}
    train = [d for d in read_dialogues(folder, "train", corpus) if not (options.drop_leaks and d.turns in known)]
    held = keep(seen["validation"], turns, corpus, corpus.longest[1])[: settings.eval_samples]
    kept = keep(train, turns, corpus, corpus.longest[0])
    if not kept:
        raise DataError(f"No dialogue of {folder / _names('train')} can be trained on: all are too short or too long.")
    return Examples(kept, held, turns, settings.random_steps, recipe.seed)


@dataclass(frozen=True)
class TaskOptions:
    """How dialogues are evaluated.

    Attributes:
        protocol: "paper" cuts a dialogue to its first turns, so that each time step has targets of its own;
            "fixed-target" has the same targets at every step, and only the latest turns before them.
    """

    protocol: Literal["paper", "fixed-target"] = "paper"

    def __post_init__(self) -> None:
        check_types(self, "task.options.")


@dataclass
class DialogueTask:
    """Perplexity of a dialogue's last turn: DailyDialog's validation and test dialogues together, as the authors.

    Attributes:
        corpus: which of the two corpora.
        folder: of its files.
        turns: how a dialogue becomes tokens.
        options: how it is evaluated.
    """

    corpus: Corpus
    folder: Path
    turns: Turns
    options: TaskOptions
    measures: ClassVar = "perplexity"

    def __post_init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.noted: Counter[str] = Counter()

    @property
    def depths(self) -> Sequence[int]:
        return [*self.corpus.depths]

    @cached_property
    def _kept(self) -> tuple[list[Dialogue], int]:
        """The dialogues that are measured, and how many were left out."""
        read = [d for split in ("validation", "test") for d in read_dialogues(self.folder, split, self.corpus)]
        kept = keep(read, self.turns, self.corpus, self.corpus.longest[1])
        return kept, len(read) - len(kept)

    def questions(self, depth: int) -> Iterator[Question]:
        if depth not in self.corpus.depths:
            raise ConfigError(f"There is no time step {depth}; the steps are {', '.join(map(str, self.depths))}.")
        kept, left_out = self._kept
        deepest = max(self.corpus.depths.values())
        count = self.corpus.depths[depth]
        least = count if self.options.protocol == "paper" else deepest
        long_enough = [dialogue for dialogue in kept if len(dialogue.turns) >= least]
        self.skipped = Counter({"filtered": left_out, f"fewer than {least} turns": len(kept) - len(long_enough)})
        for dialogue in long_enough:
            cut = dialogue.cut(least - count, least)
            if all(cut.turns[i] for i in (0, -2, -1)):
                yield Question.of(cut.sample(self.turns, count - 2), self.turns.eos_id, task="dialog")
            else:
                self.skipped["an empty first turn, query or answer"] += 1


def open_task(settings: TaskSettings, turns: Turns) -> DialogueTask:
    """The dialogues to evaluate on, in the folder of the publisher's files.

    Raises:
        ConfigError: when no folder is named, or options that there are not.
        DataError: when a file is absent.
    """
    options = build_settings(TaskOptions, settings.options, "task.options")
    if settings.path is None:
        raise ConfigError(
            f"The task {settings.name!r} needs the folder that holds {_names('test')}; name it as --data."
        )
    return DialogueTask(DAILY, Path(settings.path), turns, options)


def read_dialogues(folder: Path, split: str, corpus: Corpus) -> Iterator[Dialogue]:
    """The dialogues of a split, tidied, in the order of the file.

    Args:
        folder: where the files are.
        split: "train", "validation" or "test".
        corpus: which of the two.

    Raises:
        DataError: when the file is absent or no text.
    """
    for line in _open(folder, split):
        texts = [corpus.tidy(text) for text in line.split("__eou__")]
        if texts[:-1]:  # the last turn ends in the mark, too
            yield Dialogue(tuple(texts[:-1]))


def keep(dialogues: Iterable[Dialogue], turns: Turns, corpus: Corpus, longest: int) -> list[Dialogue]:
    """Those that are long enough in turns, and not too long in tokens."""
    kept = []
    for dialogue in dialogues:
        ids = turns.tokenizer([*dialogue.turns], add_special_tokens=False).input_ids
        if corpus.fits([len(turn) for turn in ids], longest):
            kept.append(dialogue)
    return kept


def _names(split: str) -> str:
    return f"dialogues_{split}.txt"


def _open(folder: Path, split: str) -> Sequence[str]:
    plain = folder / _names(split)
    packed = plain.with_name(plain.name + ".gz")
    try:
        data = gzip.decompress(packed.read_bytes()) if packed.is_file() else plain.read_bytes()
        return data.decode("utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{folder} holds no {plain.name}, as it is or gzipped; download DailyDialog into it.") from None
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{plain} cannot be read: {error}; it may not be whole.") from error
