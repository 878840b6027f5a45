"""Suites by others, over a real socket."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving_app import backend, service

from ccm.chat.conversation import Conversation
from ccm.chat.turns import Said
from ccm.serving.app import make_app
from ccm.serving.backend import ModelBackend
from ccm.serving.keys import Keys
from ccm.serving.service import Service

pytestmark = pytest.mark.slow


class Scripted(Conversation):
    """The built-in model, which calls the first tool that it is given, as a larger model would."""

    tool = ""

    def say(self, said: Said) -> Generator[str, None, None]:
        pieces = [*super().say(said)]
        if self.tool and self.last is not None:
            pieces = [json.dumps({"name": self.tool, "arguments": {"location": "Oslo"}})]
            self.last = replace(self.last, reply=pieces[0])
        yield from pieces


class ScriptedBackend(ModelBackend):
    """Its turns have no form for tools; here they are left out of the head."""

    def begin(self, memory: Any, *, system: str, tools: Any, sampling: Any, endless: bool) -> Conversation:
        begun = Scripted(self.model, self.tokenizer, sampling=sampling, system=system, endless=endless)
        begun.tool = tools[0]["function"]["name"] if tools else ""
        if memory is not None:
            begun.go_on(memory)
        return begun


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    held, scripted = service(), ScriptedBackend(backend().model, backend().tokenizer, "builtin")
    app = make_app(Service(scripted, held.store, held.seal), Keys(None), body=2**24)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize(
    ("form", "images"), [("open-responses", {"image-input"}), ("openai-chat", {"chat-image-input"})]
)
def test_llm_comply_passes_but_for_images(address: str, form: str, images: set[str]) -> None:
    command = [str(Path(sys.executable).with_name("llm-comply")), "-u", f"{address}/v1", "-k", "any", "-m", "builtin"]
    run = subprocess.run([*command, "--format", form, "--json"], capture_output=True, text=True, timeout=300)
    results = json.loads(run.stdout)["results"]
    assert {case["id"] for case in results if case["status"] == "failed"} == images, run.stdout
    assert sum(case["status"] == "passed" for case in results) >= 7
