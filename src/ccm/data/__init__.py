"""Data sets behind one contract: each is one file here, and a row in ``DATA_SETS``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from ccm.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:  # the list of data sets is in this package too, and needs none of them
    from ccm.chat.turns import Turns
    from ccm.data.settings import DataSettings
    from ccm.engine.decoder import CCMModel
    from ccm.engine.layout import Sample

DATA_SETS = {  # module with a function open_data
    "custom": "ccm.data.custom",
    "builtin": "ccm.data.builtin.dialogues",
    "dailydialog": "ccm.data.dailydialog",
    "soda": "ccm.data.soda",
    "metaicl": "ccm.data.metaicl_training",
    "lamp": "ccm.data.lamp_training",
    "pg19": "ccm.data.pg19",
    "redpajama": "ccm.data.redpajama",
    "lmsys": "ccm.data.lmsys",
    "mixture": "ccm.data.mixture",
    "recall": "ccm.data.recall",
}


class DataSet(Protocol):
    """What training asks of a data set. Every sample has at least one target in its query.

    Attributes:
        longest: most text tokens of a sample.
        deepest: most context steps of a sample.
    """

    longest: int
    deepest: int

    def pool(self, index: int, count: int) -> list[Sample]:
        """``count`` training samples: those of number ``index``, always the same.

        So a training that goes on after an interruption finds its place without reading all that came before.
        """
        ...

    def held_out(self) -> list[Sample]:
        """Samples that no pool holds, for evaluation; may be empty."""
        ...

    def measure(self, model: CCMModel) -> dict[str, float]:
        """What the data set measures of a model beside the loss, by name, during training; may be empty."""
        ...


def open_data(settings: DataSettings, turns: Turns, seed: int) -> DataSet:
    """The data set of these settings; its files are read and checked now.

    Raises:
        ConfigError: when there is no such data set, or it lacks a setting.
        DataError: when its files are absent or malformed.
    """
    name = settings.name
    if name not in DATA_SETS:
        meant = did_you_mean([name], DATA_SETS)
        raise ConfigError(f"There is no data set {name!r}.{meant} There are: {', '.join(DATA_SETS)}.")
    return import_module(DATA_SETS[name]).open_data(settings, turns, seed)
