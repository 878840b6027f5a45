"""A server that is told to stop ends its replies, says so, and closes its store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from ccm.cli.commands.serve import run
from ccm.serving.settings import ServerSettings

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_told_to_stop_keeps_the_replies_under_way(tmp_path: Path, way: signal.Signals) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "ccm.cli", "serve", "--port", "8791", "--store", str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    address = "http://127.0.0.1:8791"
    while True:
        try:
            httpx.get(f"{address}/ready")
            break
        except httpx.ConnectError:
            assert server.poll() is None
            time.sleep(0.1)
    names: list[str] = []

    def talk(number: int) -> None:
        said = [{"role": role, "content": f"I have {i} cats."} for i in range(40) for role in ("user", "assistant")]
        body = {"model": "builtin", "input": [*said, {"role": "user", "content": f"I am {number}."}]}
        answer = httpx.post(f"{address}/v1/responses", json=body, timeout=60)
        if answer.status_code == 200:
            names.append(answer.json()["id"])
        else:
            assert answer.status_code == 503, answer.text

    clients = [threading.Thread(target=talk, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    time.sleep(0.5)
    server.send_signal(way)
    for client in clients:
        client.join()
    out, _ = server.communicate(timeout=30)
    assert (server.returncode, "The server has ended" in out) == (0, True)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["turns.sqlite3"]
    command = [sys.executable, "-m", "ccm.cli", "memory", "list", "--store", str(tmp_path / "store"), "--json"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    assert names
    assert all(name in listed for name in names)


def test_a_stop_while_the_model_loads_ends_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("ccm.serving.start.start", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as end:
            run({"model": "builtin", "adapter": None}, ServerSettings(port=8792))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.code == 0
