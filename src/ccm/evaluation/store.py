"""The folder that keeps results, so that nothing is measured twice.

OUTPUT/  results.jsonl    a line for each result of the latest command
         PART/METHOD-WHAT-DIGEST.json ...    the results themselves
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Generic, TypeVar

from ccm.core.errors import ConfigError, DataError
from ccm.core.files import save_json, write_atomically, writing

T = TypeVar("T")


class ResultStore(Generic[T]):
    """Results of one kind, a JSON file each.

    Args:
        folder: where they are kept; None keeps nothing.
        part: name of the folder within it that holds the results.
        build: makes a result from the values of its file.

    Raises:
        ConfigError: when the folder is a file, or cannot be written.
    """

    def __init__(self, folder: Path | None, part: str, build: Callable[[dict[str, Any]], T]) -> None:
        self.folder, self._part, self._build = folder, part, build
        if folder is not None:
            check_folder(folder)
            with writing(folder, ConfigError, "Name another output."):
                (folder / part).mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=folder / part).close()  # a full disk shows now, not after the first measurement

    def path(self, method: str, what: object, identity: Mapping[str, Any]) -> Path | None:
        """The file for what a method makes of something; None where nothing is kept.

        People read both in its name. Its digest covers the ``identity``: whatever else the result depends on.
        """
        if self.folder is None:
            return None
        digest = hashlib.sha256(json.dumps([method, identity], sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.folder / self._part / f"{re.sub('[^A-Za-z0-9_.-]+', '-', f'{method}-{what}')}-{digest}.json"

    def read(self, path: Path | None) -> T | None:
        """The result in a file; None where there is no such file.

        Raises:
            DataError: when the file is damaged.
        """
        return None if path is None or not path.is_file() else read_result(path, self._build)

    def write(self, path: Path | None, result: Any) -> None:
        """Keep a result, a dataclass.

        Raises:
            ConfigError: when it cannot be written.
        """
        if path is not None:
            with keeping(path.parent):
                save_json(path, asdict(result))

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows as JSON lines into a file of the folder, such as "results.jsonl".

        Raises:
            ConfigError: when it cannot be written.
        """
        if self.folder is not None:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            with keeping(self.folder):
                (self.folder / name).parent.mkdir(exist_ok=True)
                write_atomically(self.folder / name, lambda path: path.write_text(text, encoding="utf-8"))


def read_result(path: Path, build: Callable[[dict[str, Any]], T]) -> T:
    """The result in a file, made from its values by ``build``.

    Raises:
        DataError: when the file is damaged.
    """
    try:
        return build(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); delete it, and it is measured again.") from None


def check_folder(folder: Path) -> None:
    """Refuse an output that is a file.

    Raises:
        ConfigError: when it is.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The output {folder} is a file; name a folder.")


def keeping(folder: Path) -> AbstractContextManager[None]:
    """A context in which something is written into the folder.

    Raises:
        ConfigError: when it cannot be.
    """
    return writing(folder, ConfigError, "Its files are whole: once this is mended, the same command goes on from them.")
