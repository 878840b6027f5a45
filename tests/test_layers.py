"""The rooms of the package: which there are, and that lower ones know nothing of higher ones."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ccm
from ccm.core.rules import RULES

PACKAGE = Path(ccm.__file__).parent
ROOMS = (
    "core",
    "engine",
    "models",
    "streams",
    "chat",
    "transformers",
    "data",
    "training",
    "evaluation",
    "adapters",
    "serving",
    "cli",
)
UPWARD = {  # each is an import within a function, with its reason beside it
    ("ccm.engine.adapted", "ccm.models.load"),
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imported(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "ccm")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ccm":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def level(module: str) -> int:
    """How high a module stands; the public names are for users and the command line."""
    return ROOMS.index(module.split(".")[1]) if "." in module else len(ROOMS) - 1


def test_the_package_has_few_names() -> None:
    names = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert names == {"__init__.py", "py.typed", *ROOMS}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"ccm"}))
def test_no_module_imports_a_higher_room(name: str) -> None:
    above = {found for found in imported(MODULES[name]) if level(found) > level(name)}
    assert above == {high for low, high in UPWARD if low == name}


def test_the_engine_and_the_training_ask_a_rule_and_never_for_its_name() -> None:
    """The bounds "full" and "none" aside; the seams are tried under one rule, whichever."""
    names = {rule.name for rule in RULES.values() if rule.compresses == "step"}
    found = {
        (name, node.value)
        for name, path in MODULES.items()
        if name.startswith(("ccm.engine.", "ccm.streams.", "ccm.chat.", "ccm.training."))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert found == {("ccm.engine.seams", "concat")}


@pytest.mark.parametrize("name", [name for name in ccm.__all__ if name != "__version__"])
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ccm, name).__name__ == name
