"""Downloading the authors' adapters from their public drive with gdown, an optional package.

NAME.part/   the download in progress        NAME/   the complete download; every adapter in it was read once
"""

from __future__ import annotations

from pathlib import Path

from ccm.core.adapter_folders import PEFT_CONFIG
from ccm.core.errors import AdapterError, ConfigError, unknown_name
from ccm.core.extras import needs
from ccm.core.files import writing
from ccm.engine.adapter_files import read_plain_lora
from ccm.models.published import ADAPTERS, SOURCE


def download_adapters(name: str, output: Path, *, quiet: bool = True) -> list[Path]:
    """Download a set of published adapters into a folder.

    The folder gets its name when all adapters are complete and readable. An interrupted download resumes. Checkpoints
    are read as tensors only, and never executed.

    Args:
        name: the name of the set, a key of :data:`ADAPTERS`.
        output: the folder to make.
        quiet: whether to hide the progress of the download.

    Returns:
        The folders of the adapters.

    Raises:
        ConfigError: if there is no such set, ``output`` is a file, or gdown is not installed.
        AdapterError: if the download fails, or an adapter is damaged or incomplete.
    """
    if name not in ADAPTERS:
        raise unknown_name("set of published adapters", name, ADAPTERS)
    if output.is_file():
        raise ConfigError(f"{output} is a file; name a folder for the adapters.")
    if output.is_dir():
        return _checked(output, f"{output} already existed; delete it, then download again.")
    part = output.with_name(output.name + ".part")
    _fetch(ADAPTERS[name].drive, part, quiet=quiet)
    found = _checked(part, f"The download is in {part}; delete the damaged file, then download again.")
    part.replace(output)
    return [output / folder.relative_to(part) for folder in found]


def _fetch(address: str, folder: Path, *, quiet: bool) -> None:
    what, instead = "A download from the authors' drive", f"Or download {address} with a browser."
    needs("gdown", extra="adapters", what=what, instead=instead)
    import gdown

    with writing(folder, AdapterError, "Name another output."):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        gdown.download_folder(url=address, output=str(folder), quiet=quiet, use_cookies=False, resume=True)
    except (gdown.exceptions.DownloadError, OSError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            f"The download of {address} failed ({reason}). Download again, which resumes; or download the folder with "
            f"a browser and import its adapters. {SOURCE} says whether the folder has moved."
        ) from error


def _checked(folder: Path, otherwise: str) -> list[Path]:
    """The folders of the adapters within a folder; raises AdapterError if one is incomplete or unreadable."""
    partial = sorted(path.name for path in folder.rglob("*.part"))
    found = sorted(path.parent for path in folder.rglob(PEFT_CONFIG))
    if partial or not found:
        raise AdapterError(f"{folder} is incomplete: {partial or 'it holds no adapter'}. {otherwise}")
    for adapter in found:
        try:
            read_plain_lora(adapter)
        except AdapterError as error:
            raise AdapterError(f"{error} {otherwise}") from error
    return found
