"""The command ``ccm``: what each verb takes. What it does stands in ``ccm.cli.commands``, imported when called."""

from __future__ import annotations

import errno
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ccm.cli import adapters, chat, data, evaluate, lm_eval, memory, models, plan, serve, stream, train
from ccm.cli.console import ending, tell, with_flags, with_set
from ccm.cli.streams import abandon_streams, open_streams
from ccm.core.errors import CCMError

_OUTPUT = (errno.EPIPE, errno.ENOSPC, errno.EBADF, errno.EIO)  # how writing to a stream fails


class Verbs(TyperGroup):
    """All verbs. Ctrl-C ends each with one line, which says what is kept where the verb knows it."""

    def invoke(self, ctx: Any) -> Any:
        with ending(_say):
            return super().invoke(ctx)


app = typer.Typer(cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False)
for verb in (chat.chat, chat.demo, chat.writes, serve.serve, plan.plan, train.train, stream.stream, evaluate.report):
    app.command()(verb)
app.command("lm-eval", context_settings=lm_eval.PASSED)(lm_eval.lm_eval)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(data.app, name="data")
app.add_typer(adapters.app, name="adapters")
app.add_typer(models.app, name="models")
app.add_typer(memory.app, name="memory")


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Compressed context memory for language models."""
    if version:
        from ccm import __version__

        print(f"ccm {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point; an error of ours is one line on standard error and exit status 2, one of the system status 1."""
    open_streams()
    try:
        try:
            app(prog_name="ccm")  # also under python -m, so that completion is that of ccm
        finally:
            sys.stdout.flush()
    except CCMError as error:
        _say(f"ccm: {error}")
        raise SystemExit(2) from None
    except OSError as error:
        of_stream = error.filename is None and error.errno in _OUTPUT
        told = f"The output cannot be written: {error.strerror}" if of_stream else str(error) or type(error).__name__
        with suppress(OSError):
            print(f"ccm: {told}.", file=sys.stderr)
        abandon_streams()
        raise SystemExit(1) from None


def _say(told: str) -> None:
    """What the library says, for the command line: a training has settings of its own."""
    tell(with_set(told) if sys.argv[1:2] == ["train"] else with_flags(told))
