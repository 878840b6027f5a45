"""``ccm serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ccm.cli.options import ModelOptions, unfold


@unfold
def serve(
    model: ModelOptions,
    host: Annotated[str, typer.Option(help="Address to listen on; others than loopback need --keys.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    store: Annotated[
        str | None,
        typer.Option(
            envvar="CCM_STORE",
            help="Folder of what is kept, or redis://HOST:PORT (none: all is gone when the server ends).",
        ),
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="File with an API key a line; without it, anyone may ask.")] = None,
    secret: Annotated[
        Path | None, typer.Option(help="File of the secret that seals compaction items; made where it is missing.")
    ] = None,
    days: Annotated[float, typer.Option(help="Until what was not asked for expires.")] = 30.0,
    quota: Annotated[int, typer.Option(min=1, help="MiB that a key may keep; what was used longest ago goes.")] = 1024,
    cache: Annotated[
        int, typer.Option(min=0, help="MiB of the memories that were used last, at hand without the store.")
    ] = 256,
    batch: Annotated[int, typer.Option(help="Requests that use the model together; others wait.")] = 16,
    rate: Annotated[int, typer.Option(help="Requests of a key in a minute.")] = 6000,
    text: Annotated[bool, typer.Option("--text/--no-text", help="Whether the text of turns is kept, too.")] = True,
    log: Annotated[
        Literal["json", "text"] | None,
        typer.Option(help="Write a line for each request on standard error (none: warnings and errors alone)."),
    ] = None,
) -> None:
    """Serve conversations: Open Responses at /v1/responses, and /v1/chat/completions."""
    from ccm.cli.commands.serve import run
    from ccm.serving.settings import MIB, ServerSettings

    settings = ServerSettings(
        host,
        port,
        store,
        keys,
        secret,
        days,
        quota=quota * MIB,
        cache=cache * MIB,
        rate=rate,
        batch=batch,
        keep_text=text,
        log=log,
    )
    run(model.chosen(), settings)
