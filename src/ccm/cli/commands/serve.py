"""``ccm serve``: load the model, open the store, and answer until it is stopped."""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any

from ccm.cli.console import plain_console, quiet, tell
from ccm.core.errors import ConfigError, reason
from ccm.core.extras import needs
from ccm.engine.decoder import as_decoder
from ccm.models.builtin import NAME
from ccm.models.load import load
from ccm.serving.settings import DAY, ServerSettings


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

    from ccm.serving.app import make_app
    from ccm.serving.backend import Backend
    from ccm.serving.engine import EngineLimits
    from ccm.serving.keys import Keys
    from ccm.serving.sealing import Seal
    from ccm.serving.service import Service
    from ccm.serving.store import Store, open_tables

    quiet()
    _check_port(settings)
    keys, console = Keys(settings.keys), plain_console()
    if settings.keys is not None and settings.keys.stat().st_mode & 0o077:
        tell(f"Others can read the keys in {settings.keys}; give it mode 600: chmod 600 {settings.keys}")
    open_tables(settings.store).close()  # what cannot be opened is told before the model is loaded
    model, tokenizer = load(**choice)
    name = choice["model"] or choice["adapter"] or NAME
    limits = EngineLimits(settings.batch, settings.waiting, settings.patience)
    backend = Backend(as_decoder(model, "a server"), tokenizer, name, limits)
    tables = open_tables(settings.store)
    store = Store(tables, backend.origin, seconds=settings.days * DAY, quota=settings.quota)
    service = Service(backend, store, Seal(settings.secret, backend.origin), settings.keep_text, settings.steps)
    app = make_app(service, keys, body=settings.body, rate=settings.rate)
    held = tables.place if settings.store else "the process, until it ends"
    console.print(
        f"{backend.name} ({model.config.rule}) at http://{settings.host}:{settings.port}; turns are kept in {held}."
    )
    for warning in tables.warnings():
        tell(warning)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once it has ended
    try:
        uvicorn.run(app, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    except KeyboardInterrupt:
        pass
    finally:
        store.close()
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
