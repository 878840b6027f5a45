"""Packages that a plain install does not bring are named where they are needed, with the extra that brings them."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import ccm
from ccm.core.errors import ConfigError
from ccm.core.extras import needs

SOURCE = Path(ccm.__file__).parent
PROJECT = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())["project"]


def packages(requirements: list[str]) -> set[str]:
    return {re.match(r"[\w-]+", line)[0].replace("-", "_") for line in requirements}


EXTRAS = {name: packages(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def asked_for() -> Iterator[tuple[Path, set[str], str | None]]:
    """Each call of :func:`needs` in the package: its file, the packages that it names, and its extra."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "needs":
                named = {one.value for one in node.args if isinstance(one, ast.Constant)}
                extra = next((word.value for word in node.keywords if word.arg == "extra"), None)
                yield path, named, extra.value if isinstance(extra, ast.Constant) else None


def test_what_is_there_is_not_refused() -> None:
    needs("json", "torch", what="A test")


def test_what_is_absent_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bm25s", "rouge_score"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as refusal:
        needs("bm25s", "json", "rouge_score", what="A_test", extra="eval", instead="Or do without.")
    assert str(refusal.value) == (
        "A_test needs bm25s, rouge-score, not installed here: `pip install -e '.[eval]'` or "
        "`pip install bm25s rouge-score`. Or do without."
    )
    with pytest.raises(ConfigError, match=r"needs bm25s, not installed here: `pip install bm25s`\.$"):
        needs("bm25s", what="A test")


def test_without_a_clone_the_installed_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    monkeypatch.setattr("ccm.core.extras._in_clone", lambda: False)
    with pytest.raises(ConfigError, match=r"`pip install 'compressed-context-memory\[eval\]'` or `pip install bm25s`"):
        needs("bm25s", what="A test", extra="eval")
    assert PROJECT["name"] == "compressed-context-memory"


def test_every_extra_that_a_message_names_brings_the_packages() -> None:
    calls = [*asked_for()]
    assert {extra for _, _, extra in calls} >= {"eval", "data", "quant", "gguf", "adapters", "embeddings"}
    for path, named, extra in calls:
        assert extra is None or named <= EXTRAS[extra], path


def test_developers_have_every_extra() -> None:
    (whole,) = (line for line in PROJECT["optional-dependencies"]["dev"] if line.startswith(PROJECT["name"]))
    assert set(whole.partition("[")[2].rstrip("]").split(",")) == EXTRAS.keys() - {"dev", "ray"}, "Ray is large"


def test_only_what_a_plain_install_brings_is_imported_unasked() -> None:
    """Beside the package's own dependencies and the standard library, modules may import what those need anyway.

    The room of the server is itself imported by ``ccm serve`` alone, once what it needs is there.
    """
    serving = packages(PROJECT["optional-dependencies"]["serve"]) | {"anyio", "pydantic", "pydantic_core", "starlette"}
    plain = packages(PROJECT["dependencies"]) | {"accelerate", "yaml", "ccm", *sys.stdlib_module_names}
    for path in SOURCE.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        found = {node.module for node in body if isinstance(node, ast.ImportFrom)}
        found |= {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        asked = serving if "serving" in path.parts else set()
        if path == SOURCE / "serving" / "ray.py":  # which Ray imports
            asked = asked | {"ray"}
        if path == SOURCE / "evaluation" / "harness.py":  # which users of lm-eval import
            asked = asked | {"lm_eval", "tqdm"}
        assert {name.split(".")[0] for name in found if name} <= plain | asked, path
