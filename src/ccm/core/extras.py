"""Optional packages: a plain install lacks them, and an extra in ``pyproject.toml`` brings each."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ccm.core.errors import ConfigError


def needs(*packages: str, what: str, extra: str = "", instead: str = "") -> None:
    """Check that optional packages are installed, without importing them.

    Args:
        packages: names of modules; the package index writes hyphens for their underscores.
        what: what needs them, such as a setting.
        extra: the extra that brings them; empty if none does.
        instead: a sentence that says what works without them.

    Raises:
        ConfigError: with the missing packages and the command that installs them.
    """
    if absent := [name for name in packages if find_spec(name) is None]:
        lacks = [name.replace("_", "-") for name in absent]
        what_has_it = f"-e '.[{extra}]'" if _in_clone() else f"'compressed-context-memory[{extra}]'"
        ways = ([f"`pip install {what_has_it}`"] if extra else []) + [f"`pip install {' '.join(lacks)}`"]
        told = f"{what} needs {', '.join(lacks)}, not installed here: {' or '.join(ways)}. {instead}"
        raise ConfigError(told.rstrip())


def _in_clone() -> bool:
    """Whether the package runs from a clone of its repository."""
    return (Path(__file__).parents[3] / "pyproject.toml").is_file()
