"""``ccm serve``: load the model, open the store, and answer until it is stopped."""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

from ccm.cli.console import plain_console, quiet, tell
from ccm.core.errors import ConfigError, reason
from ccm.core.extras import needs
from ccm.serving.settings import ServerSettings


def run(choice: dict[str, Any], settings: ServerSettings) -> None:
    """Serve a model as ``ccm.load`` loads it.

    Raises:
        ConfigError: when model, store, keys or secret cannot be had.
        UnsupportedModelError: when the model is an encoder-decoder.
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

    from ccm.serving.start import start

    quiet()
    _check_port(settings)
    console = plain_console()
    if settings.keys is not None and settings.keys.exists() and settings.keys.stat().st_mode & 0o077:
        tell(f"Others can read the keys in {settings.keys}; give it mode 600: chmod 600 {settings.keys}")
    app, service = start(choice, settings)
    backend, tables = service.backend, service.store.tables
    held = tables.place if settings.store else "the process, until it ends"
    told = f"{backend.name} ({backend.model.config.rule}) at http://{settings.host}:{settings.port}"
    console.print(f"{told}; turns are kept in {held}.")
    for warning in tables.warnings():
        tell(warning)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has ended
    try:
        uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    except KeyboardInterrupt:
        pass
    finally:
        tables.close()
        console.print(f"The server has ended; turns are kept in {held}." if settings.store else "The server has ended.")


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
