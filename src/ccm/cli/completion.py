"""Names that the shell completes. None of them needs torch, so that they come at once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.resources import files


def models(incomplete: str) -> list[str]:
    """Short names of models."""
    from ccm.models.builtin import NAME
    from ccm.models.catalogue import MODELS as FETCHED
    from ccm.models.published import MODELS as PUBLISHED

    return _beginning(incomplete, [NAME, *FETCHED, *PUBLISHED])


def fetched_models(incomplete: str) -> list[str]:
    """Models that ``ccm models get`` fetches."""
    from ccm.models.catalogue import MODELS

    return _beginning(incomplete, MODELS)


def rules(incomplete: str) -> list[str]:
    """Rules of memory, as their source names them: to import it is to import torch."""
    source = files("ccm.core").joinpath("rules.py").read_text(encoding="utf-8")
    return _beginning(incomplete, re.findall(r'^    name = "(\w+)"', source, re.MULTILINE))


def recipes(incomplete: str) -> list[str]:
    """Recipes of the package."""
    from ccm.training.recipe_files import FOLDER

    return _beginning(incomplete, sorted(path.stem for path in FOLDER.glob("*.yaml")))


def data_sets(incomplete: str) -> list[str]:
    """Data sets that can be prepared."""
    from ccm.data.sources.catalogue import SOURCES

    return _beginning(incomplete, SOURCES)


def adapter_sets(incomplete: str) -> list[str]:
    """Sets of the authors' adapters."""
    from ccm.models.published import ADAPTERS

    return _beginning(incomplete, ADAPTERS)


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
