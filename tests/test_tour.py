"""The notebook: that it runs from top to bottom, and that it can be read without running."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tour.ipynb"


def outputs(cells: list[Any]) -> tuple[str, int]:
    """What the cells printed, and how many pictures they drew."""
    found = [output for cell in cells for output in cell.get("outputs", [])]
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    printed = "".join("".join(output["text"]) for output in found if output["output_type"] == "stream")
    return printed, sum("image/png" in output.get("data", {}) for output in found)


def test_the_notebook_has_its_results_and_no_place_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    printed, pictures = outputs(cells)
    assert "Your cat is called Biscuit." in printed
    assert pictures == 4
    written = "\n".join([printed, *("".join(cell["source"]) for cell in cells)])
    assert re.findall(r"(?<![\w.:/])/\w+/\w+", written) == [], "an absolute path"
    assert len(text) < 400_000


@pytest.mark.slow
def test_the_notebook_runs_and_says_what_it_said(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = outputs(notebook.cells)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert outputs(notebook.cells) == before
