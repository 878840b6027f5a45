"""A server from its settings: the model, what is kept, and the application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from ccm.engine.decoder import as_decoder
from ccm.models.builtin import NAME
from ccm.models.load import load
from ccm.serving.app import make_app
from ccm.serving.backend import Backend
from ccm.serving.elsewhere import TablesElsewhere
from ccm.serving.engine import EngineLimits
from ccm.serving.keys import Keys
from ccm.serving.sealing import Seal
from ccm.serving.service import Service
from ccm.serving.settings import DAY, ServerSettings
from ccm.serving.store import Store, open_tables


def start(choice: Mapping[str, Any], settings: ServerSettings) -> tuple[FastAPI, Service]:
    """The application of a server, and the service behind it, whose store is open.

    Args:
        choice: the model, as ``ccm.load`` takes it.
        settings: of the server.

    Raises:
        ConfigError: when model, store, keys or secret cannot be had.
        UnsupportedModelError: when the model is an encoder-decoder.
    """
    keys = Keys(settings.keys)
    open_tables(settings.store).close()  # what cannot be opened is told before the model is loaded
    model, tokenizer = load(**choice)
    name = choice.get("model") or choice.get("adapter") or NAME
    limits = EngineLimits(settings.batch, settings.waiting, settings.patience)
    backend = Backend(as_decoder(model, "a server"), tokenizer, name, limits)
    tables = TablesElsewhere(open_tables(settings.store))
    store = Store(tables, backend.origin, seconds=settings.days * DAY, quota=settings.quota)
    seal = Seal(settings.secret, backend.origin)
    service = Service(backend, store, seal, settings.keep_text, settings.steps, settings.cache)
    return make_app(service, keys, body=settings.body, rate=settings.rate), service
