"""What a server is told at its start."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ccm.core.config import bounded, check_fields
from ccm.core.errors import ConfigError

MIB = 2**20
DAY = 24 * 3600


@dataclass(frozen=True)
class ServerSettings:
    """Where a server listens, what it keeps, and how much it takes.

    Attributes:
        host: address to listen on. Any but loopback needs ``keys``.
        port: of that address; 0 takes a free one.
        store: what is kept is in this folder, or in the Redis or Valkey at this address (redis://HOST:PORT/DATABASE),
            which several servers may share; None keeps all in memory, until the server ends.
        keys: file of API keys, one a line; None asks for none.
        secret: file of the secret that seals compaction items, made where it is missing; None makes one for this run.
        days: until what was kept and not asked for expires.
        body: most bytes of a request.
        quota: most bytes that a store holds for one key; the least recently used go first.
        cache: bytes of the memories that were used last, which are at hand without the store.
        rate: most requests of one key in a minute.
        steps: most steps of one conversation.
        batch: most requests that use the model together.
        waiting: most requests of one key that wait for it.
        patience: seconds that a request waits at most.
        keep_text: whether items are kept; without them nothing can be retrieved or rebuilt.
        log: form of the log, which has a line for each request; None logs warnings and errors alone.

    Raises:
        ConfigError: when a value is not allowed, or an address that others reach is asked for without keys.
    """

    host: str = "127.0.0.1"
    port: int = bounded(8000, 0, 65535)
    store: str | Path | None = None
    keys: Path | None = None
    secret: Path | None = None
    days: float = bounded(30.0, 0.01)
    body: int = bounded(16 * MIB, 1024)
    quota: int = bounded(1024 * MIB, MIB)
    cache: int = bounded(256 * MIB, 0)
    rate: int = bounded(6000, 1)
    steps: int = bounded(10_000, 1)
    batch: int = bounded(16, 1, 1024)
    waiting: int = bounded(256, 1)
    patience: float = bounded(60.0, 0.1)
    keep_text: bool = True
    log: Literal["json", "text"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.keys is None and not _is_loopback(self.host):
            raise ConfigError(
                f"The server would listen on {self.host}, which others may reach; give keys=FILE, with an API key a "
                "line, or listen on 127.0.0.1."
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
