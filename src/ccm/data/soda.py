"""SODA, from the publisher's files: ``train.parquet``, ``valid.parquet`` and so on, or the same as JSON lines.

Each row is a dialogue, its turns the list ``dialogue``. Texts and filters are the authors' (Compressed Context Memory,
ICLR 2024, section 4.1); they evaluate on the first 2,000 dialogues of the validation split that pass the filters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ccm.core.errors import DataError
from ccm.data.dialogue import Corpus, Dialogue, open_dialogues, open_examples
from ccm.data.reading import read_rows

_SPACES = re.compile(r" (?=[,.;?!])")


def tidy(text: str) -> str:
    """No space before punctuation, and the plain forms of two signs."""
    return _SPACES.sub("", text.replace("。", ".").replace("\u2019", "'")).strip()


def read(folder: Path, split: str) -> Iterator[Dialogue]:
    """The dialogues of a split, in the order of the file.

    Raises:
        DataError: when there is no file, or a row is no dialogue.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    stems = ("valid", "validation") if split == "validation" else (split,)  # the publisher's word, and the usual one
    names = [f"{stem}.{suffix}" for stem in stems for suffix in ("parquet", "jsonl")]
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds none of {', '.join(names)}; download SODA (allenai/soda on the Hub) into it.")
    for number, row in enumerate(read_rows(path, ["dialogue"]), start=1):
        turns = row["dialogue"]
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise DataError(f"{path}, row {number}: 'dialogue' must be a list of texts.")
        yield Dialogue(tuple(map(tidy, turns)))


CORPUS = Corpus(
    title="SODA",
    files="train.parquet and valid.parquet",
    read=read,
    measured=("validation",),
    most=2000,
    shortest_turn=1,
    longest=(512, 512),
    depths={1: 3, 4: 6, 7: 9},
)


open_data = partial(open_examples, CORPUS)
open_task = partial(open_dialogues, CORPUS)
