"""The server on Ray Serve: replicas on one machine or many, which share their turns in Redis.

    serve run ccm.serving.ray:application model=smollm2-135m store=redis://127.0.0.1:6379

Any replica answers any turn, for none keeps anything of its own. A configuration file of Ray Serve sets how many there
are, and what each has: see docs/replicas.md.
"""

from __future__ import annotations

import logging
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig

from ccm.core.config import build_settings
from ccm.core.errors import ConfigError
from ccm.serving.settings import ServerSettings
from ccm.serving.start import start

logger = logging.getLogger("ray.serve")
MOST = 8  # replicas, unless a configuration says otherwise
_MODEL = ("model", "adapter", "rule", "rule_options", "n_tok", "recurrent", "device", "dtype", "quantize", "strict")
_FILES = ("keys", "secret")
STORE = "CCM_STORE"  # of the environment: the address of the store
_RAYS = ("host", "port", "log")  # Ray's proxies listen, and Ray writes the log


def application(args: dict[str, Any]) -> Application:
    """The application that ``serve run`` and configuration files name.

    Args:
        args: the model, as :func:`ccm.load` takes it, and the fields of :class:`ServerSettings`, without host, port and
            log; where there is no ``store``, it is the value of ``CCM_STORE`` in the environment.

    Raises:
        ConfigError: when there is no such setting, or the store is not in Redis.
    """
    told = {name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in args.items()}
    known = [field.name for field in fields(ServerSettings) if field.name not in _RAYS]
    if unknown := sorted(told.keys() - {*known, *_MODEL}):
        raise ConfigError(f"There are no settings {unknown}. Known are {', '.join((*_MODEL, *known))}.")
    choice = {name: told.pop(name) for name in _MODEL if name in told}
    told |= {name: Path(told[name]) for name in _FILES if told.get(name) is not None}
    told.setdefault("store", os.environ.get(STORE))  # Ray logs arguments, and an address may hold a password
    settings = build_settings(ServerSettings, told, "The application")
    if "://" not in str(settings.store):
        raise ConfigError(
            f"store is {settings.store}; replicas share their turns in Redis: name its address, as "
            "store=redis://HOST:PORT."
        )

    class Replica:
        """A process with the model; Ray Serve asks for the names of its methods."""

        def __serve_build_asgi_app__(self) -> FastAPI:
            app, self.service = start(choice, settings)
            for warning in self.service.store.tables.warnings():
                logger.warning(warning)
            return app

        def check_health(self) -> None:
            """Ray replaces a replica whose engine has ended."""
            if not self.service.backend.engine.ready:
                raise RuntimeError("the engine has ended")

    deploy = serve.deployment(
        name="Replica",
        max_ongoing_requests=settings.batch + settings.waiting,
        autoscaling_config=AutoscalingConfig(min_replicas=1, max_replicas=MOST, target_ongoing_requests=settings.batch),
        graceful_shutdown_timeout_s=settings.patience,
    )
    return deploy(serve.ingress()(Replica)).bind()
