"""What stands before all routes: who asks, how often, and whether the body can be read."""

from __future__ import annotations

import json
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccm.serving.errors import RequestError
from ccm.serving.keys import Keys

_ASKED = "/v1/"  # the paths of the APIs; the others are open to all


class Guard:
    """Lets a request of a known key pass, with its body whole; no more of a body is read than is allowed.

    The owner is in the state of the request.

    Args:
        app: what is asked.
        keys: who may ask.
        body: most bytes of a request.
        rate: most requests of a key in a minute.
    """

    def __init__(self, app: ASGIApp, keys: Keys, body: int, rate: int) -> None:
        self._app, self._keys, self._most = app, keys, body
        self._rate, self._limiter = RateLimitItemPerMinute(rate), MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            if scope["path"].startswith(_ASKED):
                owner = self._keys.owner(Headers(scope=scope).get("authorization"))
                scope.setdefault("state", {})["owner"] = owner
                self._count(owner)
            body = await self._body(receive)
        except RequestError as error:
            scope.setdefault("state", {})["code"] = error.code
            await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replayed() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replayed, send)

    def _count(self, owner: bytes) -> None:
        if not self._limiter.hit(self._rate, owner.hex()):
            free = self._limiter.get_window_stats(self._rate, owner.hex()).reset_time
            raise RequestError(
                f"This key has asked {self._rate.amount} times within a minute; ask again later.",
                status=429,
                code="rate_limit_exceeded",
                headers={"Retry-After": str(max(1, round(free - time.time())))},
            )

    async def _body(self, receive: Receive) -> bytes:
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                raise RequestError(
                    f"The request is larger than {self._most} bytes.", status=413, code="request_too_large"
                )
        if fault := _unreadable(bytes(body)):
            raise RequestError(fault, code="invalid_json")
        return bytes(body)


def _unreadable(body: bytes) -> str | None:
    """Why a body is no JSON that can be written again; None where it can, or is empty."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    try:
        if body:
            json.dumps(json.loads(body, parse_constant=refuse), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "The body holds half of a surrogate pair; write whole characters."
    except (ValueError, RecursionError) as error:
        return f"The body cannot be read as JSON: {error}."
    return None
