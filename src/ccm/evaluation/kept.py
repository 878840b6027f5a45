"""The folder that keeps what was found: what is there is not measured again.

OUTPUT/  results.jsonl    the lines of what was asked for last
         PART/METHOD-WHAT-DIGEST...    what stands behind each
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from ccm.core.errors import ConfigError, DataError
from ccm.core.files import write_atomically, writing

T = TypeVar("T")


class Folder:
    """An output folder.

    Args:
        folder: its place; where it is None, nothing is kept.
        part: the folder within it of what stands behind the lines.

    Raises:
        ConfigError: when it is a file, or cannot be written.
    """

    def __init__(self, folder: Path | None, part: str) -> None:
        self.folder, self._part = folder, part
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"The output {folder} is a file; name a folder.")
            with writing(folder, ConfigError, "Name another output."):
                (folder / part).mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder / part).close()  # found out now, not after the first measurement

    def place(self, method: str, what: object, identity: Mapping[str, Any]) -> Path | None:
        """The file of what a method makes of something, without its ending; None where nothing is kept.

        Its name tells people both, its digest all the rest.
        """
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps([method, identity], sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.folder / self._part / f"{re.sub('[^A-Za-z0-9_.-]+', '-', f'{method}-{what}')}-{digest}"

    def write_lines(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write ``results.jsonl``."""
        if self.folder is not None:
            with keeping(self.folder):
                write_lines(self.folder / "results.jsonl", lines)


def keeping(folder: Path) -> AbstractContextManager[None]:
    """Meanwhile something is written into the folder.

    Raises:
        ConfigError: when it cannot be.
    """
    return writing(folder, ConfigError, "What it holds is whole: mend that, and the same command goes on from there.")


def ending(place: Path, suffix: str) -> Path:
    """The file of that ending at a place of :meth:`Folder.place`."""
    return place.with_name(f"{place.name}.{suffix}")


def read_kept(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    """What a file of JSON holds.

    Raises:
        DataError: when it is damaged.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); delete it, and it is measured again.") from None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Objects as JSON lines."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))
