"""Objectives: what the training makes small. Sums over target tokens; the loop divides by the tokens of a whole batch.

last      cross-entropy of the final output, the query's targets (the authors')
every     cross-entropy of each step's answer, given the memory of the steps before: T losses from one pass
distill   divergence from the model's own distribution on the answers with the whole context in view
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
        weights: by name, all above 0.
        every_answer: whether the answers within the context are targets as well.
    """

    weights: Mapping[str, float]
    every_answer: bool

    @staticmethod
    def of(weights: Mapping[str, float], *, remembered: bool) -> Objective:
        """The objective of a recipe. Alone, "distill" takes every answer, where those within the context are given
        with the memory before them in view: ``remembered``."""
        kept = {name: float(weight) for name, weight in weights.items() if weight}
        return Objective(kept, "every" in kept or ("last" not in kept and remembered))

    @property
    def needs_teacher(self) -> bool:
        """Whether the distribution with full context is asked for."""
        return "distill" in self.weights

    def targeted(self, sample: Sample) -> Sample:
        """The sample without the targets that no loss counts."""
        return sample if self.every_answer else replace(sample, steps=[Step(step.ids) for step in sample.steps])

    def counts(self, samples: Sequence[Sample]) -> dict[str, int]:
        """Target tokens of each loss."""
        last = sum(_targets(sample.query) for sample in samples)
        every = last + sum(_targets(step) for sample in samples for step in sample.steps if self.every_answer)
        return {name: last if name == "last" else every for name in self.weights}

    def losses(self, logits: Tensor, targets: Tensor, last: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
        """Each loss, summed over its target tokens.

        Args:
            logits: (P, V) at the P tokens that have a target.
            targets: (P,) these targets.
            last: (P,) bool, whether they are of the final output.
            teacher: (P, V) logits at the same tokens with full context; None where not asked for.
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
        """The weighted sum of the means."""
        return torch.stack([self.weights[name] * sums[name] / max(counts[name], 1) for name in self.weights]).sum()


def _targets(step: Step) -> int:
    return sum(target != IGNORE for target in step.targets)
