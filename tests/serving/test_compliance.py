"""Suites by others, over a real socket."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving_app import backend, running, service

from ccm.chat.conversation import Conversation
from ccm.chat.turns import Said
from ccm.serving.backend import Backend
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


class ScriptedBackend(Backend):
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
    with running(Service(scripted, held.store, held.seal)) as found:
        yield found


@pytest.mark.parametrize(
    ("form", "images"), [("open-responses", {"image-input"}), ("openai-chat", {"chat-image-input"})]
)
def test_llm_comply_passes_but_for_images(address: str, form: str, images: set[str]) -> None:
    command = [str(Path(sys.executable).with_name("llm-comply")), "-u", f"{address}/v1", "-k", "any", "-m", "builtin"]
    run = subprocess.run([*command, "--format", form, "--json"], capture_output=True, text=True, timeout=300)
    results = json.loads(run.stdout)["results"]
    assert {case["id"] for case in results if case["status"] == "failed"} == images, run.stdout
    assert sum(case["status"] == "passed" for case in results) >= 7
