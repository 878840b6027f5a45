"""The user's cache of models: CCM_CACHE, or ``ccm`` in the system's folder of caches.

CACHE/models/NAME/   a model of the catalogue: config.json  model.safetensors  tokenizer.json ...  ccm_model.json
CACHE/gguf/STEM-ID/  what a GGUF file of the user's holds, dequantized; ID is of its size, beginning and end
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ccm.core.errors import ConfigError
from ccm.core.files import make_atomically, writing
from ccm.core.provenance import ABOUT
from ccm.models.catalogue import MODELS


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
