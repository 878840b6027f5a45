"""``ccm chat``: a conversation on a terminal, or line by line through a pipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from ccm import __version__
from ccm.chat.conversation import BaseConversation, Conversation, TurnReport
from ccm.chat.window import WindowConversation
from ccm.cli.commands.chat_commands import Command, Commands, kept_as, recent
from ccm.cli.console import by_words, interrupted, loading, plain_console, quiet, tell, with_flags
from ccm.core.errors import CCMError, InputError
from ccm.core.plain_text import check_text
from ccm.core.units import size
from ccm.engine.sampling import Sampling
from ccm.models.builtin import LONGEST_TURN, NAME
from ccm.models.load import load as load_model
from ccm.models.locate import base_name, is_builtin

PROMPT = "you  "
KNOWS = (
    "The built-in model is tiny. It knows small talk about you and nothing else: your name, home, job, hobby, pet, "
    "favourite food and colour, brother, sister and best friend."
)
TRY = """Say    I live in Oslo.
later  Where do I live?
then   /compare Where do I live?"""
_WORDS = {"help": "/help", "exit": "/quit", "quit": "/quit"}  # commands that people say without a /
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")  # its mark, read as UTF-8 with surrogateescape


def run(
    choice: dict[str, Any],
    sampling: Sampling,
    load: Path | None = None,
    window: int | None = None,
    system: str = "",
    *,
    on_terminal: bool,
    as_json: bool,
) -> int:
    """Hold the conversation, with a window of so many entries where one is given; returns the exit status."""
    quiet()
    with loading(choice):
        model, tokenizer = load_model(**choice)
    conversation: BaseConversation = (
        Conversation(model, tokenizer, sampling=sampling, system=system)
        if window is None
        else WindowConversation(model, tokenizer, window, sampling, system=system)
    )
    if load is not None:
        conversation.load(load)
    if on_terminal:
        return _terminal(conversation, load)
    with interrupted("Interrupted; what /save has not saved is forgotten."):
        return _pipe(conversation, load, as_json=as_json)


def statistics(conversation: BaseConversation, report: TurnReport) -> str:
    """The line after each turn."""
    step = report.step_tokens if report.recent_tokens else f"{report.step_tokens} -> {_written(conversation, report)}"
    return (
        f"{step} tokens; memory {report.memory_entries} entries{recent(report.recent_tokens)}, "
        f"{size(report.memory_bytes)} (full context: {report.full_context_tokens} tokens, "
        f"{size(report.full_context_bytes)})"
    )


def explanation(conversation: BaseConversation, report: TurnReport) -> str:
    """What the line of statistics says, in words."""
    became = "stay as text for now" if report.recent_tokens else f"became {_written(conversation, report)} entries"
    return (
        f"(This turn's {report.step_tokens} tokens {became}. The memory takes {size(report.memory_bytes)}; the whole "
        f"text would take {size(report.full_context_bytes)}.)"
    )


def _written(conversation: BaseConversation, report: TurnReport) -> int:
    """Entries that the turn became."""
    return conversation.model.rule.entries_of(report.step_tokens, conversation.model.config.n_tok)


def _terminal(conversation: BaseConversation, load: Path | None) -> int:
    console = plain_console()
    commands = Commands(conversation, console, load)
    _welcome(conversation, console)
    if load is not None:
        commands.memory("")
    ask = _line_reader(console, commands.table)
    explained = False
    while True:
        console.print()
        try:
            line = ask().strip()
        except KeyboardInterrupt:
            console.print("Ctrl-D leaves, and forgets what /save has not saved", style="dim")
            continue
        except EOFError:
            return 0
        line = _WORDS.get(line.lower(), line)
        try:
            if line.startswith("/"):
                commands.obey(line)
            elif line:
                _reply(conversation, console, line, explain=not explained)
                explained = True
        except CCMError as error:
            console.print(with_flags(str(error)), style="red")
        except KeyboardInterrupt:
            console.print("\ninterrupted; the memory is as it was", style="dim")
        except EOFError:
            return 0


def _line_reader(console: Console, commands: Mapping[str, Command]) -> Callable[[], str]:
    """What asks for a turn: with history and completion, or plainly where the terminal takes no control sequences."""
    if console.is_dumb_terminal or (os.name == "posix" and not os.environ.get("TERM")):
        return _plain_line
    from ccm.cli.commands.prompt import line_reader

    return line_reader(PROMPT, commands)


def _plain_line() -> str:
    try:
        return input(PROMPT)
    except (EOFError, KeyboardInterrupt):
        print()  # what follows begins a line
        raise


def _welcome(conversation: BaseConversation, console: Console) -> None:
    """The first screen: what this is, what the model knows, and what to try."""
    name = base_name(conversation.model.base.name_or_path)
    console.print(Text.assemble(("ccm", "bold"), f" {__version__}  {name}, {kept_as(conversation)}\n"))
    console.print(_about(conversation))
    if name == NAME:
        console.print(f"\n{KNOWS}")
    console.print(f"\n{TRY}\n\n/help lists the commands, exit leaves.")


def _about(conversation: BaseConversation) -> str:
    """What this chat is, in a sentence: what becomes of the turns."""
    rule, n, window = conversation.model.rule, conversation.model.config.n_tok, conversation.past.window
    if window is not None:
        return (
            f"A chat without end, in {window} entries: recent turns stay as text, older ones are compressed into "
            "memory entries."
        )
    if rule.forgets:
        return "A chat without memory: each turn stands alone."
    if rule.compresses == "never":
        return "A chat in full context: all turns stay as text, and nothing is compressed."
    if rule.compresses == "context":
        return f"A chat with a small memory: for each reply, all turns are compressed into {n} entries."
    growth = ", however many turns there are" if rule.mixes else " a turn"
    return f"A chat with a small memory: {n} entries{growth}. The text of the turns is thrown away."


def _reply(conversation: BaseConversation, console: Console, line: str, *, explain: bool) -> None:
    if is_builtin(conversation.model.base.name_or_path):
        tokens = len(conversation.tokenizer(check_text(line, "The turn"))["input_ids"])
        if tokens > 2 * LONGEST_TURN:
            _aside(
                console,
                f"This turn has {tokens} tokens. The built-in model was trained on turns of up to {LONGEST_TURN}, and "
                "will not make sense of it; Ctrl-C stops the reply.",
            )
    console.print(Text("ccm  ", "bold cyan"), end="")
    with closing(conversation.say(line)) as pieces:  # an interrupted reply must end before the next turn begins
        for piece in by_words(pieces, console.width, len(PROMPT)):
            console.print(piece, end="", soft_wrap=True)
    assert conversation.last is not None
    console.print()
    _aside(console, statistics(conversation, conversation.last))
    if explain:
        _aside(console, explanation(conversation, conversation.last))


def _aside(console: Console, text: str) -> None:
    """Something beside the conversation, in line with what is said there."""
    console.print(Padding(Text(text), (0, 0, 0, len(PROMPT)), expand=False), style="dim")


def _pipe(conversation: BaseConversation, load: Path | None, *, as_json: bool) -> int:
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
