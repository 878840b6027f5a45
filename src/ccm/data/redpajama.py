"""RedPajama-V2, web pages as running text: its ``documents``, JSON lines (plain or gzipped) or Parquet.

A page is a row, its text ``raw_content`` (togethercomputer/RedPajama-Data-V2 on the Hub). What the publisher has beside
the folder ``documents``, such as ``quality_signals``, is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ccm.chat.turns import Turns
from ccm.core.errors import DataError
from ccm.data.reading import ROWS, read_rows
from ccm.data.settings import DataSettings
from ccm.data.text import Source, Stretches, open_stretches


def read(file: Path) -> Iterator[str]:
    """The pages of a file.

    Raises:
        DataError: when it cannot be read, or a row has no text.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    for number, row in enumerate(read_rows(file, ["raw_content"]), start=1):
        if not isinstance(row["raw_content"], str):
            raise DataError(f"{file}, row {number}: 'raw_content' must be a text.")
        yield row["raw_content"].encode("utf-8", "replace").decode()  # no tokenizer takes half of a surrogate pair


SOURCE = Source("RedPajama-V2", ROWS, "documents", read, files=1, texts=512)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Stretches:
    """To train on; see :func:`ccm.data.text.open_stretches`."""
    return open_stretches(SOURCE, settings, turns, seed)
