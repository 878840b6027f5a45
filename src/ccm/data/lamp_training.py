"""LaMP to train on: an example after entries of its profile that are drawn anew every time.

The rules are the authors' (Compressed Context Memory, ICLR 2024, section 4.1). Files are the publisher's,
``train_questions.json`` and so on; the dev split is evaluated on. Every entry is tokenized once before training begins,
to see whether it is short enough. In memory is where each example stands in its file, and the numbers of its entries,
four bytes each; the texts are read again when they are needed.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ccm.chat.turns import Turns
from ccm.core.config import build_settings, check_types
from ccm.core.errors import ConfigError, DataError
from ccm.data.examples import Epochs, folder_of, log_left_out, tell_held_out
from ccm.data.lamp import MAX_LENGTH, NO_ROOM, Example, Reader, draw, template
from ccm.data.reading import Place
from ccm.data.settings import DataSettings
from ccm.engine.layout import Sample


@dataclass(frozen=True)
class Options:
    """What is trained on.

    Attributes:
        number: of the task: 1 to 5 or 7.
        max_length: most tokens of BOS, entries, query, answer and EOS; entries without room are left out from the end.
    """

    number: int = 2
    max_length: int = MAX_LENGTH

    def __post_init__(self) -> None:
        check_types(self, "data.options.")
        template(self.number)
        if self.max_length < 1:
            raise ConfigError(f"data.options.max_length is {self.max_length}; it must be at least 1.")


@dataclass(frozen=True)
class Found:
    """An example that can be trained on.

    Attributes:
        place: where it stands in the file.
        kept: numbers of the entries that may be drawn.
    """

    place: Place
    kept: array


@dataclass(frozen=True)
class LaMPData(Epochs):
    """Samples of one task.

    Attributes:
        reader: of the training split.
        found: its examples that can be used.
        held: samples to evaluate on.
        k: entries of a sample.
        random_steps: whether it is a random number of 1 to k instead.
        seed: of order, numbers and entries.
    """

    reader: Reader
    found: Sequence[Found]
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
        found, generator = self.found[number], _generator(f"{self.seed} entries {place}")
        k = int(generator.integers(1, self.k, endpoint=True)) if self.random_steps else self.k
        return _sample(self.reader, self.reader.example_at(found.place), found.kept, k, generator)

    def held_out(self) -> list[Sample]:
        return [*self.held]


def _generator(words: str) -> np.random.Generator:
    """One that these words alone determine."""
    return np.random.default_rng([*words.encode()])


def _sample(reader: Reader, example: Example, kept: Sequence[int], k: int, generator: np.random.Generator) -> Sample:
    entries = [kept[i] for i in draw(generator, len(kept), k)]
    question = reader.question(example, entries, [example.output])
    assert question is not None  # those without room are not among the found
    return question.sample(reader.turns.eos_id)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> LaMPData:
    """The training split in the folder of these settings, whose ``data.max_steps`` is the number of entries.

    What is left out is logged as a warning.

    Raises:
        ConfigError: when it names no folder, or options that there are not.
        DataError: when files are absent or malformed, or nothing can be trained on.
    """
    left_out = Counter[str]()
    folder = folder_of(settings, "train_questions.json, train_outputs.json and the same of dev")
    options = build_settings(Options, settings.options, "data.options")
    train, dev = (Reader(folder, split, options.number, options.max_length, turns) for split in ("train", "dev"))
    found = [Found(example.place, array("I", kept)) for example, kept in _usable(train, left_out)]
    log_left_out(f"LaMP-{options.number}", left_out)
    if not found:
        raise DataError(f"No example of LaMP-{options.number} in {folder} can be trained on.")
    generator = _generator(f"{seed} held out")
    held = [
        _sample(dev, example, kept, settings.max_steps, generator)
        for example, kept in islice(_usable(dev, Counter()), settings.eval_samples)
    ]
    tell_held_out(len(held), settings, "the dev split has no more that can be used")
    return LaMPData(train, found, held, settings.max_steps, settings.random_steps, seed)


def _usable(reader: Reader, left_out: Counter[str]) -> Iterator[tuple[Example, list[int]]]:
    """The examples that can be used, with the numbers of their entries; the others are counted by reason."""
    for example in reader.examples():
        kept = reader.kept(example)
        if isinstance(kept, str):
            left_out[kept] += 1
        elif reader.question(example, [], [example.output]) is None:
            left_out[NO_ROOM] += 1
        else:
            yield example, kept
