"""Requests that schemathesis makes up from the server's own description, allowed and forbidden ones, over a socket."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving_app import backend, running, service

from ccm.chat.conversation import Conversation
from ccm.engine.sampling import Sampling
from ccm.serving.backend import Backend

pytestmark = pytest.mark.slow
COMMAND = shutil.which("schemathesis", path=Path(sys.executable).parent)
# What it makes up is empty where it may be, and such a request is refused before all else of it is looked at.
HOOKS = """
import schemathesis

@schemathesis.hook
def before_call(context, case, kwargs):
    if isinstance(case.body, dict):
        if isinstance(case.body.get("model"), str):
            case.body["model"] = "builtin"
        if case.body.get("input") == "":
            case.body["input"] = "Hi."
        if case.body.get("messages") == [{"role": "tool"}]:
            case.body["messages"] = [{"role": "user", "content": "Hi."}]
"""


class Brief(Backend):
    """Replies of two tokens at most: the model is not the cost."""

    def begin(self, memory: Any, *, sampling: Sampling, **more: Any) -> Conversation:
        return super().begin(memory, sampling=replace(sampling, max_new_tokens=2), **more)


@pytest.mark.skipif(COMMAND is None, reason="the command schemathesis is not installed")
def test_the_server_does_as_it_describes(tmp_path: Path) -> None:
    """No request makes it fail, what the description forbids is refused, and answers are as described.

    What it allows may be refused all the same: fields of the specification that this server does not support.
    """
    (tmp_path / "hooks.py").write_text(HOOKS)
    (tmp_path / "schemathesis.toml").write_text(f'hooks = "{tmp_path / "hooks.py"}"\n')
    options = ["--generation-deterministic", "--max-examples=20", "--continue-on-failure", "--no-color"]
    options += ["--exclude-checks=positive_data_acceptance", "--suppress-health-check=all", "--warnings=off"]
    options += ["--header", "Authorization: Bearer key"]
    (tmp_path / "keys").write_text("key\n")
    brief = replace(service(), backend=Brief(backend().model, backend().tokenizer, "builtin"))
    with running(brief, tmp_path / "keys") as address:
        command = [COMMAND, "--config-file", "schemathesis.toml", "run", f"{address}/openapi.json", *options]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout
    assert "Tested: 11" in run.stdout
