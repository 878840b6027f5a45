"""Examples to train on, in shuffled epochs, and some of them held out to evaluate on."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from heapq import nlargest
from itertools import chain
from typing import Protocol, TypeVar

from ccm.chat.turns import Turns
from ccm.core.processes import get_logger
from ccm.data.settings import DataSettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample, length

T = TypeVar("T")
logger = get_logger(__name__)
_LARGEST = 64  # examples among which the longest is sought: how many tokens a text has is known when it is encoded


class PlacedSamples(ABC):
    """A data set (:class:`ccm.data.DataSet`) whose sample at a place of the training follows from the place alone."""

    @abstractmethod
    def at(self, place: int) -> Sample:
        """The sample at a place, counted from 0."""

    def pool(self, index: int, count: int) -> list[Sample]:
        """The samples at places ``index * count`` and following."""
        return [self.at(place) for place in range(index * count, (index + 1) * count)]

    def measure(self, model: CCMModel) -> dict[str, float]:
        return {}


class Epochs(PlacedSamples):
    """Numbered examples: one shuffled epoch after the other.

    Attributes:
        seed: of the order, and of what is random in the samples.
    """

    seed: int

    @abstractmethod
    def __len__(self) -> int:
        """Examples to train on."""

    @abstractmethod
    def sample(self, number: int, place: int) -> Sample:
        """What an example is at a place of the training; what is random in it follows from the place."""

    def at(self, place: int) -> Sample:
        epoch, within = divmod(place, len(self))
        return self.sample(order(len(self), f"{self.seed} epoch {epoch}")[within], place)


class Example(Protocol):
    """One conversation, task or stretch of text."""

    @property
    def length(self) -> int:
        """The most context steps that a sample of it has, at least 1."""
        ...

    @property
    def size(self) -> int:
        """How much text it has, in whatever unit the others count."""
        ...

    def sample(self, turns: Turns, steps: int) -> Sample:
        """``steps`` steps of context, and the query after them."""
        ...


@dataclass(frozen=True)
class Examples(Epochs):
    """Examples that can be had by number: in memory, or on disk (:class:`ccm.data.spool.Spool`).

    Attributes:
        examples: to train on.
        held: to evaluate on.
        turns: how they become tokens.
        random_steps: whether a sample has a random number of steps.
        seed: of the order and of these numbers.
    """

    examples: Sequence[Example]
    held: Sequence[Example]
    turns: Turns
    random_steps: bool
    seed: int

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def longest(self) -> int:
        """Most text tokens of a sample, of the examples with most text."""
        largest = nlargest(_LARGEST, chain(self.examples, self.held), key=lambda example: example.size)
        return max(length(example.sample(self.turns, example.length)) for example in largest)

    @cached_property
    def deepest(self) -> int:
        """Most context steps of a sample."""
        return max(example.length for example in chain(self.examples, self.held))

    def sample(self, number: int, place: int) -> Sample:
        example = self.examples[number]
        most = example.length
        steps = random.Random(f"{self.seed} steps {place}").randint(1, most) if self.random_steps else most
        return example.sample(self.turns, steps)

    def held_out(self) -> list[Sample]:
        return [example.sample(self.turns, example.length) for example in self.held]


@lru_cache(maxsize=16)  # a mixture has several at a time
def order(count: int, seed: str) -> list[int]:
    """The numbers below ``count``, shuffled."""
    return random.Random(seed).sample(range(count), count)


def hold_out(groups: Sequence[Sequence[T]], most: int, seed: str) -> tuple[list[T], list[Sequence[T]]]:
    """Whole groups of at most ``most`` examples together and a tenth of all, and the groups that stay."""
    room = min(most, sum(map(len, groups)) // 10)
    held: list[T] = []
    left = set(range(len(groups)))
    for i in order(len(groups), seed):
        if len(held) + len(groups[i]) <= room:
            held += groups[i]
            left.remove(i)
    return held, [groups[i] for i in sorted(left)]


def tell_held_out(held: int, settings: DataSettings, why: str) -> None:
    """Warn where fewer samples are there to evaluate on than ``data.eval_samples`` asks for."""
    if held < settings.eval_samples:
        logger.warning(
            "%s: %s of %s samples are held out to evaluate on (data.eval_samples): %s. The training itself needs none.",
            *(settings.name, f"{held:,}", f"{settings.eval_samples:,}", why),
        )


def log_left_out(title: str, counts: Counter[str]) -> None:
    """Warn how many examples of a data set were left out, by reason."""
    for why, count in counts.items():
        if count:
            logger.warning("%s: examples left out, %s: %s", title, why, f"{count:,}")
