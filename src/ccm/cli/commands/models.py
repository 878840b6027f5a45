"""``ccm models``: lists the models and which are here, and fetches them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.table import Table

from ccm.cli.console import counting, interrupted, plain_console, quiet
from ccm.core.provenance import Source, read_about
from ccm.core.units import size
from ccm.models.cache import find_model, model_folder
from ccm.models.catalogue import MODELS


def run_list(*, as_json: bool) -> None:
    """A table of the catalogue, or one JSON object a model."""
    rows = [_row(name) for name in MODELS]
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    table = Table("model", "parameters", "licence", "here", box=None)
    for row in rows:
        table.add_row(row["name"], f"{row['parameters']} M", row["licence"], row["here"] or "no")
    console = plain_console()
    console.print(table)
    fetch = "" if all(row["here"] for row in rows) else "Fetch one by ccm models get NAME. "
    console.print(f"{fetch}Chat with one by ccm chat --model NAME.", highlight=False)


def run_get(name: str, source: Source) -> None:
    """Fetch a model, and print its folder.

    Raises:
        ConfigError: when it cannot be had.
    """
    from ccm.models.fetch import fetch, known_model

    quiet()
    known_model(name)
    kept = interrupted("Nothing was kept; the same command begins again.")
    with kept, counting("bytes") as progress:
        folder = fetch(name, source, progress)
    plain_console().print(f"{name} is in {folder}.", soft_wrap=True, highlight=False)


def run_show(name: str, *, as_json: bool) -> None:
    """All that is known of a model: a table, or one JSON object.

    Raises:
        ConfigError: when there is none of that name.
    """
    from ccm.models.fetch import known_model  # here, as torch below: a list needs neither, a refusal no torch

    model, wheel = known_model(name), known_model(name).wheel
    from ccm.models.shipped import shipped

    folder = find_model(name)
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder else 0
    adapters = [folder.name for folder in shipped(name)]
    if as_json:
        told = {"about": model.about, "registry": asdict(wheel), "bytes": held, "folder": str(model_folder(name))}
        print(json.dumps({**_row(name), **told, "adapters": adapters}))
        return
    table = Table(show_header=False, box=None)
    rows = {
        "model": name,
        "": model.about,
        "parameters": f"{model.parameters} M",
        "licence": model.licence,
        "registry": f"{wheel.name} {wheel.version}, {wheel.precision}, {size(wheel.nbytes)}",
        "Hub": model.hub,
        "here": f"{_here(name)}, {size(held)}" if folder else "no",
        "folder": str(model_folder(name)),
        "adapters": ", ".join(adapters) or "none",
    }
    for key, value in rows.items():
        table.add_row(key, value)
    plain_console().print(table, highlight=False, soft_wrap=True)


def _row(name: str) -> dict[str, Any]:
    model = MODELS[name]
    return {
        "name": name,
        "parameters": model.parameters,
        "licence": model.licence,
        "hub": model.hub,
        "here": _here(name),
    }


def _here(name: str) -> str:
    """Precision and source of a model that is here; empty where it is not."""
    folder = find_model(name)
    had = read_about(folder) if folder else None
    return f"{had.precision}, from the {had.source}" if had else ""
