"""The site of the documents: what it has, and that it builds without a warning."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ccm
import ccm.transformers

ROOT = Path(__file__).resolve().parents[1]


def test_the_reference_has_each_public_name_once() -> None:
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto\w+:: ccm\.(\w+)$", text, re.M)) == sorted({*ccm.__all__} - {"__version__"})
    others = re.findall(r"^\.\. auto\w+:: ccm\.transformers\.(\w+)$", text, re.M)
    assert sorted(others) == sorted(ccm.transformers.__all__)


def test_the_python_code_of_each_document_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        name = path.relative_to(ROOT).as_posix()
        assert "```python" not in path.read_text(encoding="utf-8") or f'examples("{name}"' in tests, name


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-c", "docs", "-b", "html", "-q", "-W", "--keep-going", "."]
    subprocess.run([*build, tmp_path], cwd=ROOT, check=True)
    assert "docs/index.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
    for name in ("api", "commands", "how-it-works"):
        assert (tmp_path / "docs" / f"{name}.html").is_file()
    assert 'id="ccm.CCMModel.compress"' in (tmp_path / "docs/api.html").read_text(encoding="utf-8")
