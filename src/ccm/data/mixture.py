"""Several data sets as one: every sample is drawn from one of its parts, by weight or by their sizes.

data:
  name: mixture
  path: DIR                                the parts lie within it, each under its name or its own path
  options:
    parts:
      - {name: soda, weight: 3}
      - {name: redpajama, weight: 1, chunk_tokens: 256}
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import TurnFormat, build_settings
from ccm.core.errors import ConfigError, DataError
from ccm.data import DataSet
from ccm.data import open_data as open_part
from ccm.data.examples import order
from ccm.data.settings import DataOptions, DataSettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample

ROUND = 1000  # samples among which every part has its share
_SHARED = ("eval_samples", "max_steps", "max_step_tokens", "chunk_tokens", "query_chunks", "random_steps")


@dataclass(frozen=True)
class Part(DataSettings):
    """One data set of a mixture; the lengths that it does not set are the mixture's.

    Attributes:
        weight: its share of the samples, in proportion to those of the other parts; None for its number of examples.
        turns: how its conversations become tokens; the recipe's where None.
    """

    weight: float | None = None
    turns: TurnFormat | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight is not None and not 0 < self.weight < math.inf:
            raise ConfigError(f"The weight of the part {self.name!r} is {self.weight}; it must be a number above 0.")


@dataclass(frozen=True)
class MixtureOptions(DataOptions):
    """What a mixture is made of.

    Attributes:
        parts: a table each: a weight, a turn format, and settings as of ``data``.
    """

    parts: list = field(default_factory=list)


@dataclass(frozen=True)
class Mixture:
    """The samples of several data sets. Of every :data:`ROUND` samples each part has its share, in random order; each
    part gives its samples one after the other, and so has epochs of its own.

    Attributes:
        parts: the data sets.
        shares: samples of each in a round.
        seed: of the order.
    """

    parts: Sequence[DataSet]
    shares: Sequence[int]
    seed: int

    @property
    def longest(self) -> int:
        """Most text tokens of a sample."""
        return max(part.longest for part in self.parts)

    @property
    def deepest(self) -> int:
        """Most context steps of a sample."""
        return max(part.deepest for part in self.parts)

    def pool(self, index: int, count: int) -> list[Sample]:
        """The samples at places ``index * count`` and following."""
        places = [self._place(place) for place in range(index * count, (index + 1) * count)]
        drawn = {place: self.parts[place[0]].pool(place[1], 1)[0] for place in sorted(places)}  # in a part's own order
        return [drawn[place] for place in places]

    def _place(self, place: int) -> tuple[int, int]:
        """Which part the sample at a place comes from, and the place within that part."""
        number, within = divmod(place, ROUND)
        slot = order(ROUND, f"{self.seed} mixture {number}")[within]
        ends = [*accumulate(self.shares)]
        part = bisect_right(ends, slot)
        return part, (number + 1) * self.shares[part] + slot - ends[part]

    def held_out(self) -> list[Sample]:
        """The held-out samples of all parts."""
        return [sample for part in self.parts for sample in part.held_out()]

    def measure(self, model: CCMModel) -> dict[str, float]:
        return {name: value for part in self.parts for name, value in part.measure(model).items()}


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Mixture:
    """The mixture of these settings.

    Raises:
        ConfigError: when a part has a setting that is unknown or not allowed, or the weights give no shares.
        DataError: when files of a part are absent or malformed; of every part that is absent.
    """
    if settings.eval_path is not None:
        raise ConfigError("A mixture has no data.eval_path; the parts hold samples out, or have an eval_path each.")
    given = settings.read_options(MixtureOptions).parts
    parts = [_part(table, number, settings) for number, table in enumerate(given, start=1)]
    if not parts:
        raise ConfigError("A mixture needs data.options.parts, a list of data sets such as [{name: soda, weight: 1}].")
    opened = _open(parts, turns, seed)
    return Mixture(opened, shares(parts, _weights(parts, opened)), seed)


def _part(given: Any, number: int, settings: DataSettings) -> Part:
    """A part of the recipe, with the place of its files within the mixture's folder."""
    where = f"Part {number} of data.options.parts"
    if not isinstance(given, dict) or "name" not in given:
        raise ConfigError(f"{where} is {given!r}; it must be a table with the name of a data set.")
    part = build_settings(Part, {**{name: getattr(settings, name) for name in _SHARED}, **given}, where)
    if settings.path is None and "path" not in given:
        raise ConfigError(f"{where} has no path; set data.path to the folder that holds {part.name}.")
    inside = given.get("path", part.name)
    return part if inside is None else replace(part, path=str(Path(settings.path or "") / inside))


def _open(parts: Sequence[Part], turns: Turns, seed: int) -> list[DataSet]:
    """All parts; where some are absent, these alone are tried, so that each says at once what it wants."""
    absent = [part for part in parts if part.path is not None and not Path(part.path).exists()]
    opened, faults = [], []
    for part in absent or parts:
        own = make_turns(turns.tokenizer, part.turns) if part.turns else turns
        try:
            opened.append(open_part(part, own, seed))
        except DataError as error:
            faults.append(f"  {part.name}: {error}")
    if faults:
        raise DataError(f"{len(faults)} of the {len(parts)} parts of the mixture cannot be read.\n" + "\n".join(faults))
    return opened


def _weights(parts: Sequence[Part], opened: Sequence[DataSet]) -> list[float]:
    """The weights that were given, or the sizes."""
    given = [part.weight for part in parts if part.weight is not None]
    if len(given) == len(parts):
        return given
    sizes: list[float] = [len(data) for data in opened if isinstance(data, Sized)]
    if given or len(sizes) < len(parts):
        endless = [part.name for part, data in zip(parts, opened, strict=True) if not isinstance(data, Sized)]
        why = f"{', '.join(endless)} has no end, and so no size" if endless else "some parts have one"
        raise ConfigError(f"Give every part of the mixture a weight: {why}.")
    return sizes


def shares(parts: Sequence[Part], weights: Sequence[float]) -> list[int]:
    """How many samples of a round each part has: as near to the weights as whole numbers are.

    Raises:
        ConfigError: where a part would have none.
    """
    exact = [ROUND * weight / sum(weights) for weight in weights]
    whole = [int(share) for share in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: whole[i] - exact[i])
    for i in by_rest[: ROUND - sum(whole)]:
        whole[i] += 1
    if lost := [part.name for part, share in zip(parts, whole, strict=True) if not share]:
        raise ConfigError(f"{', '.join(lost)} would have less than one of {ROUND} samples; give it a higher weight.")
    return whole
