"""The command ``ccm``: what each verb takes. What it does stands in ``ccm.commands`` and is imported when called."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from ccm.cli import adapters, chat, data, evaluate, stream, train
from ccm.errors import CCMError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for verb in (chat.chat, chat.demo, chat.writes, train.train, stream.stream, evaluate.report):
    app.command()(verb)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(adapters.app, name="adapters")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compressed context memory for language models."""
    if version:
        from ccm import __version__

        print(f"ccm {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point; an error of ours is one line on standard error and exit status 2."""
    for library in ("torchao", "bitsandbytes", "torch.utils._pytree"):  # imported with transformers, they warn at once
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        app()
    except CCMError as error:
        print(f"ccm: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(1) from None
