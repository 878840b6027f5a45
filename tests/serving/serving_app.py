"""A server in the process, on the built-in model."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi.testclient import TestClient
from stores import place
from torch import Tensor

import ccm
from ccm.engine.batching import Batch
from ccm.serving.app import make_app
from ccm.serving.backend import Backend
from ccm.serving.elsewhere import TablesElsewhere
from ccm.serving.keys import Keys
from ccm.serving.sealing import Seal
from ccm.serving.service import Service
from ccm.serving.settings import DAY, MIB
from ccm.serving.store import Store, open_tables


@cache
def backend(rule: str = "concat") -> Backend:
    """The built-in model under a rule, loaded once."""
    return Backend(*ccm.load("builtin", rule=rule), "builtin")


def service(rule: str = "concat", folder: Path | None = None, secret: Path | None = None, **changes: Any) -> Service:
    """The service of a server."""
    one = Backend(backend(rule).model, backend(rule).tokenizer, "builtin")  # an engine of its own: each server ends its
    tables, limits = changes.pop("tables", None) or open_tables(place(folder)), {"seconds": DAY, "quota": 64 * MIB}
    store = Store(
        TablesElsewhere(tables), one.origin, **{name: changes.pop(name, value) for name, value in limits.items()}
    )
    return Service(one, store, Seal(secret, one.origin), **changes)


def client(served: Service, keys: Path | None = None, body: int = MIB, rate: int = 10_000) -> TestClient:
    """A client of a server."""
    return TestClient(make_app(served, Keys(keys), body=body, rate=rate), raise_server_exceptions=False)


@contextmanager
def running(served: Service, keys: Path | None = None) -> Iterator[str]:
    """The address of a server on a socket of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = make_app(served, Keys(keys), body=MIB, rate=10_000)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def held_until_let_go(served: Service) -> Callable[[Batch, list[int]], Tensor]:
    """A way to read in which the next token comes once a request is let go of."""
    read = Batch.read

    def held(batch: Batch, ids: list[int]) -> Tensor:
        for _ in range(1000):
            if any(task.cancelled for task in served.backend.engine._active):
                return read(batch, ids)
            time.sleep(0.01)
        raise AssertionError("the model goes on")

    return held


def ask(web: TestClient, said: Any, previous: str | None = None, **more: Any) -> dict[str, Any]:
    """A response to what is said, after another one."""
    answer = web.post(
        "/v1/responses", json={"model": "builtin", "input": said, "previous_response_id": previous, **more}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def text_of(response: dict[str, Any]) -> str:
    """What a response says."""
    return response["output"][0]["content"][0]["text"]


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, whose last line says that it is done."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
