"""Where a model in a folder came from, as a file in the folder says."""

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
        source: "registry" of packages, or "hub".
        precision: how its weights were stored there.
        sha256: of the file that was had; empty for several.
    """

    name: str
    source: Source
    precision: str
    sha256: str = ""


def write_about(folder: Path, had: ModelSource) -> None:
    """Say in a model's folder where it came from."""
    save_json(folder / ABOUT, asdict(had))


def read_about(folder: Path) -> ModelSource | None:
    """Where a model came from; None where its folder does not say."""
    try:
        return ModelSource(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def called(place: str) -> str:
    """What people call a model that was loaded from there: its short name with its source, or the folder's own name."""
    had = read_about(Path(place)) if place else None
    return f"{had.name} ({had.precision}, from the {had.source})" if had else Path(place).name
