"""How a turn is typed on a terminal: with history, completion of commands and files, and pasted lines as one turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition

from ccm.cli.commands.chat_commands import Command


class CommandCompleter(Completer):
    """Completes the names of commands, and files after those that take one."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        about = {name: command.about for name, command in commands.items()}
        self._commands = commands
        self._names = WordCompleter(list(commands), meta_dict=about, sentence=True)
        self._files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        name, space, typed = document.text_before_cursor.partition(" ")
        if not space:
            yield from self._names.get_completions(document, complete_event)
        elif name in self._commands and self._commands[name].takes == "FILE":
            yield from self._files.get_completions(Document(typed), complete_event)


def line_reader(prompt: str, commands: Mapping[str, Command]) -> Callable[[], str]:
    """What asks for the next turn and returns it; Ctrl-C raises KeyboardInterrupt, Ctrl-D EOFError.

    The commands are listed as soon as a / is typed, files when Tab is pressed.
    """

    def names_a_command() -> bool:
        return session.default_buffer.text.startswith("/") and " " not in session.default_buffer.text

    session: PromptSession[str] = PromptSession(
        prompt,
        completer=CommandCompleter(commands),
        complete_while_typing=Condition(names_a_command),
        reserve_space_for_menu=1 + len(commands),
        prompt_continuation=" " * len(prompt),
        include_default_pygments_style=False,
        enable_suspend=True,
    )
    return session.prompt
