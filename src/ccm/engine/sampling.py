"""Sampling: the choice of tokens for a reply."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ccm.core.config import bounded, check_fields
from ccm.core.errors import ConfigError

COLDEST = 1e-6  # logits divided by a much lower temperature overflow


@dataclass(frozen=True)
class Sampling:
    """How the tokens of replies are chosen: greedily, unless there is a temperature.

    Attributes:
        temperature: 0 is greedy; else at least :data:`COLDEST`.
        top_k: choose among the k likeliest tokens; 0 is all.
        top_p: choose among the likeliest tokens that together have this probability, in (0, 1].
        repetition_penalty: above 1 discourages tokens that have occurred; from 0 to 1 encourages them.
        max_new_tokens: the longest reply, in tokens.
        seed: seed of the sampling; None uses torch's own generator.
        stops: texts at which a reply ends; they are no part of it.

    Raises:
        ConfigError: when a value is of another type, or not allowed.
    """

    temperature: float = bounded(0.0)
    top_k: int = bounded(0, 0)
    top_p: float = bounded(1.0, 0.0, 1.0)
    repetition_penalty: float = bounded(1.0, 0.0)
    max_new_tokens: int = bounded(256, 1)
    seed: int | None = bounded(None, 0, 2**63 - 1)
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature != 0 and self.temperature < COLDEST:
            raise ConfigError(f"temperature is {self.temperature}; it must be 0 (greedy), or at least {COLDEST}.")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise ConfigError(f"{name} is 0; it must be above 0, and 1 changes nothing.")
        if not all(self.stops):
            raise ConfigError(f"stops is {self.stops}; each must have one character at least.")

    def generator(self, number: int, device: torch.device | str = "cpu") -> torch.Generator | None:
        """The random generator for reply number ``number`` of a conversation; None stands for torch's own."""
        if self.seed is None:
            return None
        drawn = random.Random(f"{self.seed} reply {number}").getrandbits(63)
        return torch.Generator(device).manual_seed(drawn)

    def choose(
        self, logits: torch.Tensor, ids: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Choose ids (B,) by logits (B, V).

        The repetition penalty applies to the tokens in ``ids`` (B, T); without them there is none.
        """
        steps: list[LogitsProcessor] = []
        if ids is not None and ids.shape[1] and self.repetition_penalty != 1.0:
            steps.append(RepetitionPenaltyLogitsProcessor(self.repetition_penalty))
        if self.temperature != 0:
            steps.append(TemperatureLogitsWarper(self.temperature))
            steps += [TopKLogitsWarper(self.top_k)] if self.top_k else []
            steps.append(TopPLogitsWarper(self.top_p))
        nothing = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device)
        scores = LogitsProcessorList(steps)(nothing if ids is None else ids, logits.float())
        if self.temperature == 0:
            return scores.argmax(-1)
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]


Read = Callable[[Tensor], Tensor]  # reads further ids (B, T) -> logits (B, V) of the next token


@torch.no_grad()
def tokens(
    logits: Tensor,
    read: Read,
    sampling: Sampling | None = None,
    *,
    before: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the ids (B,) of one token after another, without end. A token is read when the next one is asked for.

    Args:
        logits: (B, V) logits of the first token.
        read: reads one token of each row.
        sampling: how to choose tokens; greedily if None.
        before: (B, T) earlier ids to which the repetition penalty applies too.
        generator: random generator of the sampling; torch's own if None.
    """
    sampling = sampling or Sampling()
    said = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device) if before is None else before
    while True:
        chosen = sampling.choose(logits, said, generator)
        yield chosen
        said = torch.cat([said, chosen[:, None]], dim=1)
        logits = read(chosen[:, None])
