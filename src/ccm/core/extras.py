"""Packages that a plain install does not bring. Each comes with one of the extras in ``pyproject.toml``."""

from __future__ import annotations

from importlib.util import find_spec

from ccm.core.errors import ConfigError


def needs(*packages: str, what: str, extra: str = "", instead: str = "") -> None:
    """Refuse to go on without packages; nothing is imported yet.

    Args:
        packages: names of modules; on the package index they have hyphens for underscores.
        what: what needs them, such as a setting.
        extra: the extra that brings them; empty where none does.
        instead: a sentence on what can be done without them.

    Raises:
        ConfigError: naming those that are not installed, and the command that installs them.
    """
    if absent := [name for name in packages if find_spec(name) is None]:
        lacks = [name.replace("_", "-") for name in absent]
        ways = ([f"`pip install -e '.[{extra}]'`"] if extra else []) + [f"`pip install {' '.join(lacks)}`"]
        told = f"{what} needs {', '.join(lacks)}, not installed here: {' or '.join(ways)}. {instead}"
        raise ConfigError(told.rstrip())
