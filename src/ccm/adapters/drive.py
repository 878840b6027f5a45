"""The authors' adapters from their public drive, by gdown, which is an extra.

NAME.part/   what has arrived        NAME/   all of it, each adapter read once
"""

from __future__ import annotations

from pathlib import Path

from ccm.core.errors import AdapterError, ConfigError, did_you_mean
from ccm.core.extras import needs
from ccm.core.files import writing
from ccm.engine.adapter_files import PEFT_CONFIG, read_plain_lora
from ccm.models.published import ADAPTERS, SOURCE


def download_adapters(name: str, output: Path, *, quiet: bool = True) -> list[Path]:
    """Download a set of published adapters into a folder, which gets its name once everything is there and readable.

    An interrupted download goes on where it ended. Checkpoints are read as tensors only, never executed.

    Returns:
        the adapters' folders.

    Raises:
        ConfigError: when there is no such set, or gdown is not installed.
        AdapterError: when the drive does not give it, or an adapter is damaged or not whole.
    """
    if name not in ADAPTERS:
        near = did_you_mean([name], ADAPTERS)
        raise ConfigError(f"There are no published adapters {name!r}; allowed: {', '.join(ADAPTERS)}.{near}")
    if output.is_file():
        raise ConfigError(f"{output} is a file; name a folder for the adapters.")
    if output.is_dir():
        return _checked(output, f"{output} was there before; remove it, and say the command again.")
    part = output.with_name(output.name + ".part")
    _fetch(ADAPTERS[name].drive, part, quiet=quiet)
    found = _checked(part, f"What arrived is in {part}; remove the damaged file, and say the command again.")
    part.replace(output)
    return [output / folder.relative_to(part) for folder in found]


def _fetch(address: str, folder: Path, *, quiet: bool) -> None:
    what, instead = "A download from the authors' drive", f"Or fetch {address} in a browser."
    needs("gdown", extra="adapters", what=what, instead=instead)
    import gdown

    with writing(folder, AdapterError, "Name another output."):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        gdown.download_folder(url=address, output=str(folder), quiet=quiet, use_cookies=False, resume=True)
    except (gdown.exceptions.DownloadError, OSError) as error:
        reason = " ".join(str(error).split())
        raise AdapterError(
            f"The drive did not give {address} ({reason}). Say the command again, which goes on with what has arrived; "
            f"or fetch the folder in a browser and import its adapters. {SOURCE} says whether it has moved."
        ) from error


def _checked(folder: Path, otherwise: str) -> list[Path]:
    """The folders with adapters in it, each of which can be read."""
    partial = sorted(path.name for path in folder.rglob("*.part"))
    found = sorted(path.parent for path in folder.rglob(PEFT_CONFIG))
    if partial or not found:
        raise AdapterError(f"{folder} is not whole: {partial or 'no adapter is in it'}. {otherwise}")
    for adapter in found:
        try:
            read_plain_lora(adapter)
        except AdapterError as error:
            raise AdapterError(f"{error} {otherwise}") from error
    return found
