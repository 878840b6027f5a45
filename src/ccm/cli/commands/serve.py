"""``ccm serve``: load the model, open the store, and answer until it is stopped."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from contextlib import nullcontext
from typing import Any

from ccm.cli.console import loading, plain_console, quiet, with_flags
from ccm.core.errors import CCMError, ConfigError, reason
from ccm.core.extras import needs
from ccm.serving.settings import ServerSettings


def run(choice: dict[str, Any], settings: ServerSettings) -> None:
    """Serve a model as ``ccm.load`` loads it.

    Raises:
        ConfigError: when model, store, keys or secret cannot be had.
        UnsupportedModelError: when the model is an encoder-decoder.
        SystemExit: in place of both where a log is written, which tells of them.
    """
    needs(
        "fastapi",
        "uvicorn",
        "openresponses_types",
        "cryptography",
        "greenlet",
        "limits",
        "prometheus_client",
        what="ccm serve",
        extra="serve",
    )
    import uvicorn

    from ccm.serving.logs import begin_logs, log_event
    from ccm.serving.start import start

    quiet()
    begin_logs(settings.log)
    # In a container, where this is the first process, nothing else ends it; uvicorn raises it again once it has ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    def tell(event: str, text: str) -> None:
        log_event(event, text)
        if settings.log is None:
            plain_console().print(text)

    try:
        _check_port(settings)
        if settings.keys is not None and settings.keys.exists() and settings.keys.stat().st_mode & 0o077:
            told = f"Others can read the keys in {settings.keys}; give it mode 600: chmod 600 {settings.keys}"
            log_event("warning", told, logging.WARNING)
        with nullcontext() if settings.log else loading(choice):  # in a log, a line is an event
            app, service = start(choice, settings)
    except CCMError as error:
        if settings.log is None:
            raise
        log_event("failure", with_flags(str(error)), logging.ERROR, kind=type(error).__name__)
        raise SystemExit(2) from None
    backend, tables = service.backend, service.store.tables
    held = tables.place if settings.store else "the process, until it ends"
    served = f"{backend.name} ({backend.model.config.rule}) at http://{settings.host}:{settings.port}"
    tell("start", f"{served}; turns are kept in {held}.")
    for warning in tables.warnings():
        log_event("warning", warning, logging.WARNING)
    try:
        uvicorn.run(app, host=settings.host, port=settings.port, log_config=None, access_log=False)
    except KeyboardInterrupt:
        pass
    finally:
        tables.close()
        tell("stop", f"The server has ended; turns are kept in {held}." if settings.store else "The server has ended.")


def _check_port(settings: ServerSettings) -> None:
    """Refuse an address that cannot be listened on, before the model is loaded.

    Raises:
        ConfigError: with the reason.
    """
    try:
        family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
    except OSError as error:
        raise ConfigError(
            f"The server cannot listen on {settings.host}:{settings.port}: {reason(error)}. Name another port, with "
            "port=N, or another host."
        ) from error
