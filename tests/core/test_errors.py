"""Messages: the library names settings; flags are of the command line alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ccm

PACKAGE = Path(ccm.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z]")
COMMANDS = {"cli"}
LISTED = {"data/sources/catalogue.py", "models/fetch.py"}  # whole commands, as data; those of pip and uv


def modules() -> list[str]:
    """Those of the library."""
    names = (path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")))
    library = [str(name) for name in names if name.parts[0] not in COMMANDS and name.as_posix() not in LISTED]
    return [name for name in library if "import argparse" not in (PACKAGE / name).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", modules())
def test_the_library_names_no_flag(name: str) -> None:
    tree = ast.parse((PACKAGE / name).read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    holders = [node for node in ast.walk(tree) if isinstance(node, documented)]
    docstrings = {id(node.body[0].value) for node in holders if node.body and isinstance(node.body[0], ast.Expr)}
    texts = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert [text.value for text in texts if id(text) not in docstrings and FLAG.search(text.value)] == []
