"""Where a base model lies. torch is not needed for it, so that a model that is not there is refused at once."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented as being there

from ccm.core.errors import ConfigError
from ccm.core.hub import why
from ccm.models.builtin import NAME, WEIGHTS
from ccm.models.cache import find_model
from ccm.models.catalogue import MODELS
from ccm.models.gguf import copy_of, gguf_file
from ccm.models.published import paper_model


def locate(source: str | Path) -> str | Path:
    """Where a model is: "builtin" is the one that ships with the package; others have short names, and of a GGUF file a
    copy is made that transformers reads.

    Raises:
        ConfigError: when a model of a short name was not fetched, or a GGUF file cannot be read.
    """
    if source == NAME:
        return WEIGHTS / "base"
    if source in MODELS and not Path(source).is_dir():
        if (folder := find_model(source)) is None:
            raise ConfigError(f"The model {source} is not here yet; fetch it by `ccm models get {source}`.")
        return folder
    if (file := gguf_file(source)) is not None:
        return copy_of(file)
    known = paper_model(source)
    return known.hub if known else source


def is_builtin(source: str | Path) -> bool:
    """Whether that is where the model lies that ships with the package, or its name."""
    return Path(locate(source)).resolve() == (WEIGHTS / "base").resolve()


def check_place(source: str | Path) -> None:
    """Refuse a folder without a model, and a path that can be no name on the Hub.

    Raises:
        ConfigError: naming it.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ConfigError(f"The base model {source} cannot be loaded: there is no config.json in the folder.")
    try:
        if not Path(source).exists():
            validate_repo_id(str(source))
    except HFValidationError as error:
        raise ConfigError(
            f"The base model {source} cannot be loaded: there is no such folder, nor such a name on the Hub."
        ) from error


def check_base(source: str | Path) -> None:
    """Refuse a base model that is nowhere: in no folder, and not on the Hub.

    Raises:
        ConfigError: naming it, with the Hub's reason.
    """
    place = locate(source)
    check_place(place)
    if not Path(place).exists() and not try_to_load_from_cache(str(place), "config.json"):
        try:
            hf_hub_download(str(place), "config.json", local_files_only=constants.HF_HUB_OFFLINE)
        except OSError as error:
            raise ConfigError(f"The base model {place} cannot be loaded: {why(error, place)}") from error
