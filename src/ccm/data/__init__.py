"""The room of the data sets: samples to train on, and questions to measure.

A data set is one module here, or a package where it brings files of wordings along. ``open_data`` in it gives samples
to train on (:class:`DataSet`), ``open_task`` questions for an evaluation (:class:`ccm.data.tasks.Task`); it has either
or both, and a row in ``DATA_SETS`` below or in ``ccm.data.tasks.TASKS``. To add one, look for the nearest neighbour:

    conversations and tasks of one's own      kinds (what examples are), formats (how they are written), custom
    dialogues, a corpus each                  dialogue, with dailydialog and soda on top
    running text                              text, with pg19 and redpajama on top
    questions on long conversations           longterm, with locomo and longmemeval on top
    made-up dialogues                         facts with recall, and builtin
    dialogues made of conversations           recital

``reading`` opens files, ``examples`` draws shuffled epochs and holds samples out, ``settings`` are what recipes say.
``sources`` knows where data sets are published, and brings them into the folders that are read here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from ccm.core.errors import unknown_name

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
    "metaicl": "ccm.data.metaicl",
    "lamp": "ccm.data.lamp",
    "pg19": "ccm.data.pg19",
    "redpajama": "ccm.data.redpajama",
    "lmsys": "ccm.data.lmsys",
    "mixture": "ccm.data.mixture",
    "recall": "ccm.data.recall",
    "recital": "ccm.data.recital",
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
        ConfigError: when there is no such data set, or a setting is absent or not allowed.
        DataError: when its files are absent or malformed.
    """
    if settings.name not in DATA_SETS:
        raise unknown_name("data set", settings.name, DATA_SETS)
    return import_module(DATA_SETS[settings.name]).open_data(settings, turns, seed)
