"""The application: who may ask, what it says of itself, and how it fails."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import serving_app
from fastapi import FastAPI
from openai import OpenAI
from serving_app import ask, client, events_of, held_until_let_go, service

from ccm.core.errors import ConfigError
from ccm.engine.batching import Batch
from ccm.serving.app import running
from ccm.serving.guard import Guard
from ccm.serving.keys import Keys
from ccm.serving.settings import ServerSettings
from ccm.serving.tables import StoreError


@pytest.fixture(scope="module")
def web() -> Any:
    return client(service())


def test_the_time_of_a_reply_is_that_of_replies_alone() -> None:
    web = client(service())
    ask(web, "Hi.")
    assert web.post("/v1/responses", json={"model": "builtin", "input": "Hi.", "previous_response_id": "no"}).is_error
    assert web.delete(f"/v1/responses/{ask(web, 'Hi.')['id']}").is_success
    assert "ccm_reply_seconds_count 2.0" in web.get("/metrics").text


def test_a_server_is_healthy_while_all_its_threads_wait_for_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    served, gate = service(), threading.Event()
    with serving_app.running(served) as address:
        monkeypatch.setattr(type(served.store), "check", lambda _: gate.wait(60))
        asking = [
            threading.Thread(target=httpx.get, args=(f"{address}/ready",), kwargs={"timeout": 60}) for _ in range(45)
        ]
        for thread in asking:
            thread.start()
        time.sleep(0.5)
        assert httpx.get(f"{address}/health", timeout=20).text == "ok\n"
        assert any(thread.is_alive() for thread in asking)
        gate.set()
        for thread in asking:
            thread.join()


def test_a_server_whose_engine_failed_is_not_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    served = service()
    web = client(served)
    monkeypatch.setattr(served.backend.engine, "_failed", True)
    assert (web.get("/health").status_code, web.get("/health").text) == (500, "failed\n")


def test_the_server_says_what_it_is(web) -> None:
    assert web.get("/health").text == web.get("/ready").text == "ok\n"
    assert [model["id"] for model in web.get("/v1/models").json()["data"]] == ["builtin"]
    assert web.get("/v1/models/builtin").json()["id"] == "builtin"
    assert web.get("/v1/models/another/one").json()["error"]["code"] == "model_not_found"
    assert "ccm_store_keys 0.0" in web.get("/metrics").text
    ask(web, "Hi.")
    told = web.get("/metrics").text
    assert 'ccm_requests_total{api="responses"}' in told
    assert "ccm_store_keys 1.0" in told
    assert "ccm_store_bytes 0.0" not in told
    assert "ccm_store_key_bytes 0.0" not in told


def test_the_openai_client_gets_its_answers() -> None:
    with client(service()) as web:
        asked = OpenAI(api_key="any", base_url="http://testserver/v1", http_client=web)
        first = asked.responses.create(model="builtin", input="My name is Anna.")
        second = asked.responses.create(
            model="builtin", input="What is my name?", previous_response_id=first.id, stream=True
        )
        events = [*second]
        assert events[-1].type == "response.completed"
        assert events[-1].response.output_text == "Your name is Anna."
        assert asked.responses.retrieve(first.id).output_text == first.output_text
        assert asked.responses.input_items.list(first.id).data[0].content[0].text == "My name is Anna."
        asked.responses.delete(first.id)
        told = asked.chat.completions.create(model="builtin", messages=[{"role": "user", "content": "Hello!"}])
        assert told.choices[0].message.content


@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/v1/responses", b"\xff\xfe{}", 400),
        ("/v1/responses", b"[" * 100_000, 400),
        ("/v1/responses", b'{"model": "builtin", "input": "hi", "max_output_tokens": 1e400}', 400),
        ("/v1/responses", b'{"model": "builtin", "input": "\\ud800"}', 400),
        ("/v1/responses", b"", 400),
        ("/v1/responses", b'{"model": "builtin", "input": "' + b"x" * 2**21 + b'"}', 413),
        ("/v1/nowhere", b"{}", 404),
        ("/health", b"{}", 405),
    ],
)
def test_what_is_no_request_is_refused_in_one_form(web, path: str, content: bytes, status: int) -> None:
    answer = web.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert {"type", "code", "message", "param"} <= answer.json()["error"].keys()


def test_a_key_asks_so_many_times_within_a_minute(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\ntwo\n")
    web = client(service(), tmp_path / "keys", rate=2)
    asked = [web.get("/v1/models", headers={"Authorization": "Bearer one"}) for _ in range(3)]
    assert [answer.status_code for answer in asked] == [200, 200, 429]
    assert asked[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(asked[-1].headers["Retry-After"]) <= 60
    assert web.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200
    assert web.get("/health").status_code == 200


def test_nobody_reads_the_body_of_one_who_may_not_ask(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\n")
    guard = Guard(_never, Keys(tmp_path / "keys"), 2**20, 10)
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body is read")

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/v1/responses", "headers": [(b"authorization", b"Bearer other")]}
    asyncio.run(guard(scope, receive, send))
    assert sent[0]["status"] == 401


async def _never(*_: Any) -> None:
    raise AssertionError("the application is asked")


def test_a_conversation_has_so_many_steps() -> None:
    web = client(service(most_steps=2))
    first = ask(web, "Hi.")
    second = ask(web, "Hi.", first["id"])
    answer = web.post("/v1/responses", json={"model": "builtin", "input": "Hi.", "previous_response_id": second["id"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "conversation_too_long")
    said = [{"type": "message", "role": role, "content": "Hi."} for role in ("user", "assistant")] * 2
    answer = web.post("/v1/responses", json={"model": "builtin", "input": [*said, said[0]]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "conversation_too_long")


def test_a_body_without_a_length_is_counted_as_it_comes(web) -> None:
    def pieces() -> Any:
        for _ in range(40):
            yield b"x" * 2**16

    answer = web.post("/v1/responses", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("name", ["../../etc/passwd", "resp_" + "0" * 32, "%00", "x" * 5000, "'; DROP TABLE turns; --"])
def test_odd_ids_are_absent(web, name: str) -> None:
    assert web.get(f"/v1/responses/{name}").status_code == 404
    body = {"model": "builtin", "input": "hi", "previous_response_id": name}
    assert web.post("/v1/responses", json=body).status_code == 404


def test_a_full_disk_is_said_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    served = service()
    web = client(served)
    first = ask(web, "My name is Anna.")

    def full(*_: object) -> None:
        raise StoreError("database or disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(served.store, "add", full)
        body = {"model": "builtin", "input": "Hi.", "previous_response_id": first["id"]}
        answer = web.post("/v1/responses", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (507, "storage_full")
        events = events_of(web.post("/v1/responses", json={**body, "stream": True}).text)
        assert events[-1]["type"] == "error"
        assert "response.completed" not in {event["type"] for event in events}
    ask(web, "What is my name?", first["id"])


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_client_that_goes_away_leaves_nothing(monkeypatch: pytest.MonkeyPatch, streams: bool, after: int) -> None:
    served = service()
    web, asked = client(served), list[int]()

    async def gone(_: object) -> bool:
        asked.append(1)
        return len(asked) > after

    for path, body in (
        ("/v1/responses", {"model": "builtin", "input": "My name is Anna."}),
        ("/v1/chat/completions", {"model": "builtin", "messages": [{"role": "user", "content": "My name is Anna."}]}),
    ):
        asked.clear()
        with monkeypatch.context() as left:
            left.setattr("ccm.serving.app.Request.is_disconnected", gone)
            left.setattr("ccm.serving.app._LOOK", 0.01)
            left.setattr(Batch, "read", held_until_let_go(served))
            answer = web.post(path, json={**body, "stream": streams})
        assert answer.status_code == 499 or (streams and 'finish_reason": "' not in answer.text)
        assert "response.completed" not in answer.text
    served.backend.engine.stop()
    assert [*served.store.rows()] == []


def test_a_failure_after_the_first_event_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    served = service()
    web = client(served)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the machine")

    body = {"model": "builtin", "input": "Hi."}
    with monkeypatch.context() as broken:
        broken.setattr("ccm.chat.conversation.Conversation._keep", fail)
        events = events_of(web.post("/v1/responses", json={**body, "stream": True}).text)
        answer = web.post("/v1/responses", json=body)
    assert (events[-1]["type"], events[-1]["error"]["code"]) == ("error", "server_error")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "server_error")
    assert "secret" not in answer.text + str(events)
    ask(web, "Hi.")


CHAT = {"model": "builtin", "messages": [{"role": "user", "content": "Hi."}]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}),
        ("chat/completions", {"messages": [{"role": "tool", "content": "4"}]}),
        ("chat/completions", {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}, *CHAT["messages"]]}),
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi.", "name": "Anna"}]}),
        ("chat/completions", {"stop": ["x" * 300]}),
        ("chat/completions", {"stop": ["a"] * 5}),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}),
        (
            "responses",
            {"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "[" * 200_000}]},
        ),
        ("responses", {"tools": [{"type": "function", "name": "f", "parameters": {"x": "\ud800"}}]}),
        ("responses", {"stream": "yes"}),
        ("responses", {"store": 1}),
        ("responses", {"max_output_tokens": "16"}),
        ("responses", {"top_logprobs": False}),
        ("responses", {"temperature": True}),
        ("chat/completions", {"n": True}),
        ("chat/completions", {"seed": "1"}),
        ("responses", {"input": [{"role": "robot", "content": "Hi."}]}),
        ("responses", {"input": [{"type": "reasoning", "summary": []}]}),
    ],
)
def test_odd_bodies_are_refused_as_the_clients_fault(web, path: str, body: dict[str, Any]) -> None:
    whole = {**(CHAT if path.startswith("chat") else {"model": "builtin", "input": "Hi."}), **body}
    answer = web.post(f"/v1/{path}", content=json.dumps(whole), headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("parameters", ['{"a":' * 400 + "1" + "}" * 400, '{"a": 1e999}'], ids=["deep", "infinite"])
@pytest.mark.parametrize("streams", ["true", "false"])
def test_definitions_of_tools_that_cannot_be_written_again_are_refused(web, parameters: str, streams: str) -> None:
    tools = f'[{{"type": "function", "name": "f", "parameters": {parameters}}}]'
    body = f'{{"model": "builtin", "input": "Hi.", "tool_choice": "none", "stream": {streams}, "tools": {tools}}}'
    answer = web.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith("tools.0.parameters")
    assert len(answer.text) < 1000


def test_numbers_of_any_size_are_taken(web) -> None:
    for path, body in (
        ("responses", {"model": "builtin", "input": "Hi.", "max_output_tokens": 10**400}),
        ("chat/completions", {**CHAT, "max_tokens": 10**400}),
    ):
        assert web.post(f"/v1/{path}", json=body).status_code == 200


def test_the_place_of_a_fault_is_that_of_the_item_it_is_in(web) -> None:
    body = {"model": "builtin", "input": [{"type": "message", "role": "user", "content": [{"type": "input_text"}]}]}
    told = web.post("/v1/responses", json=body).json()["error"]
    assert (told["param"], told["message"]) == ("input.0.content.0.text", "input.0.content.0.text: Field required.")


@pytest.mark.parametrize("query", ["?stream=true", "?cascade=true&cascade=false", "?cascade=maybe"])
def test_a_query_that_is_not_of_the_operation_or_twice_is_refused(web, query: str) -> None:
    made = ask(web, "Hi.")["id"]
    assert web.delete(f"/v1/responses/{made}{query}").status_code == 400
    assert web.get(f"/v1/responses/{made}{query}").status_code == 400
    assert web.get(f"/v1/responses/{made}/input_items?limit=1").status_code == 400
    assert web.get("/health?from=balancer").status_code == 200
    assert web.delete(f"/v1/responses/{made}?cascade=true").json()["deleted"]


def test_all_methods_of_a_path_are_told(web) -> None:
    refused = web.put("/v1/responses/x")
    assert (refused.status_code, {*refused.headers["allow"].split(", ")}) == (405, {"GET", "DELETE"})


def test_errors_are_described_in_one_form(web) -> None:
    paths = web.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values() if path.startswith("/v1/") else ():
            refusals = {status: told for status, told in operation["responses"].items() if status != "200"}
            assert refusals.keys() == {"400", "401", "404", "409", "413", "422", "429", "500", "503", "507"}
            forms = {told["content"]["application/json"]["schema"]["$ref"] for told in refusals.values()}
            assert forms == {"#/components/schemas/Refusal"}


def test_ids_of_completions_are_no_responses(web) -> None:
    made = web.post("/v1/chat/completions", json=CHAT).json()["id"]
    assert web.get(f"/v1/responses/{made}").status_code == 404
    assert web.get(f"/v1/responses/{made}/input_items").status_code == 404
    body = {"model": "builtin", "input": "hi", "previous_response_id": made}
    assert web.post("/v1/responses", json=body).status_code == 404


def test_other_addresses_than_loopback_need_keys(tmp_path: Path) -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        ServerSettings(host=host)
    for host in ("0.0.0.0", "example.org", "::"):
        with pytest.raises(ConfigError, match="keys=FILE"):
            ServerSettings(host=host)
        ServerSettings(host=host, keys=tmp_path)


def test_keys_that_cannot_be_had_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "absent")
    (tmp_path / "empty").write_text("\n# none\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        Keys(tmp_path / "empty")


def test_expiry_goes_on_after_a_disk_was_full(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def expire() -> None:
        tried.append(1)
        raise StoreError("database or disk is full")

    served = service()
    monkeypatch.setattr(served.store, "expire", expire)
    monkeypatch.setattr("ccm.serving.app._HOUR", 0.01)

    async def run() -> None:
        async with running(served)(FastAPI()):
            while len(tried) < 2:
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(run(), 5))
