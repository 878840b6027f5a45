"""Where the stores of tests are: in files, or in a Redis of this machine."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError

KINDS = ("files", "redis")
kind = os.environ.get("CCM_TEST_STORE", "files")
_numbers = itertools.count()
_places: dict[Path, str] = {}


def start_redis(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A Redis, or a Valkey, that answers at the socket of a folder."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("neither redis-server nor valkey-server is installed")
    told = ["--dir", str(folder), "--port", "0", "--unixsocket", str(folder / "socket"), "--databases", "10000"]
    server = subprocess.Popen([program, *told, *options], stdout=subprocess.DEVNULL)
    while True:
        with suppress(ConnectionError), Redis(unix_socket_path=str(folder / "socket")) as asked:
            asked.ping()  # it has read what it kept
            return server
        time.sleep(0.01)


@cache
def redis_socket() -> Path:
    """The socket of a Redis that keeps nothing, until the tests have ended."""
    folder = Path(tempfile.mkdtemp(prefix="ccm-redis-"))
    server = start_redis(folder, "--save", "", "--appendonly", "no")

    def end() -> None:
        server.kill()
        server.wait()
        shutil.rmtree(folder)

    atexit.register(end)
    return folder / "socket"


def new_redis() -> str:
    """The address of an empty store in Redis."""
    return f"unix://{redis_socket()}?db={next(_numbers)}"


def place(folder: Path | None) -> Path | str | None:
    """Where a store is that would be in a folder: the same for the same one, and an empty one where there is none."""
    if kind == "files":
        return folder
    if folder is None:
        return new_redis()
    return _places.setdefault(folder, new_redis())
