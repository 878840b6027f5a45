"""LMSYS-Chat-1M, conversations of people with chat models, from the publisher's Parquet files, or as JSON lines.

A conversation is a row, its messages the list ``conversation`` of {role, content}, its language ``language`` (Zheng et
al., LMSYS-Chat-1M, ICLR 2024; lmsys/lmsys-chat-1m on the Hub, under a licence of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from ccm.chat.turns import Turns
from ccm.core.config import build_settings, check_types
from ccm.core.errors import ConfigError, DataError
from ccm.core.processes import get_logger
from ccm.data.examples import Examples, hold_out, tell_held_out
from ccm.data.kinds import Chat
from ccm.data.reading import ROWS, find_files, read_rows
from ccm.data.settings import DataSettings
from ccm.data.spool import Spool

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """Which conversations are read.

    Attributes:
        language: those in this language alone, such as "English"; None for all.
        most: so many at most, the first that can be used; 0 for all.
    """

    language: str | None = None
    most: int = 0

    def __post_init__(self) -> None:
        check_types(self, "data.options.")
        if self.most < 0:
            raise ConfigError(f"data.options.most is {self.most}; it must be at least 0.")


def read(file: Path, language: str | None) -> Iterator[list[tuple[str, str]]]:
    """The turns of the conversations of a file, each what the user says and the reply; those in a language alone.

    A message of the user that no reply follows is left out.

    Raises:
        DataError: when the file cannot be read, or a row is no conversation.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    columns = ["conversation"] if language is None else ["conversation", "language"]
    for number, row in enumerate(read_rows(file, columns), start=1):
        if language is None or row["language"] == language:
            texts = _texts(row["conversation"])
            if texts is None:
                raise DataError(
                    f"{file}, row {number}: 'conversation' must be a list of messages, each with content, and with the "
                    "role user or assistant in turn."
                )
            yield [*zip(texts[::2], texts[1::2], strict=False)]


def _texts(messages: Any) -> list[str] | None:
    """The texts of the messages; None where they are none of a user and an assistant in turn."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return None
    roles = [message.get("role") for message in messages]
    texts = [message.get("content") for message in messages]
    in_turn = roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
    return texts if in_turn and all(isinstance(text, str) for text in texts) else None


def usable(said: list[tuple[str, str]], settings: DataSettings, turns: Turns) -> list[tuple[str, str]]:
    """A conversation up to its first turn that is too long or says nothing."""
    kept: list[tuple[str, str]] = []
    for user, reply in said:
        if not (user.strip() and reply.strip()):
            break
        if len(turns.exchange(user, reply, first=not kept).ids) > settings.max_step_tokens:
            break
        kept.append((user, reply))
    return kept


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Examples:
    """The conversations of these settings whose ``data.path`` is the folder of LMSYS-Chat-1M.

    Raises:
        ConfigError: when it names none, or options that there are not.
        DataError: when a file is absent or malformed, or no conversation can be used.
    """
    options = build_settings(Options, settings.options, "data.options")
    if settings.path is None:
        raise ConfigError(f"The data set {settings.name!r} needs data.path, the folder of LMSYS-Chat-1M's files.")

    left_out = cut = 0

    def conversations(path: str) -> Iterator[list[Chat]]:
        nonlocal left_out, cut
        for file in find_files(Path(path), ROWS):
            for said in read(file, options.language):
                kept = usable(said, settings, turns)
                if len(kept) > 1:
                    cut += len(kept) < len(said)
                    yield [*Chat(tuple(kept)).parts(settings.max_steps)]
                else:
                    left_out += 1

    ends = [0]

    def counted(groups: Iterable[list[Chat]]) -> Iterator[Chat]:
        for group in groups:
            ends.append(ends[-1] + len(group))
            yield from group

    kept = islice(conversations(settings.path), options.most or None)
    chats = Spool(counted(kept), lambda chat: chat.turns, lambda said: Chat(tuple(map(tuple, said))))
    groups: Sequence[Sequence[int]] = [range(begin, end) for begin, end in pairwise(ends)]  # numbers of chats
    _LOG.warning(
        "LMSYS-Chat-1M: %d conversations, %d of them up to a turn of more than %d tokens or none; %d more have fewer "
        "than two turns before it.",
        len(groups),
        cut,
        settings.max_step_tokens,
        left_out,
    )
    if not groups:
        where = f" in {options.language}" if options.language else ""
        raise DataError(
            f"{settings.path} has no conversation{where} of two turns that are short enough (data.max_step_tokens is "
            f"{settings.max_step_tokens})."
        )
    if settings.eval_path is not None:
        held = [*chain.from_iterable(islice(conversations(settings.eval_path), settings.eval_samples))]
        tell_held_out(len(held), settings, f"{settings.eval_path} has no more that can be used")
    else:
        numbers, groups = hold_out(groups, settings.eval_samples, f"{seed} held out")
        held = [chats[number] for number in numbers]
        tell_held_out(len(held), settings, f"at most a tenth of {len(chats):,}, conversations whole")
    return Examples(chats.only(chain(*groups)), held, turns, settings.random_steps, seed)
