"""Locating base models. This module does not import torch, so that a missing model is refused at once."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not exported for type checkers

from ccm.core.errors import ConfigError
from ccm.core.hub import why
from ccm.models.builtin import NAME, WEIGHTS
from ccm.models.cache import find_model
from ccm.models.catalogue import MODELS
from ccm.models.gguf import copy_of, gguf_file
from ccm.models.published import MODELS as PUBLISHED
from ccm.models.published import paper_model


def locate(source: str | Path, **hub: Any) -> str | Path:
    """The folder or Hub id from which transformers can load a model.

    Args:
        source: a folder, a Hub id, a GGUF file, "builtin", or the short name of a model of the catalogue or the paper.
            For a GGUF file, the result is the folder of a converted copy.
        hub: options of the Hub, such as ``revision``, for a GGUF file there.

    Raises:
        ConfigError: if a model of the catalogue was not fetched, a GGUF file cannot be read, or a short name is
            mistyped.
    """
    if source == NAME:
        return WEIGHTS / "base"
    if source in MODELS and not Path(source).is_dir():
        if (folder := find_model(source)) is None:
            raise ConfigError(f"The model {source} has not been fetched; fetch it with `ccm models get {source}`.")
        return folder
    if (file := gguf_file(source)) is not None:
        return copy_of(file, **hub)
    known = paper_model(source)
    if known is None:
        _check_name(str(source))
    return known.hub if known else source


def _check_name(source: str) -> None:
    """Refuse what looks like a short name that was mistyped: the Hub would be asked for it, and that takes long."""
    names = [NAME, *MODELS, *PUBLISHED]
    if "/" in source or Path(source).exists() or not (close := get_close_matches(source.lower(), names, cutoff=0.75)):
        return
    raise ConfigError(
        f"There is no model {source!r}. Did you mean {' or '.join(close)}? ccm models list shows the short names; a "
        "model on the Hub has the form OWNER/NAME."
    )


def is_builtin(source: str | Path) -> bool:
    """Whether this names the built-in model or its folder."""
    return source == NAME or Path(source).resolve() == (WEIGHTS / "base").resolve()


def base_name(source: str) -> str:
    """What people call a base model that was loaded from ``source``: "builtin", a folder's own name, or the Hub id.

    It is empty where nothing names the base.
    """
    if not source:
        return source
    if is_builtin(source):
        return NAME
    folder = Path(source).resolve()
    return folder.name if folder.is_dir() else source


def check_place(source: str | Path) -> None:
    """Refuse a folder without a model, a file that is no GGUF file, and a name that is no path or possible Hub id.

    Raises:
        ConfigError: in these cases.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ConfigError(f"The base model {source} cannot be loaded: there is no config.json in the folder.")
    if Path(source).is_file():
        raise ConfigError(f"The base model {source} cannot be loaded: the file is neither a folder nor a GGUF file.")
    try:
        if not Path(source).exists():
            validate_repo_id(str(source))
    except HFValidationError as error:
        raise ConfigError(
            f"The base model {source} cannot be loaded: it is neither a folder nor a valid Hub id."
        ) from error


def check_base(source: str | Path) -> None:
    """Refuse a base model that exists neither locally nor on the Hub.

    Raises:
        ConfigError: if there is no such model; the message has the Hub's reason.
    """
    found = locate(source)
    check_place(found)
    if not Path(found).exists() and not try_to_load_from_cache(str(found), "config.json"):
        try:
            hf_hub_download(str(found), "config.json", local_files_only=constants.HF_HUB_OFFLINE)
        except OSError as error:
            raise ConfigError(
                f"The base model {found} cannot be loaded: {why(error, found)} Short names are {', '.join(MODELS)} and "
                f"{NAME}."
            ) from error
