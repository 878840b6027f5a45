"""Streams: whole passes beside one token at a time; and token 100,000 beside token 1,000."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import models
from benchmarks.common import Comparison, Options, Report, Subject, compare, report_comparisons, time_in_turns
from ccm.core.config import CCMConfig
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

SETTINGS = StreamSettings()  # the authors' sizes: cache 160, span 64, memory 8, sink 1
MERGE = replace(models.MERGE, n_tok=2)
METHODS: dict[str, tuple[CCMConfig, StreamSettings]] = {
    "concat N=2": (models.CONCAT, SETTINGS),
    "merge N=2": (MERGE, SETTINGS),
    "window by blocks": (models.CONCAT, replace(SETTINGS, evict="blocks")),
    "window, always full": (models.CONCAT, replace(SETTINGS, evict="window")),
}
BEGUN, PIECE, LEAST = 640, 496, 10.0  # tokens read before; tokens that are timed, eight spans of concat
EARLY, LATE, LIMIT, SAME = 1_000, 100_000, 1.05, 1e-4
SPEED = (
    f"{PIECE} tokens after {BEGUN}, batch 1, cache {SETTINGS.cache_size}, span {SETTINGS.span}, memory "
    f"{SETTINGS.memory_size}, sink {SETTINGS.sink}: fed one token at a time, with keys rotated already, beside fed "
    f"at once. The ratio is how many times faster the latter is. Equal to {SAME:g} in NLL, checked beforehand."
)
SOAK = (
    f"{PIECE} tokens after {LATE:,} beside {PIECE} after {EARLY:,} of one stream of random tokens; bytes of keys and "
    "values there, and of the process; and how far keys and values are there from those of the same stream in float64, "
    "as a share of the largest: what is turned again and again must not drift."
)


def run(options: Options) -> Report:
    """One token at a time beside whole passes."""
    rows = [_speed(name, *method, options) for name, method in METHODS.items()]
    return report_comparisons("Streaming in whole passes", SPEED, rows)


@torch.no_grad()
def _speed(name: str, config: CCMConfig, settings: StreamSettings, options: Options) -> Comparison:
    stream = StreamingMemory(models.ccm_model(config), settings)
    ids = models.random_ids(1, BEGUN + PIECE, seed=7)
    stream.nll(ids[:, :BEGUN])
    piece = ids[:, BEGUN:]
    if (worst := (_singly(stream.fork(), piece) - stream.fork().nll(piece)).abs().max().item()) > SAME:
        raise AssertionError(f"{name}: the two ways differ by {worst:.2g}.")
    singly, at_once = f"{name}, one token at a time", "at once"
    subjects = {
        at_once: Subject(lambda fork: fork.nll(piece), stream.fork),
        singly: Subject(lambda fork: _singly(fork, piece), stream.fork),
    }
    return compare(time_in_turns(subjects, options), singly, at_once, least=LEAST)


def _singly(stream: StreamingMemory, ids: Tensor) -> Tensor:
    return torch.cat([stream.nll(token) for token in ids.split(1, dim=1)], dim=1)


@dataclass(frozen=True)
class Place:
    """A stream at one place of a long text, and the bytes of the process then."""

    stream: StreamingMemory
    process: int

    def off(self, exact: Place) -> float:
        """The largest difference of keys and values, by the largest of them."""
        own, theirs = ((*p.stream.held.entries.keys, *p.stream.held.entries.values) for p in (self, exact))
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(own, theirs, strict=True))


def soak(options: Options) -> Report:
    """A stream of 100,000 tokens by each method: its speed, its bytes and its figures at the end and at the start."""
    late = LATE if options.rounds > 2 else 4_000  # a quick run shows only that everything runs
    columns = ["", "ms early", "ms late", "ratio of medians", "median of ratios", "quartiles", "limit"]
    columns += ["KiB early", "KiB late", "process MiB early", "late", "off early", "late"]
    rows, data = [], []
    for name, (config, settings) in METHODS.items():
        places = _places(config, settings, late, torch.float32)
        exact = _places(config, settings, late, torch.float64)
        piece = models.random_ids(1, PIECE, seed=5)
        subjects = {at: Subject(partial(_nll, piece), place.stream.fork) for at, place in places.items()}
        c = compare(time_in_turns(subjects, options), "late", "early", LIMIT)
        off = {at: place.off(exact[at]) for at, place in places.items()}
        size = {at: place.stream.nbytes for at, place in places.items()}
        rows.append(
            [
                name,
                f"{c.reference_seconds * 1e3:.1f}",
                f"{c.seconds * 1e3:.1f}",
                f"**{c.ratio:.3f}**",
                f"{c.paired:.3f}",
                f"{c.low:.3f} to {c.high:.3f}",
                c.bound,
                *(f"{size[at] / 1024:,.0f}" for at in ("early", "late")),
                *(f"{places[at].process / 2**20:,.0f}" for at in ("early", "late")),
                *(f"{off[at]:.1e}" for at in ("early", "late")),
            ]
        )
        process = {at: place.process for at, place in places.items()}
        data.append({"method": name, **asdict(c), "bytes": size, "process": process, "off": off})
    return Report(f"Token {late:,} beside token {EARLY:,}", SOAK, columns, rows, data)


def _nll(piece: Tensor, stream: StreamingMemory) -> Tensor:
    return stream.nll(piece)


def _places(config: CCMConfig, settings: StreamSettings, late: int, dtype: torch.dtype) -> dict[str, Place]:
    """The stream at both places."""
    model = models.ccm_model(config)
    model.base.to(dtype)
    stream, ids, found = StreamingMemory(model, settings), models.random_ids(1, late, seed=3), {}
    for name, end in (("early", EARLY), ("late", late)):
        _skip(stream, ids[:, stream.tokens : end])
        found[name] = Place(_aligned(stream), _process())
    return found


def _skip(stream: StreamingMemory, ids: Tensor) -> None:
    """Read, and keep nothing of it."""
    for _ in stream.scored(ids):
        pass


def _aligned(stream: StreamingMemory) -> StreamingMemory:
    """A twin that has read on to where room was just made: both places then read equally many passes."""
    twin = stream.fork()
    _skip(twin, models.random_ids(1, twin.room, seed=4))
    return twin


def _process() -> int:
    """Bytes of the process in memory; 0 where the system does not tell."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * 4096 if status.exists() else 0
