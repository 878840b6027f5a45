"""The server on Ray Serve: what its application refuses, and a conversation that two replicas share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
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
        autoscaling_config: {{min_replicas: 2, max_replicas: 2}}
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


@pytest.mark.slow
def test_a_conversation_goes_on_at_any_replica_and_after_one_was_killed(tmp_path: Path) -> None:
    redis = stores.start_redis(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    (tmp_path / "serve.yaml").write_text(CONFIG.format(port=8792, store=f"unix://{tmp_path / 'socket'}"))
    programs = Path(sys.executable).parent
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    serve = subprocess.Popen([programs / "serve", "run", tmp_path / "serve.yaml"], env=environment)
    web = httpx.Client(base_url="http://127.0.0.1:8792", timeout=60)
    try:
        _wait(web)
        last = None
        for number in range(12):
            if number == 6:
                _replicas()[0].send_signal(signal.SIGKILL)
                time.sleep(1)
            line = "My name is Anna." if not number else "What is my name?"
            body = {"model": "builtin", "input": line, "previous_response_id": last}
            answer = web.post("/v1/responses", json=body)
            assert answer.status_code == 200, answer.text
            last = answer.json()["id"]
            assert "Anna" in answer.json()["output"][0]["content"][0]["text"]
    finally:
        serve.terminate()
        serve.wait()
        subprocess.run([programs / "ray", "stop", "--force"], capture_output=True)
        redis.kill()
        redis.wait()


def _wait(web: httpx.Client) -> None:
    for _ in range(120):
        try:
            if web.get("/ready").status_code == 200 and len(_replicas()) == 2:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    raise AssertionError("Ray Serve does not get ready")
