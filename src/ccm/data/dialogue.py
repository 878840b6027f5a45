"""DailyDialog and SODA: every turn is a step, the last but one the query, the last the answer.

The rules of layout and filtering are the authors' (Compressed Context Memory, ICLR 2024, section 4.1); of DailyDialog
the publisher's files are read, ``dialogues_train.txt`` and so on, as they are or gzipped.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ccm.config import build_settings, check_types
from ccm.data.examples import Examples
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
        depths: turns of an evaluation's dialogues, by the time step that it is reported as.
    """

    tidy: Callable[[str], str]
    shortest_turn: int
    longest: tuple[int, int]
    depths: Mapping[int, int]


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
        counts = [len(ids) for ids in turns.tokenizer([*dialogue.turns], add_special_tokens=False).input_ids]
        fits = corpus.shortest_turn <= min(counts) and max(counts) <= LONGEST_TURN and sum(counts) <= longest
        if len(counts) >= LEAST_TURNS and fits:
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
