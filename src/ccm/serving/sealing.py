"""Memories that clients keep: sealed by authenticated encryption, so that nobody reads or changes what is in them.

base64(  version  |  nonce  |  AES-256-GCM of system message and memory  )      bound to API key, model and adapter
"""

from __future__ import annotations

import base64
import binascii
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ccm.core.errors import ConfigError, reason
from ccm.serving.errors import RequestError

LARGEST = 10 * 2**20  # characters of encrypted_content, by the specification
_VERSION, _NONCE, _SECRET = b"\x01", 12, 32


class Seal:
    """Seals memories and opens them again, here or wherever else the same secret is.

    Args:
        file: of the secret, made with mode 600 where it is missing; None makes a secret that ends with the process.
        origin: identity of model, adapter and rule.

    Raises:
        ConfigError: when the file cannot be read or made, others can read it, or it holds no secret.
    """

    def __init__(self, file: Path | None, origin: str) -> None:
        secret = secrets.token_bytes(_SECRET) if file is None else _read_secret(file)
        derived = HKDF(SHA256(), 32, salt=None, info=b"ccm compaction").derive(secret)
        self._cipher, self._origin = AESGCM(derived), origin.encode()

    def seal(self, memory: bytes, owner: bytes, system: str = "") -> str:
        """The memory as ``encrypted_content``, with the system message of its conversation.

        Raises:
            RequestError: when it is larger than the specification allows.
        """
        nonce = os.urandom(_NONCE)
        lead = system.encode("utf-8", "surrogatepass")
        content = len(lead).to_bytes(4, "little") + lead + memory
        sealed = _VERSION + nonce + self._cipher.encrypt(nonce, content, self._bound(owner))
        text = base64.b64encode(sealed).decode("ascii")
        if len(text) > LARGEST:
            raise RequestError(
                f"The memory takes {len(text)} characters, and a compaction item at most {LARGEST}. Go on by "
                "previous_response_id, or serve an adapter whose memory does not grow (merge, gate).",
                code="compaction_too_large",
            )
        return text

    def unseal(self, text: str, owner: bytes) -> tuple[str, bytes]:
        """The system message and the memory of an ``encrypted_content``.

        Raises:
            RequestError: when it was changed, or sealed for another key, model, adapter or server.
        """
        try:
            sealed = base64.b64decode(text, validate=True)
            if sealed[:1] != _VERSION:
                raise InvalidTag
            nonce, rest = sealed[1 : 1 + _NONCE], sealed[1 + _NONCE :]
            content = self._cipher.decrypt(nonce, rest, self._bound(owner))
        except (binascii.Error, ValueError, InvalidTag) as error:
            raise RequestError(
                "This compaction item cannot be opened: it was changed, or made for another key, model, adapter or "
                "server secret. Send the conversation itself, or an item of this server.",
                code="invalid_compaction",
                param="input",
            ) from error
        end = 4 + int.from_bytes(content[:4], "little")
        return content[4:end].decode("utf-8", "surrogatepass"), content[end:]

    def _bound(self, owner: bytes) -> bytes:
        return owner + self._origin


def _read_secret(file: Path) -> bytes:
    try:
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            pass
        else:
            with os.fdopen(handle, "w") as made:
                made.write(secrets.token_hex(_SECRET) + "\n")
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"Others can read the secret {file}; give it mode 600: chmod 600 {file}")
        secret = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise ConfigError(f"The secret cannot be read or made in {file}: {reason(error)}") from error
    if len(secret) < _SECRET:
        raise ConfigError(f"{file} holds {len(secret)} bytes; a secret has {_SECRET}, as {2 * _SECRET} hex digits.")
    return secret
