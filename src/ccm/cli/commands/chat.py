"""``ccm chat``: a conversation on a terminal, or line by line through a pipe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ccm import __version__
from ccm.chat.conversation import Conversation, Talk, TurnReport
from ccm.chat.window import WindowConversation
from ccm.cli.console import by_words, plain_console, quiet, tell, with_flags
from ccm.core.errors import CCMError, InputError
from ccm.core.units import size
from ccm.engine.memory_files import kind_of
from ccm.engine.sampling import Sampling
from ccm.models.builtin import NAME
from ccm.models.load import load as load_model
from ccm.models.locate import is_builtin

_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # its mark, read as UTF-8 with surrogateescape


def run(
    choice: dict[str, Any],
    sampling: Sampling,
    load: Path | None = None,
    window: int | None = None,
    system: str = "",
    *,
    as_json: bool,
) -> int:
    """Hold the conversation, with a window of so many entries where one is given; returns the exit status."""
    quiet()
    model, tokenizer = load_model(**choice)
    conversation: Talk = (
        Conversation(model, tokenizer, sampling=sampling, system=system)
        if window is None
        else WindowConversation(model, tokenizer, window, sampling, system=system)
    )
    if load is not None:
        conversation.load(load)
    on_terminal = sys.stdin.isatty() and sys.stdout.isatty() and not as_json
    return _terminal(conversation, load) if on_terminal else _pipe(conversation, load, as_json=as_json)


def base_name(source: str) -> str:
    """What people call a base model that was loaded from ``source``: "builtin", a folder's own name, or the Hub id.

    It is empty where nothing names the base.
    """
    if not source:
        return source
    if is_builtin(source):
        return NAME
    folder = Path(source).resolve()
    return folder.name if folder.is_dir() else source


def statistics(conversation: Talk, report: TurnReport) -> str:
    """The line after each turn."""
    written = conversation.model.rule.entries_of(report.step_tokens, conversation.model.config.n_tok)
    step = report.step_tokens if report.recent_tokens else f"{report.step_tokens} -> {written}"
    return (
        f"{step} tokens; memory {report.memory_entries} entries{_recent(report.recent_tokens)}, "
        f"{size(report.memory_bytes)} (full context: {report.full_context_tokens} tokens, "
        f"{size(report.full_context_bytes)})"
    )


def _recent(tokens: int) -> str:
    return f" ({tokens} of them recent text)" if tokens else ""


def kept_as(conversation: Talk) -> str:
    """How a conversation is kept: the rule and its options, N, and the window if there is one."""
    config, window = conversation.model.config, conversation.past.window
    options = ", ".join(f"{name} = {value}" for name, value in config.rule_options.items())
    rule = f"{config.rule} ({options})" if options else config.rule
    told = f"{rule}{'' if config.recurrent else ', not recurrent'}, N = {config.n_tok}"
    return told if window is None else f"{told}, window of {window}"


class Commands:
    """What lines that begin with / do. Every command writes to the console it was given.

    Args:
        conversation: the conversation.
        console: where to write.
        file: what it was loaded from; it may be saved there without a question.
    """

    def __init__(self, conversation: Talk, console: Console, file: Path | None) -> None:
        self.conversation, self.console = conversation, console
        self._own = file and file.resolve()
        self._refused: Path | None = None  # where it was not saved, for another conversation is there
        self.table: dict[str, tuple[Callable[[str], None], str, str]] = {
            "/memory": (self.memory, "", "what the memory holds"),
            "/save": (self.save, "FILE", "save the memory"),
            "/load": (self.load, "FILE", "go on from a saved memory"),
            "/undo": (self.undo, "[COUNT]", "take the last exchange back, or as many as COUNT says"),
            "/reset": (self.reset, "", "begin anew"),
            "/compare": (self.compare, "QUESTION", "answer with memory, with full context, and with none"),
            "/help": (self.help, "", "this list"),
            "/quit": (self.quit, "", "leave (Ctrl-D does, too)"),
        }

    def obey(self, line: str) -> None:
        """Do what the line says.

        Raises:
            InputError: when there is no such command, or it lacks what it needs, or takes less.
            EOFError: on /quit.
        """
        name, rest = (*line.split(maxsplit=1), "")[:2]
        if name not in self.table:
            raise InputError(f"There is no command {name}; the commands are {', '.join(self.table)}.")
        do, takes, _what = self.table[name]
        if rest and not takes:
            raise InputError(f"{name} takes nothing after it, but {rest!r} follows.")
        do(rest)

    def memory(self, _: str) -> None:
        past = self.conversation.past
        ratio = f", {past.tokens / past.entries:.1f} tokens an entry" if past.entries else ""
        unit = "step" if past.window is None else "compression"  # until one is due, exchanges are recent text
        self.console.print(
            f"{kept_as(self.conversation)}: {past.steps} {unit}{'s' * (past.steps != 1)}, {past.tokens} tokens in "
            f"{past.entries} entries"
            f"{_recent(past.recent)}{ratio}; {size(past.nbytes)} (full context {size(past.tokens * past.entry_nbytes)})"
        )

    def save(self, path: str) -> None:
        file = _file(path, "/save")
        if _is_saved(file, self.conversation.kind) and file.resolve() not in (self._own, self._refused):
            self._refused = file.resolve()
            raise InputError(f"{path} holds another conversation, and was left as it is; say it again to replace it.")
        self.conversation.save(file)
        self._own = file.resolve()
        self.console.print(f"Saved to {path}.")

    def load(self, path: str) -> None:
        file = _file(path, "/load")
        self.conversation.load(file)
        self._own = file.resolve()
        self.memory("")

    def undo(self, count: str) -> None:
        if count and not re.fullmatch(r"[0-9]{1,9}", count):
            raise InputError(f"/undo takes a count of exchanges, such as: /undo 2; not {count!r}.")
        self.conversation.undo(int(count or 1))
        self.memory("")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self._own = None
        self.console.print("A new conversation.")

    def compare(self, question: str) -> None:
        if not question:
            raise InputError("/compare needs a question, such as: /compare What is my name?")
        table = Table("context", "reply", box=None, pad_edge=False)
        for name, reply in self.conversation.compare(question).items():
            table.add_row(name, self._no_reply(question) if reply is None else reply)
        self.console.print(table)

    def _no_reply(self, question: str) -> str:
        """Why there is no reply from full context."""
        talk = self.conversation
        tokens = talk.past.tokens + len(talk.turns.prompt(question, first=False))
        if tokens + talk.sampling.max_new_tokens < talk.model.max_positions:
            return "(none: a saved memory has no text, and what was said before it was loaded is gone)"
        return (
            f"(none: {tokens} tokens of text and a reply of {talk.sampling.max_new_tokens} do not fit into the model's "
            f"{talk.model.max_positions} positions)"
        )

    def help(self, _: str) -> None:
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
        for name, (_do, takes, what) in self.table.items():
            table.add_row(f"{name} {takes}", what)
        self.console.print(table)

    def quit(self, _: str) -> None:
        raise EOFError


def _file(path: str, command: str) -> Path:
    if not path:
        raise InputError(f"{command} needs a file name, such as: {command} anna.memory")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"{path} names no folder: {error}") from error


def _is_saved(file: Path, kind: str) -> bool:
    """Whether there is a saved conversation of that kind; what else a file may hold is never replaced."""
    try:
        return file.is_file() and kind_of(file) == kind
    except OSError:
        return False


def _terminal(conversation: Talk, load: Path | None) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    console = plain_console()
    commands = Commands(conversation, console, load)
    what = f" {__version__}  {base_name(conversation.model.base.name_or_path)}, {kept_as(conversation)}  "
    console.print(Text.assemble(("ccm", "bold"), what, ("/help, Ctrl-D to leave", "dim")))
    while True:
        try:
            line = input("\nyou  ").strip()
        except KeyboardInterrupt:
            console.print("\nCtrl-D leaves, and forgets what /save has not saved", style="dim")
            continue
        except EOFError:
            console.print()
            return 0
        try:
            if line.startswith("/"):
                commands.obey(line)
            elif line:
                _reply(conversation, console, line)
        except CCMError as error:
            console.print(with_flags(str(error)), style="red")
        except KeyboardInterrupt:
            console.print("\ninterrupted; the memory is as it was", style="dim")
        except EOFError:
            return 0


def _reply(conversation: Talk, console: Console, line: str) -> None:
    console.print(Text("ccm  ", "bold cyan"), end="")
    with closing(conversation.say(line)) as pieces:  # an interrupted reply must end before the next turn begins
        for piece in by_words(pieces, console.width, 5):
            console.print(piece, end="", soft_wrap=True)
    assert conversation.last is not None
    console.print()
    numbers = Text(statistics(conversation, conversation.last))
    console.print(Padding(numbers, (0, 0, 0, 5), expand=False), style="dim")


def _pipe(conversation: Talk, load: Path | None, *, as_json: bool) -> int:
    """One user turn a line in, one line out: its reply or, with ``as_json``, its report or error as an object.

    The rest goes to standard error. Returns 1 if any line failed.
    """
    commands = Commands(conversation, plain_console(stderr=True), load)
    failed = 0
    for raw in _lines():
        line = raw.strip()
        try:
            if line.startswith("/"):
                commands.obey(line)
                continue
            conversation.answer(line)
        except CCMError as error:
            tell(f"ccm: {with_flags(str(error))}")
            if as_json and not line.startswith("/"):
                print(json.dumps({"error": str(error)}, ensure_ascii=False), flush=True)
            failed = 1
            continue
        except EOFError:
            break
        except KeyboardInterrupt:
            return 130
        report = conversation.last
        assert report is not None
        if as_json:
            print(json.dumps(report.to_dict(), ensure_ascii=False), flush=True)
        else:
            print(" ".join(report.reply.split()), flush=True)
            tell(statistics(conversation, report))
    return failed


def _lines() -> Iterator[str]:
    """The lines of standard input; where they are UTF-16, as its mark or a NUL tells, none any more.

    Raises:
        InputError: then, and when standard input cannot be read.
    """
    try:
        for number, line in enumerate(sys.stdin, start=1):
            if "\0" in line or (number == 1 and line.startswith(_UTF16)):
                raise InputError(
                    f"Line {number} of standard input is no UTF-8 text. It looks like UTF-16, as Windows PowerShell "
                    "writes it, or like no text at all; convert it, such as with: iconv -f UTF-16 -t UTF-8"
                )
            yield line
    except OSError as error:
        raise InputError(f"Standard input cannot be read: {error.strerror}.") from error
