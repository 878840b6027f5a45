"""API keys: who asks."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from ccm.core.errors import ConfigError, reason
from ccm.serving.errors import RequestError

ANYONE = b"anyone"  # the owner of all turns where no key is asked for


class Keys:
    """The keys that a server knows. Owners are digests: a store holds no key.

    Args:
        file: with a key a line; lines that are empty or begin with # are none. None lets anyone in.

    Raises:
        ConfigError: when the file cannot be read, or holds no key.
    """

    def __init__(self, file: Path | None) -> None:
        self._owners: list[bytes] | None = None
        if file is None:
            return
        try:
            lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"The keys cannot be read from {file}: {reason(error)}") from error
        self._owners = [_owner(line) for line in lines if line and not line.startswith("#")]
        if not self._owners:
            raise ConfigError(f"{file} holds no API key; write one a line.")

    @property
    def owners(self) -> list[bytes]:
        """All that may ask."""
        return [ANYONE] if self._owners is None else self._owners

    def owner(self, authorization: str | None) -> bytes:
        """Whose request it is, by its header.

        Raises:
            RequestError: when a key is asked for, and this is none.
        """
        if self._owners is None:
            return ANYONE
        scheme, _, key = (authorization or "").partition(" ")
        asked = _owner(key.strip()) if scheme.lower() == "bearer" else b""
        known = [owner for owner in self._owners if hmac.compare_digest(owner, asked)]  # all are compared
        if not known:
            raise RequestError(
                "This server wants an API key that it knows, in the header: Authorization: Bearer KEY.",
                status=401,
                code="invalid_api_key",
            )
        return known[0]


def _owner(key: str) -> bytes:
    return hashlib.sha256(f"ccm key {key}".encode()).digest()
