"""Batches: which samples every optimizer step takes, and how they are shared out over passes and processes.

Everything is a function of the recipe's seed and the number of the step, so that every process knows every batch
without asking, and a training that goes on after an interruption sees the batches it would have seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ccm.data import DataSet
from ccm.engine.layout import Sample, length
from ccm.training.recipe import Recipe


@dataclass(frozen=True)
class Batch:
    """Samples that are trained on together.

    Attributes:
        samples: the samples.
        starts: position of the first token of each.
        n_tok: N, the COMP tokens a step.
        number: of the training step.
    """

    samples: Sequence[Sample]
    starts: Sequence[int]
    n_tok: int
    number: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of one pass over them, padding and COMP tokens included."""
        return len(self.samples) * max(self._widths)

    @property
    def _widths(self) -> list[int]:
        return [length(sample) + self.n_tok * len(sample.steps) for sample in self.samples]

    def passes(self, tokens: int, processes: int) -> list[Batch]:
        """This batch in as few parts of at most ``tokens`` tokens, padding and COMP tokens included, as give every
        process alike many; the parts are larger only where samples are too long or too few for that.

        There are at least as many samples as ``processes``.
        """
        widths = self._widths
        order = sorted(range(len(widths)), key=widths.__getitem__)
        for count in range(processes, len(order) + 1, processes):
            parts = [order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)]
            if all(len(part) * widths[part[-1]] <= tokens for part in parts):
                break
        return [self._part(part) for part in parts]

    def _part(self, rows: Sequence[int]) -> Batch:
        return replace(self, samples=[self.samples[i] for i in rows], starts=[self.starts[i] for i in rows])


@dataclass(frozen=True)
class Batches:
    """The batches of a training.

    Attributes:
        data: where samples come from.
        size: samples of a batch.
        pool: batches that are drawn together and sorted by length.
        n_tok: the fewest and the most COMP tokens a step; every batch draws its own.
        max_offset: the last position that a sample may begin at.
        seed: of all draws.
    """

    data: DataSet
    size: int
    pool: int
    n_tok: tuple[int, int]
    max_offset: int
    seed: int

    @staticmethod
    def of(recipe: Recipe, data: DataSet) -> Batches:
        """Those of a recipe."""
        most = recipe.adapter.n_tok
        n_tok = (1 if recipe.random_n_tok else most, most)
        return Batches(data, recipe.batch_size, recipe.pool, n_tok, recipe.max_offset, recipe.seed)

    def since(self, step: int) -> Iterator[Batch]:
        """The batches of the steps number ``step``, from 0, and all that follow, without end."""
        while True:
            index, within = divmod(step, self.pool)
            for samples in self._pool(index)[within:]:
                yield self._batch(step, samples)
                step += 1

    def _pool(self, index: int) -> list[list[Sample]]:
        """``pool`` batches of samples of like length, in random order."""
        rng = random.Random(f"{self.seed} pool {index}")
        samples = self.data.pool(index, self.size * self.pool)
        rng.shuffle(samples)  # equal lengths are not left in the order of the data
        samples.sort(key=lambda sample: length(sample) + self.n_tok[1] * len(sample.steps))
        batches = [samples[i : i + self.size] for i in range(0, len(samples), self.size)]
        rng.shuffle(batches)
        return batches

    def _batch(self, step: int, samples: list[Sample]) -> Batch:
        rng = random.Random(f"{self.seed} batch {step}")
        starts = [rng.randint(0, self.max_offset) for _ in samples]
        return Batch(samples, starts, rng.randint(*self.n_tok), step)
