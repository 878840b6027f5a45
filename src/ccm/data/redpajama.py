"""RedPajama-V2, web pages as running text: its ``documents``, JSON lines (plain or gzipped) or Parquet.

Each row is a page, its text in ``raw_content`` (togethercomputer/RedPajama-Data-V2 on the Hub). Other folders of the
publisher's, such as ``quality_signals``, are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ccm.core.errors import DataError
from ccm.data.reading import ROWS, read_rows
from ccm.data.text import Library, open_stretches


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


open_data = partial(open_stretches, Library("RedPajama-V2", ROWS, "documents", read, files=1, texts=512))
