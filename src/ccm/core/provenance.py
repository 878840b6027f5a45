"""The note in a model's folder that says where the model came from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ccm.core.files import save_json

ABOUT = "ccm_model.json"
Source = Literal["registry", "hub"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model in the cache came from.

    Attributes:
        name: its short name.
        source: "registry", a registry of packages, or "hub".
        precision: the format of its weights there.
        sha256: checksum of the downloaded file; empty where there were several.
    """

    name: str
    source: Source
    precision: str
    sha256: str = ""


def write_about(folder: Path, source: ModelSource) -> None:
    """Note in a model's folder where it came from."""
    save_json(folder / ABOUT, asdict(source))


def read_about(folder: Path) -> ModelSource | None:
    """Where the model in a folder came from; None where there is no readable note."""
    try:
        return ModelSource(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def called(place: str) -> str:
    """The name of a model for people: its short name and source, or the last part of the path or Hub id ``place``."""
    source = read_about(Path(place)) if place else None
    return f"{source.name} ({source.precision}, from the {source.source})" if source else Path(place).name
