"""How a turn is typed: pasted lines, completion, and the keys that end a chat."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from ccm.cli.commands.chat_commands import Command
from ccm.cli.commands.prompt import CommandCompleter, line_reader

COMMANDS = {
    "/memory": Command(print, "", "what the memory holds"),
    "/save": Command(print, "FILE", "save the memory"),
    "/compare": Command(print, "QUESTION", "answer three times"),
}


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    """What is typed on a terminal that shows nothing."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def test_pasted_lines_are_one_turn(keys: PipeInput) -> None:
    keys.send_text("\x1b[200~Hello.\r\nMy name is Anna.\nThank you!\x1b[201~\r")
    assert line_reader("you  ", COMMANDS)() == "Hello.\nMy name is Anna.\nThank you!"


def test_earlier_turns_come_back(keys: PipeInput) -> None:
    ask = line_reader("you  ", COMMANDS)
    keys.send_text("My name is Anna.\r")
    assert ask() == "My name is Anna."
    keys.send_text("\x1b[A\r")
    assert ask() == "My name is Anna."


@pytest.mark.parametrize(("key", "error"), [("\x03", KeyboardInterrupt), ("\x04", EOFError)])
def test_keys_that_end_a_turn_raise(keys: PipeInput, key: str, error: type[BaseException]) -> None:
    keys.send_text(key)
    with pytest.raises(error):
        line_reader("you  ", COMMANDS)()


def test_bytes_that_are_not_utf_8_are_kept_to_be_refused(keys: PipeInput) -> None:
    keys.send_bytes(b"Zo\xeb\r")
    assert line_reader("you  ", COMMANDS)() == "Zo\udceb"


def completed(typed: str) -> list[str]:
    """What the line may become when Tab is pressed."""
    found = CommandCompleter(COMMANDS).get_completions(Document(typed), CompleteEvent(completion_requested=True))
    return [typed[: len(typed) + one.start_position] + one.text for one in found]


def test_commands_are_completed_and_explained() -> None:
    assert completed("/") == list(COMMANDS)
    assert completed("/com") == ["/compare"]
    assert completed("Hello /com") == completed("/x") == []
    (found,) = CommandCompleter(COMMANDS).get_completions(Document("/m"), CompleteEvent())
    assert found.display_meta_text == "what the memory holds"


def test_files_are_completed_after_commands_that_take_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("anna.memory", "anna b.memory", "other"):
        (tmp_path / name).touch()
    assert completed("/save an") == ["/save anna b.memory", "/save anna.memory"]
    assert completed(f"/save {tmp_path}/o") == [f"/save {tmp_path}/other"]
    assert completed("/memory an") == completed("/compare an") == completed("an") == []
