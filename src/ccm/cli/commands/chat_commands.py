"""The commands of a chat: what its lines that begin with / do."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from ccm.chat.conversation import BaseConversation
from ccm.core.errors import InputError
from ccm.core.units import size
from ccm.engine.memory_files import kind_of

_ALSO = {"/": "/help", "/?": "/help", "/exit": "/quit"}  # other names of commands


class Command(NamedTuple):
    """A command.

    Attributes:
        run: does it, given what follows the name.
        takes: what may follow the name, as the help shows it; nothing where empty.
        about: what it does, for the help.
    """

    run: Callable[[str], None]
    takes: str
    about: str


class Commands:
    """The commands of one conversation. Each writes to the console.

    Args:
        conversation: the conversation.
        console: where to write.
        file: what the conversation was loaded from; /save replaces it without a question.

    Attributes:
        table: every command by its name.
    """

    def __init__(self, conversation: BaseConversation, console: Console, file: Path | None) -> None:
        self.conversation, self.console = conversation, console
        self._own = file and file.resolve()
        self._refused: Path | None = None  # another conversation's file, which /save left as it is
        self.table = {
            "/memory": Command(self.memory, "", "what the memory holds"),
            "/compare": Command(self.compare, "QUESTION", "answer from memory, from full context, and from nothing"),
            "/save": Command(self.save, "FILE", "save the memory"),
            "/load": Command(self.load, "FILE", "go on from a saved memory"),
            "/undo": Command(self.undo, "[COUNT]", "take back the last exchange, or the last COUNT"),
            "/reset": Command(self.reset, "", "begin a new conversation"),
            "/help": Command(self.help, "", "show this list"),
            "/quit": Command(self.quit, "", "leave the chat"),
        }

    def obey(self, line: str) -> None:
        """Do what the line says.

        Raises:
            InputError: when there is no such command, or what follows its name is not what it takes.
            EOFError: on /quit.
        """
        given, rest = (*line.split(maxsplit=1), "")[:2]
        name = _ALSO.get(given, given)
        if name not in self.table:
            begun = [known for known in self.table if known.startswith(name)]
            close = begun or get_close_matches(name, self.table, cutoff=0.7)
            hint = f"Did you mean {close[0]}?" if close else f"The commands are {', '.join(self.table)}."
            raise InputError(f"There is no command {name}. {hint}")
        command = self.table[name]
        if rest and not command.takes:
            raise InputError(f"{given} takes nothing after it, but {rest!r} follows.")
        command.run(rest)

    def memory(self, _: str) -> None:
        past = self.conversation.past
        ratio = f", {past.tokens / past.entries:.1f} tokens an entry" if past.entries else ""
        unit = "step" if past.window is None else "compression"  # until one is due, exchanges are recent text
        self.console.print(
            f"{kept_as(self.conversation)}: {past.steps} {unit}{'s' * (past.steps != 1)}, {past.tokens} tokens in "
            f"{past.entries} entries"
            f"{recent(past.recent)}{ratio}; {size(past.nbytes)} (full context {size(past.tokens * past.entry_nbytes)})"
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
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for name, command in self.table.items():
            table.add_row(f"{name} {command.takes}", command.about)
        self.console.print(table)
        self.console.print("Ctrl-C stops a reply. Options such as --system are given at the start: ccm chat --help")

    def quit(self, _: str) -> None:
        raise EOFError


def kept_as(conversation: BaseConversation) -> str:
    """How a conversation is kept: the rule and its options, N, and the window if there is one."""
    config, window = conversation.model.config, conversation.past.window
    options = ", ".join(f"{name} = {value}" for name, value in config.rule_options.items())
    rule = f"{config.rule} ({options})" if options else config.rule
    told = f"{rule}{'' if config.recurrent else ', not recurrent'}"
    if conversation.model.rule.compresses != "never":
        told += f", N = {config.n_tok}"
    return told if window is None else f"{told}, window of {window}"


def recent(tokens: int) -> str:
    """How many of the entries are recent text, where any are."""
    return f" ({tokens} of them recent text)" if tokens else ""


def _file(path: str, command: str) -> Path:
    if not path:
        raise InputError(f"{command} needs a file name, such as: {command} anna.memory")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # ~nobody
        raise InputError(f"{path} names no folder: {error}") from error


def _is_saved(file: Path, kind: str) -> bool:
    """Whether the file holds a conversation of that kind; /save never replaces a file that holds anything else."""
    try:
        return file.is_file() and kind_of(file) == kind
    except OSError:
        return False
