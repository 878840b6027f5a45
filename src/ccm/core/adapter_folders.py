"""Folders of adapters, and their settings: without torch, so that one that is nowhere is refused at once.

What else they hold is read by :mod:`ccm.engine.adapter_files`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ccm.core.config import CCMConfig
from ccm.core.errors import AdapterError, listed, reason
from ccm.core.files import as_path, check_version, read_json
from ccm.core.hub import why

VERSION = "format_version"
CONFIG, STAGE1 = "ccm_config.json", "base_adapter"
PEFT_CONFIG = "adapter_config.json"
_BESIDE = re.compile(r"\.\./(?!\.)[^/\\]+")


def find_adapter(source: str | Path, **hub: Any) -> Path:
    """The folder of an adapter: a local one, or a snapshot of a Hub repository.

    Args:
        source: a folder or a Hub id.
        hub: options of ``snapshot_download``.

    Raises:
        AdapterError: when there is none, or it holds no adapter of our own.
    """
    folder = as_path(source, AdapterError)
    if not folder.is_dir():
        try:
            folder = Path(snapshot_download(str(source), **hub))
        except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise AdapterError(
                f"There is no folder {source}, and the Hub gives no such adapter: {why(error, source)}"
            ) from error
    if (folder / CONFIG).is_file():
        return folder
    names = [path.name for path in folder.iterdir()]
    hint = (
        f" It is a plain LoRA of PEFT, or one of the authors' adapters: `ccm adapters show {source}` says which, and "
        "`ccm adapters import` makes an adapter of it."
        if PEFT_CONFIG in names
        else ""
    )
    raise AdapterError(
        f"{folder} holds no adapter: {CONFIG} is missing (found: {listed(names) if names else 'nothing'}).{hint}"
    )


def is_plain_lora(source: str | Path) -> bool:
    """Whether it is an adapter folder of PEFT or of the authors rather than our own."""
    return (Path(source) / PEFT_CONFIG).is_file() and not (Path(source) / CONFIG).is_file()


def read_config(folder: Path) -> CCMConfig:
    """The settings of an adapter folder.

    Raises:
        AdapterError: when the file of settings is missing, damaged or of a newer version.
    """
    return config_of(read_settings(folder))


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings as the file has them, with the format version.

    Raises:
        AdapterError: as of :func:`read_config`.
    """
    path = folder / CONFIG
    settings = read_table(path)
    check_version(settings.get(VERSION, 1), path, AdapterError)
    if STAGE1 in settings and not _BESIDE.fullmatch(str(settings[STAGE1])):
        raise AdapterError(
            f"{path} names {settings[STAGE1]!r} as its stage-1 adapter; allowed is a folder beside it, such as ../base."
        )
    return settings


def read_table(path: Path) -> dict[str, Any]:
    """The table of a JSON file.

    Raises:
        AdapterError: when the file is missing or damaged.
    """
    try:
        settings = read_json(path)
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {reason(error)}") from error
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is damaged: it holds no table of settings.")
    return settings


def config_of(settings: Mapping[str, Any]) -> CCMConfig:
    """The config in settings that :func:`read_settings` read."""
    return CCMConfig.from_dict({name: value for name, value in settings.items() if name not in (VERSION, STAGE1)})


def base_of(folder: Path, config: CCMConfig) -> str:
    """The base model that an adapter's config names: a folder relative to the adapter's, else a path or a Hub id.

    Raises:
        AdapterError: when it names none.
    """
    if not config.base_model:
        raise AdapterError(
            f"{folder} does not name its base model; say which it is, as model=BASE (base=BASE of ccm adapters merge)."
        )
    near = folder / config.base_model
    return str(near) if near.is_dir() else config.base_model
