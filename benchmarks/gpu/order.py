"""What a part is told: where it runs, how large, and how long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import Options, Report


@dataclass(frozen=True)
class Order:
    """What a part is told.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        rehearse: whether everything is small and runs once.
        runs: folder of the trainings, which go on from what they find there.
        chats: folder of dialogues, the ``chats`` that ``python -m reproductions.smollm2`` writes.
        model: base of the adapters: a folder, a GGUF file or its pieces, or a short name.
        base_adapter: the first stage; None trains it first.
        starts: by the name of a training, the checkpoint of another machine that it goes on from.
        ends: when the part is to end, by ``time.monotonic()``.
    """

    device: str
    rehearse: bool
    runs: Path
    chats: Path | None = None
    model: str = "smollm2-135m"
    base_adapter: Path | None = None
    starts: Mapping[str, Path] = field(default_factory=dict)
    ends: float = math.inf

    @property
    def left(self) -> float:
        """Seconds until the part is to end."""
        return self.ends - time.monotonic()

    def size(self, name: str) -> str:
        """That size of :data:`benchmarks.models.SIZES`, or the tiny one of its kind."""
        large, *kind = name.split(", ")
        return ", ".join(["tiny" if self.rehearse else large, *kind])

    def options(self, share: float = 1.0) -> Options:
        """How to time something that may take that share of what is left."""
        if self.rehearse:
            return Options(rounds=1, warmup=0)
        return Options(rounds=20, warmup=2, seconds=self.left * share)


class Part(NamedTuple):
    """Something to measure.

    Attributes:
        run: yields tables; one that comes again, with more rows, replaces what it was.
        about: what it measures, in a line.
        seconds: after which it begins nothing more; :data:`MARGIN` later it is broken off.
    """

    run: Callable[[Order], Iterator[Report]]
    about: str
    seconds: float = 200.0


MARGIN = 30.0
