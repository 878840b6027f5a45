"""Objectives: the losses that a training minimizes.

last      cross-entropy of the query's targets, the final output (the paper's objective)
every     cross-entropy of each step's answer given the memory of earlier steps: T losses from one pass
distill   KL divergence of the answers' distribution from the model's own distribution with full context

A pass returns sums over target tokens; the training loop divides them by the number of targets in the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from ccm.engine.adapted import token_losses
from ccm.engine.layout import IGNORE, Sample, Step


@dataclass(frozen=True)
class Objective:
    """A weighted sum of losses, each a mean over its target tokens.

    Attributes:
        weights: the weight of each loss by its name; all are above 0.
        every_answer: whether the answers within the context are targets too.
    """

    weights: Mapping[str, float]
    every_answer: bool

    @staticmethod
    def of(weights: Mapping[str, float], *, remembered: bool) -> Objective:
        """The objective of a recipe.

        Args:
            weights: the weight of each loss by its name; losses of weight 0 are left out.
            remembered: whether a step sees the memory of earlier steps. If it does, "distill" without "last" trains
                the answers within the context too.
        """
        kept = {name: float(weight) for name, weight in weights.items() if weight}
        return Objective(kept, "every" in kept or ("last" not in kept and remembered))

    @property
    def needs_teacher(self) -> bool:
        """Whether a loss compares with the distribution under full context."""
        return "distill" in self.weights

    def targeted(self, sample: Sample) -> Sample:
        """Drop the targets that no loss counts."""
        return sample if self.every_answer else replace(sample, steps=[Step(step.ids) for step in sample.steps])

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """The number of target tokens of each loss."""
        last = sum(count_targets(sample.query) for sample in samples)
        every = last + sum(count_targets(step) for sample in samples for step in sample.steps if self.every_answer)
        return {name: last if name == "last" else every for name in self.weights}

    def losses(self, logits: Tensor, targets: Tensor, last: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """Each loss as a scalar, summed over its target tokens.

        Args:
            logits: (P, V) logits at the P tokens that have a target.
            targets: (P,) int64 target ids.
            last: (P,) bool, whether a target belongs to the final output.
            teacher: (P, V) logits at the same tokens under full context; None if no loss needs them.
        """
        found = {}
        if self.weights.keys() & {"last", "every"}:
            by_token = token_losses(logits, targets)
            found = {"last": (by_token * last).sum(), "every": by_token.sum()}
        if teacher is not None:
            ours, theirs = log_softmax(logits.float(), -1), log_softmax(teacher.float(), -1)
            found["distill"] = (theirs.exp() * (theirs - ours)).sum()
        return {name: found[name] for name in self.weights}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> Tensor:
        """The weighted sum of the losses, each divided by its number of targets."""
        return torch.stack([self.weights[name] * sums[name] / max(counts[name], 1) for name in self.weights]).sum()


def count_targets(step: Step) -> int:
    """The number of tokens of a step that have a target."""
    return sum(target != IGNORE for target in step.targets)
