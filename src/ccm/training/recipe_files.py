"""Recipes of the package, by name. torch is not needed for it, so that an unknown name is refused at once."""

from __future__ import annotations

from pathlib import Path

from ccm.core.errors import ConfigError, unknown_name

FOLDER = Path(__file__).with_name("recipes")
_DATA = (".jsonl", ".txt", ".csv", ".parquet", ".gz")  # endings of data files, which users mistake for recipes


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe.

    Raises:
        ConfigError: if there is no such recipe, or ``source`` names a data file.
    """
    if Path(source).suffix.lower() in _DATA:
        raise ConfigError(f"{source} is a data file, not a recipe. Name a recipe such as custom, with data.path=FILE.")
    if Path(source).is_file():
        return Path(source)
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if str(source) not in names:
        raise unknown_name("recipe", str(source), names)
    return FOLDER / f"{source}.yaml"
