"""The user's cache of models: the folder CCM_CACHE, or ``ccm`` in the system's cache folder.

CACHE/models/NAME/   a model of the catalogue: config.json  model.safetensors  tokenizer.json ...  ccm_model.json
CACHE/gguf/STEM-ID/  the dequantized copy of a GGUF file; ID is a digest of the file's size, beginning and end
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
    """The folder of the cache; it may not exist yet."""
    if own := os.environ.get("CCM_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccm"


def model_folder(name: str) -> Path:
    """The folder in the cache for a model of the catalogue; it may not exist yet."""
    return cache_folder() / "models" / name


def keep(folder: Path, fill: Callable[[Path], object]) -> None:
    """Make a folder of the cache, completely or not at all; ``fill`` writes into a temporary folder beside it.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    with writing(folder, ConfigError, "Name another folder for the cache, in CCM_CACHE."):
        make_atomically(folder, fill)


def find_model(name: object) -> Path | None:
    """The folder of a fetched model of the catalogue; None if the name is unknown or the model was not fetched."""
    folder = model_folder(name) if isinstance(name, str) and name in MODELS else None
    return folder if folder is not None and (folder / ABOUT).is_file() else None
