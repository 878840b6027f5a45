"""Errors as clients read them: a status, and a body with type, code, message and param."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from ccm.core.errors import CCMError


class Fault(BaseModel):
    """What was wrong."""

    type: str
    code: str
    message: str
    param: str | None


class Refusal(BaseModel):
    """The body of every answer that is an error."""

    error: Fault


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": told}
    for status, told in {
        400: "The request is not one that this server takes; the message names what is wrong.",
        401: "The server asks for an API key that it knows.",
        404: "There is no such model or response.",
        409: "The turn before was deleted, or a step of it forgotten, while the reply was written.",
        413: "The body is too large.",
        422: "The model wrote no call of a tool where one is required.",
        429: "Too many requests of the key wait already.",
        500: "The server failed.",
        503: "The server stops, has too much to do, or cannot reach its store; ask again later.",
        507: "The turn cannot be kept.",
    }.items()
}


class RequestError(CCMError):
    """What a request asks cannot be done.

    Args:
        message: what was found, what is allowed, what to do.
        status: of HTTP.
        code: for programs, such as "unsupported_parameter".
        param: the field of the request that it is about.
        headers: of the answer, beside those that all have.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, headers

    @property
    def body(self) -> dict[str, object]:
        """The body of the answer."""
        kind = {401: "authentication_error", 404: "not_found", 429: "too_many_requests"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {"error": {"type": kind, "code": self.code, "message": str(self), "param": self.param}}


def unsupported(name: str, advice: str = "leave it out", param: str | None = None) -> RequestError:
    """A field, or a value in the field ``param``, that this server does not take: it is refused, never ignored."""
    told = f"This server does not support {name}; {advice}."
    return RequestError(told, code="unsupported_parameter", param=param or name)
