"""Sampling: how the tokens of a reply are chosen."""

from __future__ import annotations

import math
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

from ccm.core.config import check_fields
from ccm.core.errors import InputError

COLDEST = 1e-6  # far below it, logits divided by the temperature overflow


@dataclass(frozen=True)
class Sampling:
    """How replies are chosen; greedy unless a temperature is given.

    Attributes:
        temperature: 0 is greedy; else at least :data:`COLDEST`.
        top_k: only the k likeliest tokens; 0 is all.
        top_p: only the likeliest tokens that together have this probability.
        repetition_penalty: above 1 discourages tokens that have occurred, below 1 (and above 0) encourages them.
        max_new_tokens: the longest reply, in tokens.
        seed: of the sampling, from 0 to 2**63 - 1; None draws from torch's own generator.
        stops: texts at which a reply ends; they are no part of it.

    Raises:
        ConfigError: when a value is of another type.
        InputError: when a value is not allowed.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    seed: int | None = None
    stops: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.temperature != 0 and not COLDEST <= self.temperature < math.inf:
            raise InputError(
                f"temperature is {self.temperature}; it must be 0 (greedy), or finite and at least {COLDEST}."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        for name, least in (("top_k", 0), ("max_new_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"{name} is {value}; it must be at least {least}.")
        if not 0.0 < self.repetition_penalty < math.inf:
            raise InputError(
                f"repetition_penalty is {self.repetition_penalty}; it must be finite and above 0; 1 changes nothing."
            )
        if not all(self.stops):
            raise InputError(f"stops is {self.stops}; a text at which a reply ends has one character at least.")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise InputError(f"seed is {self.seed}; it must be a whole number from 0 to 2**63 - 1.")

    def generator(self, number: int, device: torch.device | str = "cpu") -> torch.Generator | None:
        """The source of chance for the reply of that number within a conversation; None is torch's own."""
        if self.seed is None:
            return None
        drawn = random.Random(f"{self.seed} reply {number}").getrandbits(63)
        return torch.Generator(device).manual_seed(drawn)

    def choose(
        self, logits: torch.Tensor, ids: torch.Tensor | None = None, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """(B,) ids from logits (B, V).

        ``ids`` (B, T) are those that the repetition penalty is about; without them there is none.
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


Read = Callable[[Tensor], Tensor]  # ids (B, T), which follow what was read -> logits (B, V) of the token after them


@torch.no_grad()
def tokens(
    logits: Tensor,
    read: Read,
    sampling: Sampling | None = None,
    *,
    before: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield the ids (B,) of one token after the other, without end; each is read when the next one is asked for.

    Args:
        logits: (B, V) of the first token.
        read: reads a token of each row.
        sampling: how tokens are chosen; greedily where None.
        before: (B, T) the ids that the repetition penalty is about, beside those that follow.
        generator: of the sampling; torch's own where None.
    """
    sampling = sampling or Sampling()
    said = torch.zeros(len(logits), 0, dtype=torch.long, device=logits.device) if before is None else before
    while True:
        chosen = sampling.choose(logits, said, generator)
        yield chosen
        said = torch.cat([said, chosen[:, None]], dim=1)
        logits = read(chosen[:, None])
