"""Notes on models and data that several verbs give."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccm.cli.console import tell
from ccm.core.processes import is_main
from ccm.data.custom import TEXTS
from ccm.data.reading import ends
from ccm.engine.adapter_files import base_named
from ccm.models.builtin import NAME
from ccm.models.locate import base_name


class BuiltinNote:
    """A note, given once, on what the figures of the built-in model are worth on other texts.

    Raises:
        AdapterError: when an adapter cannot be read.
    """

    def __init__(self, model: str | None, adapters: Sequence[str]) -> None:
        if model is None and adapters:
            model = base_named(adapters[0])
        self._due = is_main() and base_name(model or NAME) == NAME

    def say(self) -> None:
        """Give the note, unless it was given, or another model is the base. Call this once there are figures."""
        if self._due:
            self._due = False
            tell(
                "Note: the built-in model knows only the small talk that it was trained on. Its perplexity on other "
                "texts is that of noise, and says nothing about a memory. To measure one, name a model that knows such "
                "texts, and an adapter that was trained on it: --model MODEL --adapter DIR (docs/train.md)."
            )


def is_running_text(data_set: str, path: str | None) -> bool:
    """Whether a data set is running text; for your own data, whether any file is."""
    if data_set != "custom" or path is None:
        return data_set in ("pg19", "redpajama")
    place = Path(path)
    files = [place] if place.is_file() else place.rglob("*")
    return any(ends(file, TEXTS) for file in files)
