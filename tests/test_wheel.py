"""What is published: the files of the wheel, and the package as `pip install` gives it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGE = ROOT / "src" / "ccm"


def test_every_file_of_the_package_that_is_no_code_is_package_data() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["ccm"]
    assert all([*PACKAGE.glob(pattern)] for pattern in patterns)
    packed = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    assert packed >= {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}


def test_the_citation_names_this_version_and_the_paper() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= told.keys()
    assert told["version"] == PROJECT["project"]["version"]
    assert told["license"] == PROJECT["project"]["license"].split(" AND ")[0]  # of the code
    assert told["preferred-citation"]["title"] in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], capture_output=True, text=True)
    if done.returncode and "No matching distribution" in done.stdout + done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_archives_hold_the_package_and_no_tests(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"ccm"}
    assert {name.removeprefix("ccm/") for name in names if name.startswith("ccm/")} == {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with tarfile.open(source) as archive:
        sources = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt"} <= sources
    assert not {name for name in sources if name.startswith(("tests", "benchmarks", "reproductions", "docs"))}


@pytest.mark.slow
def test_the_wheel_alone_holds_a_conversation_in_any_folder_and_offline(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [tmp_path / "venv/bin/pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel]
    subprocess.run(install, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HOME": str(elsewhere)}

    def run(*command: str, said: str = "") -> str:
        program, *words = command
        told = [tmp_path / "venv/bin" / program, *words]
        options = {"capture_output": True, "text": True, "check": True}
        return subprocess.run(told, cwd=elsewhere, env=environment, input=said, **options).stdout

    light = "import sys, ccm; print(ccm.__version__, 'torch' in sys.modules)"
    assert run("python", "-c", light) == f"{PROJECT['project']['version']} False\n"
    assert PROJECT["project"]["version"] in run("ccm", "--version")
    assert "Your name is Anna." in run("ccm", "chat", said="My name is Anna.\nWhat is my name?\n")
    assert "smollm2-135m" in run("ccm", "models", "list")
