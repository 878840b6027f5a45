"""Where the store of a benchmark is: in a folder, or in a Redis that keeps each turn before it answers."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

SERVERS = ("redis-server", "valkey-server")
DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_redis(folder: Path, port: int, *options: str) -> subprocess.Popen[bytes]:
    """A Redis or Valkey on loopback that answers; what it keeps is in the folder.

    Raises:
        FileNotFoundError: when neither is installed.
    """
    program = next(filter(None, map(shutil.which, SERVERS)), None)
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(SERVERS)} is installed")
    command = [program, "--dir", str(folder), "--port", str(port), "--bind", "127.0.0.1", *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)


@contextmanager
def new_store(*, redis: bool) -> Iterator[str]:
    """The place of an empty store, until the block ends."""
    with TemporaryDirectory() as folder:
        if not redis:
            yield folder
            return
        port = free_port()
        process = start_redis(Path(folder), port, *DURABLE)
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()
