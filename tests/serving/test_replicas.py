"""The guide to several servers, whose first commands run as they are written."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "replicas.md"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_conversation_goes_on_at_the_other_server_as_the_guide_says(tmp_path: Path) -> None:
    start, ask, *_ = re.findall(r"^```\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = f"trap 'kill $(jobs -p); wait' EXIT\n{start}{ask}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        timeout=300,
        check=True,
    )
    said = done.stdout.decode()
    answer, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])
    assert "Anna" in answer["output"][0]["content"][0]["text"]
