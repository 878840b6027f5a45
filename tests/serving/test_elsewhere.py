"""Tables that do not hold up the engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from serving_app import ask, client, service

from ccm.serving.sqlite import SQLiteTables
from ccm.serving.store import open_tables
from ccm.serving.tables import Transaction


def test_no_transaction_of_a_request_runs_in_the_thread_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, run = list[str](), SQLiteTables.run

    def told(tables: SQLiteTables, work: Callable[[Transaction], Any], *, overwrite: bool) -> Any:
        threads.append(threading.current_thread().name)
        return run(tables, work, overwrite=overwrite)

    with client(service(tables=open_tables(None))) as web:
        monkeypatch.setattr(SQLiteTables, "run", told)
        first = ask(web, "My name is Anna.")["id"]
        ask(web, "Hello!", first)
        said = [{"role": "user", "content": "My name is Anna."}]
        assert web.post("/v1/chat/completions", json={"model": "builtin", "messages": said}).status_code == 200
        assert web.post("/v1/responses/compact", json={"model": "builtin", "previous_response_id": first}).is_success
        assert web.delete(f"/v1/responses/{first}").is_success
    assert len(threads) > 8
    assert "ccm engine" not in threads
