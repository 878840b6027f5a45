"""Batches: which samples each optimizer step trains on, and how they are split into passes for the processes.

A batch depends only on the recipe's seed and on the step number. Every process can therefore compute every batch, and a
resumed training sees the same batches as an uninterrupted one.
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
        starts: the position of each sample's first token.
        n_tok: N, the COMP tokens per step.
        number: the number of the training step, from 0.
    """

    samples: Sequence[Sample]
    starts: Sequence[int]
    n_tok: int
    number: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of a single pass over the batch, with padding and COMP tokens."""
        return len(self.samples) * max(self._widths)

    @property
    def _widths(self) -> list[int]:
        return [length(sample) + self.n_tok * len(sample.steps) for sample in self.samples]

    def passes(self, tokens: int, processes: int) -> list[Batch]:
        """Split the batch into parts of at most ``tokens`` tokens, with padding and COMP tokens.

        The parts are as few as possible, and every process gets the same number of them. A part exceeds ``tokens``
        only if a sample is too long, or if the batch is too small to be split further. The batch must have at least
        as many samples as there are ``processes``.
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
        data: the data set that the samples come from.
        size: samples per batch.
        pool: the number of batches that are drawn together and sorted by length.
        n_tok: the smallest and the largest N; every batch draws its own.
        max_offset: the largest position that a sample may begin at.
        seed: the seed of all draws.
    """

    data: DataSet
    size: int
    pool: int
    n_tok: tuple[int, int]
    max_offset: int
    seed: int

    @staticmethod
    def of(recipe: Recipe, data: DataSet) -> Batches:
        """The batches of a recipe."""
        most = recipe.adapter.n_tok
        n_tok = (1 if recipe.random_n_tok else most, most)
        return Batches(data, recipe.batch_size, recipe.pool, n_tok, recipe.max_offset, recipe.seed)

    def since(self, step: int) -> Iterator[Batch]:
        """Yield the batch of step ``step`` (from 0) and of every later step, without end."""
        while True:
            index, within = divmod(step, self.pool)
            for samples in self._pool(index)[within:]:
                yield self._batch(step, samples)
                step += 1

    def _pool(self, index: int) -> list[list[Sample]]:
        """``pool`` batches, each of samples of similar length, in random order."""
        rng = random.Random(f"{self.seed} pool {index}")
        samples = self.data.pool(index, self.size * self.pool)
        rng.shuffle(samples)  # samples of equal length must not keep the order of the data
        samples.sort(key=lambda sample: length(sample) + self.n_tok[1] * len(sample.steps))
        batches = [samples[i : i + self.size] for i in range(0, len(samples), self.size)]
        rng.shuffle(batches)
        return batches

    def _batch(self, step: int, samples: list[Sample]) -> Batch:
        rng = random.Random(f"{self.seed} batch {step}")
        starts = [rng.randint(0, self.max_offset) for _ in samples]
        return Batch(samples, starts, rng.randint(*self.n_tok), step)
