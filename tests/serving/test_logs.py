"""The log: a line for each request that says how it went, and nothing that a client said."""

from __future__ import annotations

import http.client
import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving_app import MIB, ask, client, held_until_let_go, running, service

from ccm.cli.commands.serve import run
from ccm.engine.batching import Batch
from ccm.serving.keys import ANYONE, Keys
from ccm.serving.logs import JSONLines, TextLines, begin_logs
from ccm.serving.settings import ServerSettings
from ccm.serving.tables import StoreUnavailableError

Lines = Callable[[], list[dict[str, Any]]]
KEY = "sk-of-anna-alone"
HEADERS = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The lines that were logged since the last call, as programs read them."""
    caplog.set_level(logging.INFO, "ccm.serving.logs")
    shown = JSONLines()

    def told() -> list[dict[str, Any]]:
        found = [json.loads(shown.format(record)) for record in caplog.records if record.name.startswith("ccm")]
        caplog.clear()
        return found

    return told


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    return tmp_path / "keys"


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Logging that a test may set up."""
    root, handlers, level = logging.root, logging.root.handlers, logging.root.level
    root.handlers = []
    yield
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)
    logging.getLogger("ccm").setLevel(logging.NOTSET)


def test_a_line_says_how_a_request_went(lines: Lines, keys: Path) -> None:
    served = service()
    with client(served, keys) as web:
        web.headers |= HEADERS
        first = ask(web, "My name is Anna.")
        lines()
        second = ask(web, "What is my name?", first["id"])
        (line,) = lines()
        usage, memory = second["usage"], second["ccm:memory"]
        assert 0 < line.pop("first_ms") <= line.pop("ms")
        assert line.pop("time").endswith("Z")
        assert line == {
            "level": "info",
            "event": "request",
            "method": "POST",
            "route": "/v1/responses",
            "status": 200,
            "key": next(served.store.rows())["key"],
            "error": None,
            "asked": usage["input_tokens"],
            "cached": usage["input_tokens_details"]["cached_tokens"],
            "replied": usage["output_tokens"],
            "entries": memory["entries"],
            "bytes": memory["bytes"],
        }
        assert line["cached"] > 0
        web.get(f"/v1/responses/{first['id']}")
        (line,) = lines()
        assert not {"asked", "cached", "replied", "entries", "bytes"} & line.keys()
        web.get("/health")
        (line,) = lines()
        assert (line["route"], line["key"]) == ("/health", None)


def test_turns_that_make_way_for_newer_ones_are_told(lines: Lines) -> None:
    with client(service(quota=60_000)) as web:
        for _ in range(6):
            ask(web, "My name is Anna.")
        (line, *_) = [one for one in lines() if one["event"] == "quota"]
        assert (line["key"], line["deleted"]) == (ANYONE.hex()[:8], 1)


@pytest.mark.parametrize("streams", [True, False])
def test_both_apis_tell_what_they_used_once(lines: Lines, streams: bool) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}} if streams else {}
    with client(service()) as web:
        said = [{"role": "user", "content": "My name is Anna."}]
        web.post("/v1/chat/completions", json={"model": "builtin", "messages": said, **options})
        web.post("/v1/responses", json={"model": "builtin", "input": said, "stream": streams})
        chat, response = lines()
        assert min(chat[name] for name in ("asked", "replied", "entries", "bytes")) > 0
        assert response["asked"] == chat["asked"]
        told = web.get("/metrics").text
        assert f"ccm_tokens_total {chat['replied'] + response['replied']:.1f}" in told


def test_a_stream_lasts_until_its_end(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Batch.read

    def slow(batch: Batch, ids: list[int]) -> Any:
        time.sleep(0.02)
        return read(batch, ids)

    monkeypatch.setattr(Batch, "read", slow)
    client(service()).post("/v1/responses", json={"model": "builtin", "input": "My name is Anna.", "stream": True})
    (line,) = lines()
    assert line["ms"] > line["first_ms"] + 20 * (line["replied"] - 2)


def test_refusals_are_logged_with_their_codes(lines: Lines, keys: Path) -> None:
    web, body = client(service(), keys, rate=5), {"model": "builtin", "input": "Hi."}
    web.post("/v1/responses", json=body)
    for path, content in (
        ("responses", b"x" * (MIB + 1)),
        ("responses", b"{"),
        ("responses", b"[]"),
        ("nowhere", b"{}"),
        ("responses/resp_0", b"{}"),
        ("responses", b"{}"),
    ):
        web.post(f"/v1/{path}", content=content, headers={**HEADERS, "content-type": "application/json"})
    told = [(line["status"], line["route"], line["error"]) for line in lines()]
    assert told == [
        (401, "/v1/responses", "invalid_api_key"),
        (413, "/v1/responses", "request_too_large"),
        (400, "/v1/responses", "invalid_json"),
        (400, "/v1/responses", "invalid_value"),
        (404, None, "not_found"),
        (405, "/v1/responses/{response_id}", "method_not_allowed"),
        (429, "/v1/responses", "rate_limit_exceeded"),
    ]


def test_failures_are_logged_by_their_kind(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    web, body = client(service()), {"model": "builtin", "input": "Hi."}
    for error, status, code in (
        (RuntimeError("My name is Anna."), 500, "server_error"),
        (StoreUnavailableError("My name is Anna."), 503, "store_unavailable"),
    ):

        def fail(*_: object, failed: Exception = error, **__: object) -> None:
            raise failed

        monkeypatch.setattr("ccm.chat.conversation.Conversation._keep", fail)
        for streams in (False, True):
            web.post("/v1/responses", json={**body, "stream": streams})
            failure, request = sorted(lines(), key=lambda line: line["event"])
            assert (failure["level"], failure["event"], failure["kind"]) == ("error", "failure", type(error).__name__)
            assert (request["status"], request["error"]) == (200 if streams else status, code)
            assert "Anna" not in str([failure, request])


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_has_status_499(lines: Lines, monkeypatch: pytest.MonkeyPatch, streams: bool) -> None:
    served = service()

    monkeypatch.setattr(Batch, "read", held_until_let_go(served))
    with running(served) as address:
        web = http.client.HTTPConnection(address.removeprefix("http://"))
        body = json.dumps({"model": "builtin", "input": "My name is Anna.", "stream": streams})
        web.request("POST", "/v1/responses", body, {"content-type": "application/json"})
        if streams:
            web.getresponse().read(10)
        web.close()
    (line,) = lines()
    assert (line["status"], line["error"], "replied" in line) == (499, None, False)


def test_no_line_holds_what_a_client_said(lines: Lines, keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets, text = [KEY, "a-wrong-key", Keys(keys).owners[0].hex()], "zyxwvu"
    with client(service(), keys) as web:
        web.post("/v1/responses", json={"input": text}, headers={"Authorization": "Bearer a-wrong-key"})
        web.headers |= HEADERS | {"user-agent": f"{text} agent"}
        for body in ({"instructions": text}, {"stream": True}, {"previous_response_id": text}, {text: 1}):
            web.post("/v1/responses", json={"model": "builtin", "input": text, **body})
        web.post("/v1/responses", json={"model": text, "input": text})
        web.post("/v1/responses", content=f'{{"{text}')
        first = ask(web, f"My name is {text}.")
        sealed = web.post(
            "/v1/responses/compact", json={"model": "builtin", "previous_response_id": first["id"]}
        ).json()
        chat = {"model": "builtin", "messages": [{"role": "user", "content": text}]}
        made = [first["id"], sealed["id"], web.post("/v1/chat/completions", json=chat).json()["id"]]
        for path in ("", "/input_items", f"/{text}", f"?{text}={text}"):
            web.get(f"/v1/responses/{first['id']}{path}")
        web.get(f"/v1/models/{text}")
        web.get(f"/{text}")
        web.delete(f"/v1/responses/{first['id']}?cascade=true")
        secrets += [text, sealed["output"][-1]["encrypted_content"], "Bearer", "testclient", *made]
    shown = "\n".join(form.format(record) for record in caplog.records for form in (JSONLines(), TextLines()))
    told = lines()
    assert len([line for line in told if line["event"] == "request"]) == len(told) == 17
    assert not [secret for secret in secrets if secret in shown or secret in str(told)]


@pytest.mark.usefixtures("own_logging")
def test_all_that_the_process_logs_is_lines_of_one_form(capsys: pytest.CaptureFixture[str]) -> None:
    library = logging.getLogger("of.a.library")
    library.addHandler(logging.StreamHandler())
    library.propagate = False
    begin_logs("json")
    library.warning("two\nlines")
    warnings.warn("a warning of Python", stacklevel=1)
    try:
        raise ValueError("My name is Anna.")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    written = capsys.readouterr().err
    two, warning, error = map(json.loads, written.splitlines())
    assert (two["level"], two["logger"], two["message"]) == ("warning", "of.a.library", "two\nlines")
    assert (warning["level"], warning["logger"]) == ("warning", "py.warnings")
    assert (error["level"], error["logger"], error["kind"]) == ("error", "uvicorn.error", "ValueError")
    assert __file__ in error["stack"][0]
    assert "Anna" not in written
    begin_logs("text")
    library.warning("two\nlines")
    assert capsys.readouterr().err.endswith("Z warning log two lines logger=of.a.library\n")


@pytest.mark.usefixtures("own_logging")
def test_a_server_tells_of_its_start_its_warnings_and_its_end(
    monkeypatch: pytest.MonkeyPatch, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys.chmod(0o644)
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    run({}, ServerSettings(port=0, keys=keys, log="json"))
    with pytest.raises(SystemExit, match="2"):
        run({}, ServerSettings(port=0, keys=keys.with_name("none"), log="json"))
    written = capsys.readouterr()
    told = [json.loads(line) for line in written.err.splitlines()]
    assert [line["event"] for line in told] == ["warning", "start", "stop", "failure"]
    assert "chmod 600" in told[0]["message"]
    assert (told[-1]["level"], told[-1]["kind"]) == ("error", "ConfigError")
    assert written.out == ""
