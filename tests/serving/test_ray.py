"""The server on Ray Serve: what its application refuses, and a conversation that two replicas share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import stores

from ccm.core.errors import ConfigError

pytest.importorskip("ray", reason="the extra ray is not installed")

from ccm.serving.ray import application

CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: ccm
    import_path: ccm.serving.ray:application
    args: {{store: "{store}"}}
    deployments:
      - name: Replica
        autoscaling_config: {{{scaling}}}
        ray_actor_options: {{num_cpus: 0.5}}
"""


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({}, "store is None; replicas share their turns in Redis"),
        ({"store": "turns"}, "store is turns"),
        ({"store": "redis://127.0.0.1", "replicas": "2"}, r"no settings \['replicas'\]. Known are model, "),
        ({"store": "redis://127.0.0.1", "port": 80}, r"no settings \['port'\]"),
        ({"store": "redis://127.0.0.1", "batch": "many"}, "batch"),
    ],
)
def test_an_application_names_what_is_wrong(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        application(args)


def test_an_application_takes_files_and_the_address_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCM_STORE", "redis://:secret@127.0.0.1:7379")
    application({"keys": str(tmp_path / "keys"), "secret": "secret", "days": "7", "batch": 4})


def _replicas() -> list[psutil.Process]:
    return [one for one in psutil.process_iter(["cmdline"]) if "ServeReplica" in " ".join(one.info["cmdline"] or [])]


@contextmanager
def _serving(folder: Path, replicas: int, scaling: str) -> Iterator[httpx.Client]:
    """A client of so many replicas on Ray Serve, once they are ready."""
    redis = stores.start_redis(folder, "--appendonly", "yes", "--appendfsync", "always")
    told = CONFIG.format(port=8792, store=f"unix://{folder / 'socket'}", scaling=scaling)
    (folder / "serve.yaml").write_text(told)
    programs = Path(sys.executable).parent
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    serve = subprocess.Popen([programs / "serve", "run", folder / "serve.yaml"], env=environment)
    try:
        with httpx.Client(base_url="http://127.0.0.1:8792", timeout=60) as web:
            _wait(web, replicas)
            yield web
    finally:
        serve.terminate()
        serve.wait()
        subprocess.run([programs / "ray", "stop", "--force"], capture_output=True)
        redis.kill()
        redis.wait()


@pytest.mark.slow
def test_a_conversation_goes_on_at_any_replica_and_after_one_was_killed(tmp_path: Path) -> None:
    with _serving(tmp_path, 2, "min_replicas: 2, max_replicas: 2") as web:
        last = None
        for number in range(12):
            if number == 6:
                _replicas()[0].send_signal(signal.SIGKILL)
                time.sleep(1)
            line = "My name is Anna." if not number else "What is my name?"
            last, said = _ask(web, line, last)
            assert "Anna" in said


@pytest.mark.slow
def test_a_replica_is_added_under_load_and_goes_when_there_is_none(tmp_path: Path) -> None:
    ended = threading.Event()

    def talk() -> int:
        last, turns = None, 0
        while not ended.is_set():
            last, _ = _ask(web, "My name is Anna.", last)
            turns += 1
        return turns

    scaling = "min_replicas: 1, max_replicas: 2, target_ongoing_requests: 2, upscale_delay_s: 2, downscale_delay_s: 2"
    with _serving(tmp_path, 1, scaling) as web, ThreadPoolExecutor(12) as users:
        try:
            talks = [users.submit(talk) for _ in range(12)]
            _wait(web, 2)
        finally:
            ended.set()
        assert all(one.result() for one in talks)
        _wait(web, 1)


def _ask(web: httpx.Client, line: str, last: str | None) -> tuple[str, str]:
    """The id and text of a response."""
    answer = web.post("/v1/responses", json={"model": "builtin", "input": line, "previous_response_id": last})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"], answer.json()["output"][0]["content"][0]["text"]


def _wait(web: httpx.Client, replicas: int) -> None:
    for _ in range(120):
        try:
            if web.get("/ready").status_code == 200 and len(_replicas()) == replicas:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError(f"Ray Serve never has {replicas} replicas")
