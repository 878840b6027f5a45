"""Conversations that come whole: digests of their exchanges, by which the part that is in memory already is found."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ccm.chat.exchanges import Exchange
from ccm.serving.kept import KeptTurn
from ccm.serving.store import Store


@dataclass
class Prefix:
    """The longest beginning of a conversation that is kept.

    Attributes:
        turn: the last of it; None where nothing is kept.
        known: how many exchanges it has.
        digests: of the head, and of it with all exchanges up to each; salted by the owner.
    """

    turn: KeptTurn | None
    known: int
    digests: list[bytes]

    @staticmethod
    def find(
        store: Store, owner: bytes, system: str, tools: Sequence[Mapping[str, Any]], exchanges: Sequence[Exchange]
    ) -> Prefix:
        """Of a conversation of an owner, under a system message and tools."""
        digests = chain_digests(owner, json.dumps([system, tools], sort_keys=True), exchanges)
        turn = store.find(owner, digests[1:])
        known = 0 if turn is None or turn.chain is None else digests.index(turn.chain)
        return Prefix(turn, known, digests)

    def add(self, exchange: Exchange) -> None:
        """Take one more exchange of the conversation."""
        self.digests.append(next_digest(self.digests[-1], exchange))


def chain_digests(owner: bytes, head: str, exchanges: Sequence[Exchange]) -> list[bytes]:
    """A digest of the head, and one of it and all exchanges up to each; salted by the owner."""
    found = [hmac.digest(owner, head.encode(), hashlib.sha256)]
    for exchange in exchanges:
        found.append(next_digest(found[-1], exchange))
    return found


def next_digest(last: bytes, exchange: Exchange) -> bytes:
    """The digest after one more exchange."""
    said, reply = exchange
    return hmac.digest(last, json.dumps([[*said], reply.strip()], sort_keys=True).encode(), hashlib.sha256)
