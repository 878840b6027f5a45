"""The user's cache of models: CCM_CACHE, or ``ccm`` in the system's folder of caches.

CACHE/models/NAME/   a model of the catalogue: config.json  model.safetensors  tokenizer.json ...  ccm_model.json
CACHE/gguf/STEM-ID/  what a GGUF file of the user's holds, dequantized; ID is of its size, beginning and end
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ccm.errors import ConfigError
from ccm.files import make_atomically, save_json, writing
from ccm.models.catalogue import MODELS

ABOUT = "ccm_model.json"
Source = Literal["registry", "hub"]


@dataclass(frozen=True)
class Had:
    """Where a model in the cache came from.

    Attributes:
        name: its short name.
        source: "registry" of packages, or "hub".
        precision: how its weights were stored there.
        sha256: of the file that was had; empty for several.
    """

    name: str
    source: Source
    precision: str
    sha256: str = ""


def cache_folder() -> Path:
    """The folder of the cache; it need not exist."""
    if own := os.environ.get("CCM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccm"


def model_folder(name: str) -> Path:
    """Where a model of the catalogue is kept."""
    return cache_folder() / "models" / name


def keep(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of the cache, whole or not at all; ``fill`` writes into one beside it.

    Raises:
        ConfigError: when it cannot be written.
    """
    with writing(folder, ConfigError, "Name another folder for the cache, in CCM_CACHE."):
        make_atomically(folder, fill)


def find_model(name: object) -> Path | None:
    """The folder of a model of the catalogue; None where the name is of none, or it was not fetched."""
    folder = model_folder(name) if isinstance(name, str) and name in MODELS else None
    return folder if folder is not None and (folder / ABOUT).is_file() else None


def write_about(folder: Path, had: Had) -> None:
    """Say in a model's folder where it came from."""
    save_json(folder / ABOUT, asdict(had))


def read_about(folder: Path) -> Had | None:
    """Where a model came from; None where its folder does not say."""
    try:
        return Had(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def called(place: str) -> str:
    """What people call a model that was loaded from there: its short name with its source, or the folder's own name."""
    had = read_about(Path(place)) if place else None
    return f"{had.name} ({had.precision}, from the {had.source})" if had else Path(place).name
