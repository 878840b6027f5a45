"""Clients that nobody here wrote: curl and the ``openai`` package as the documents use them, and ``llm``."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import NotFoundError, OpenAI
from serving_app import running, service

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running(service()) as found:
        yield found


def examples(document: str, language: str, address: str) -> list[str]:
    """The blocks of a document, with the address of a server that runs."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = [block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M) if kind == language]
    return [re.sub(r"(http://)?(localhost|127\.0\.0\.1):8000", address, block) for block in blocks if "8000" in block]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the command curl is not installed")
@pytest.mark.parametrize(
    ("document", "replies"),
    [("README.md", ["Welcome, Anna!"]), ("docs/serve.md", ["Your name is Anna.", "Welcome, Anna!"])],
)
def test_the_commands_of_the_documents_are_answered(address: str, document: str, replies: list[str]) -> None:
    said = []
    for block in examples(document, "", address):
        if commands := "\n".join(line for line in block.splitlines() if not re.match("(make|pip|ccm) ", line)).strip():
            run = subprocess.run(["bash", "-euc", commands], capture_output=True, text=True, timeout=60, check=True)
            answer = json.loads(run.stdout)
            part = answer["choices"][0]["message"] if "choices" in answer else answer["output"][0]["content"][0]
            said.append(part.get("content") or part["text"])
    assert said == replies


def test_the_python_of_the_guide_is_answered(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = examples("docs/serve.md", "python", address)
    exec(code, {})
    assert re.fullmatch(r"Your name is Anna\. [1-9]\d*\n", capsys.readouterr().out)


def test_the_openai_client_streams_retrieves_and_deletes(address: str) -> None:
    asked = OpenAI(base_url=f"{address}/v1", api_key="any")
    first = asked.responses.create(model="builtin", input=[{"role": "user", "content": "My name is Anna."}])
    with asked.responses.stream(
        model="builtin", input="What is my name?", previous_response_id=first.id, max_output_tokens=100
    ) as events:
        told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        last = events.get_final_response()
    assert last.output_text == told.strip() == "Your name is Anna."
    assert asked.responses.retrieve(last.id).previous_response_id == first.id
    again = [
        {"role": "user", "content": "My name is Anna."},
        *first.output,
        {"role": "user", "content": "What is my name?"},
    ]
    assert asked.responses.create(model="builtin", input=again).output_text == "Your name is Anna."
    asked.responses.delete(last.id)
    with pytest.raises(NotFoundError):
        asked.responses.retrieve(last.id)
    chunks = asked.chat.completions.create(
        model="builtin",
        messages=[{"role": "user", "content": [{"type": "text", "text": "My name is Anna."}]}],
        stream=True,
        stream_options={"include_usage": True},
    )
    *texts, end = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in texts).strip() == "Welcome, Anna!"
    assert end.usage is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("llm") is None, reason="the command llm is not installed: pip install llm")
@pytest.mark.parametrize("responses", ["true", "false"])
def test_llm_goes_on_with_a_conversation(address: str, tmp_path: Path, responses: str) -> None:
    """It streams, by either API, and sends the whole conversation each time."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ccm\n  model_name: builtin\n  api_base: {address}/v1\n  responses: {responses}\n"
    )

    def llm(*words: str) -> str:
        environment = {**os.environ, "LLM_USER_PATH": str(tmp_path)}
        run = subprocess.run(
            ["llm", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        return run.stdout.strip()

    model = ("-m", "ccm", "--key", "any")
    system = ("-s", "You are kind.", "-o", "temperature", "0", "-o", "max_tokens", "100")
    assert llm(*model, *system, "My name is Anna.")
    assert llm("-c", *model, "What is my name?") == "Your name is Anna."
    (logged,) = json.loads(llm("logs", "-n", "1", "--json"))
    if responses == "false":  # of messages the server finds what is in memory already
        assert json.loads(logged["token_details"])["prompt_tokens_details"]["cached_tokens"] > 0
    assert llm(*model, "--no-stream", "Hello!")
