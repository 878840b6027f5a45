"""Errors as clients read them: a status, and a body with type, code, message and param."""

from __future__ import annotations

from collections.abc import Mapping

from ccm.core.errors import CCMError


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


def unsupported(name: str, advice: str = "leave it out") -> RequestError:
    """A field, or a value, that this server does not take: it is refused, never ignored."""
    return RequestError(f"This server does not support {name}; {advice}.", code="unsupported_parameter", param=name)
