"""Results of streams: perplexity along the text, and its picture.

OUTPUT/  streams/METHOD-TEXT-DIGEST.json  the figures so far     results.jsonl  perplexity.png
         streams/METHOD-TEXT-DIGEST.stream  where it goes on     (:class:`ccm.evaluation.store.ResultStore`)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ccm.core.files import write_atomically


@dataclass(frozen=True)
class Point:
    """A stream at a position of its text.

    Attributes:
        read: tokens read so far, BOS included.
        tokens: how many of them were predicted.
        nll: their negative log-likelihood, summed, in nats.
        entries: in the cache.
        seconds: of reading so far.
    """

    read: int
    tokens: int
    nll: float
    entries: int
    seconds: float

    @property
    def perplexity(self) -> float:
        """Of all tokens so far."""
        return math.exp(self.nll / self.tokens) if self.tokens else math.nan

    def since(self, earlier: Point | None) -> float:
        """The perplexity of the tokens since an earlier point."""
        if earlier is None:
            return self.perplexity
        return math.exp((self.nll - earlier.nll) / (self.tokens - earlier.tokens))


@dataclass(frozen=True)
class StreamResult:
    """A text read by one method.

    Attributes:
        method: its name.
        text: name of the text.
        total: how many tokens it has, BOS included.
        points: along the text; the last one is the latest.
        largest: the most entries in the cache between two passes.
        bytes: of their keys and values.
        evictions: how often room was made.
        continued: what the model wrote after the text; None where it was not asked to write.
    """

    method: str
    text: str
    total: int
    points: list[Point]
    largest: int = 0
    bytes: int = 0
    evictions: int = 0
    continued: str | None = None

    @property
    def done(self) -> bool:
        """Whether all of the text is read."""
        return bool(self.points) and self.points[-1].read == self.total

    @property
    def last(self) -> Point:
        """The latest point."""
        return self.points[-1]

    def line(self) -> dict[str, Any]:
        """The figures at the end, ready for JSON."""
        return {
            "method": self.method,
            "text": self.text,
            "tokens": self.last.tokens,
            "perplexity": self.last.perplexity,
            "largest_cache": self.largest,
            "cache_bytes": self.bytes,
            "evictions": self.evictions,
            "seconds": self.last.seconds,
            "continued": self.continued,
        }


@dataclass(frozen=True)
class Total:
    """A method over all texts.

    Attributes:
        method: its name.
        texts: how many.
        tokens: predicted in all of them.
        perplexity: of all tokens together.
        mean: of the texts' own perplexities.
        largest_cache: entries.
        seconds: of reading.
    """

    method: str
    texts: int
    tokens: int
    perplexity: float
    mean: float
    largest_cache: int
    seconds: float


def totals(results: Sequence[StreamResult]) -> list[Total]:
    """The totals of each method over its texts."""
    every = []
    for name in dict.fromkeys(result.method for result in results):
        own = [result for result in results if result.method == name]
        ends = [result.last for result in own]
        tokens = sum(end.tokens for end in ends)
        perplexity, mean = math.exp(sum(end.nll for end in ends) / tokens), fmean(end.perplexity for end in ends)
        largest, seconds = max(result.largest for result in own), sum(end.seconds for end in ends)
        every.append(Total(name, len(own), tokens, perplexity, mean, largest, seconds))
    return every


def build_stream_result(values: dict[str, Any]) -> StreamResult:
    """A result from the values of its file."""
    return StreamResult(**{**values, "points": [Point(**point) for point in values["points"]]})


def draw_streams(results: Sequence[StreamResult], path: Path) -> None:
    """Perplexity of all tokens so far against the position (as the paper's Figure 8); a panel a text."""
    from matplotlib.figure import Figure

    texts = [*dict.fromkeys(result.text for result in results)]
    across = min(len(texts), 3)
    down = -(-len(texts) // across)
    figure = Figure(figsize=(2 + 5 * across, 1 + 3 * down), layout="constrained")
    panels: Any = figure.subplots(down, across, squeeze=False).flatten()
    for panel, text in zip(panels, texts, strict=False):
        for result in (r for r in results if r.text == text):
            places, values = zip(*((point.read, point.perplexity) for point in result.points), strict=True)
            panel.plot(places, values, label=result.method, linewidth=1.2)
        panel.set_title(text, fontsize=8)
        panel.set_xlabel("position in tokens")
        panel.set_ylabel("perplexity so far")
        panel.grid(alpha=0.3)
    for panel in panels[len(texts) :]:
        panel.set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    write_atomically(path, lambda p: figure.savefig(p, format="png", dpi=150))
