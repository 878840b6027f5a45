"""What a server logs: a line for each event, as JSON or as text. No line holds a text, an id, a key or an address.

A request is told by its route (``/v1/responses/{response_id}``, never the path), a key by eight digits of its digest,
an exception by its kind and where it was raised: its message may repeat what a client said.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccm.core.processes import get_logger

logger = get_logger(__name__)
LEFT = 499  # the status of a request whose client left


def begin_logs(form: Literal["json", "text"] | None) -> None:
    """Write all that the process logs to standard error, a line for each record, Python's warnings among them.

    Args:
        form: of the lines; None writes warnings and errors alone, as text.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if form == "json" else TextLines())
    for name in logging.root.manager.loggerDict:  # some libraries have handlers of their own
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("ccm").setLevel(logging.INFO if form else logging.NOTSET)
    logging.captureWarnings(True)


def log_event(event: str, message: str = "", level: int = logging.INFO, **fields: Any) -> None:
    """Log something that happened to the server, under a name for programs and with values."""
    logger.log(level, message, extra={"event": event, "fields": fields})


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a line says; records of libraries have their logger in place of an event's fields."""
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told: dict[str, Any] = {"time": when, "level": record.levelname.lower(), "event": getattr(record, "event", "log")}
    if message := record.getMessage():
        told["message"] = message.strip()
    told |= getattr(record, "fields", {"logger": record.name})
    if record.exc_info and record.exc_info[0]:
        places = [f"{at.filename}:{at.lineno}" for at in traceback.extract_tb(record.exc_info[2])]
        told |= {"kind": record.exc_info[0].__name__, "stack": places}
    return told


class JSONLines(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(_fields(record))


class TextLines(logging.Formatter):
    """A record as one line for people: time, level, event, message, then ``name=value`` for all else."""

    def format(self, record: logging.LogRecord) -> str:
        told = _fields(record)
        first = [told.pop(name, "") for name in ("time", "level", "event", "message")]
        rest = [f"{name}={'-' if value is None else value}" for name, value in told.items()]
        return " ".join(" ".join([*first, *rest]).split())


class RequestLog:
    """Logs each request once it has ended; a stream ends with its last byte, or when its client leaves.

    It stands before all else, so that requests that the guard refuses are logged, too. What others know of a request is
    in its state: ``owner``, the ``code`` of an error, and ``used``, the tokens and the memory.

    Args:
        app: what is asked.
        routes: by which a path is known.
    """

    def __init__(self, app: ASGIApp, routes: Sequence[Route]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not logger.isEnabledFor(logging.INFO):
            await self._app(scope, receive, send)
            return
        state, begun = scope.setdefault("state", {}), time.perf_counter()
        status, first, ended, left = 500, None, False, False  # an exception that nobody caught becomes status 500

        def passed() -> float:
            return round(1000 * (time.perf_counter() - begun), 1)

        async def heard() -> Message:
            nonlocal left
            message = await receive()
            left = left or (message["type"] == "http.disconnect" and not ended)
            return message

        async def said(message: Message) -> None:
            nonlocal status, first, ended
            if message["type"] == "http.response.start":
                status, first = message["status"], passed()
            else:
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, heard, said)
        finally:
            owner, code = state.get("owner"), state.get("code")
            log_event(
                "request",
                method=scope["method"],
                route=next((one.path for one in self._routes if one.path_regex.match(scope["path"])), None),
                status=LEFT if left else status,
                ms=passed(),
                first_ms=first,
                key=None if owner is None else owner.hex()[:8],
                error=None if left else code or ("server_error" if status == 500 else None),
                **state.get("used", {}),
            )
