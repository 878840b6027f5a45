"""LMSYS-Chat-1M, conversations of people with chat models, from the publisher's Parquet files, or as JSON lines.

Each row is a conversation: its messages are the list ``conversation`` of {role, content}, its language is ``language``
(Zheng et al., LMSYS-Chat-1M, ICLR 2024; lmsys/lmsys-chat-1m on the Hub, under a licence of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import DataError
from ccm.core.processes import get_logger
from ccm.data.examples import Examples, hold_out, tell_held_out
from ccm.data.kinds import Chat
from ccm.data.reading import ROWS, find_files, read_rows
from ccm.data.settings import DataOptions, DataSettings
from ccm.data.spool import Spool

_LOG = get_logger(__name__)


@dataclass(frozen=True)
class LMSYSOptions(DataOptions):
    """Which conversations are read.

    Attributes:
        language: the only language that is read, such as "English"; None for all.
        most: conversations at most, the first that can be used; 0 for all.
    """

    language: str | None = None
    most: int = bounded(0, 0)


def read(file: Path, language: str | None) -> Iterator[list[tuple[str, str]]]:
    """The turns of the conversations of a file, or of those in one language: what the user says, and the reply.

    A last message that no reply follows is left out.

    Raises:
        DataError: when the file cannot be read, or a row is no conversation.
        ConfigError: when it is a Parquet file, and pyarrow is not installed.
    """
    columns = ["conversation"] if language is None else ["conversation", "language"]
    for number, row in enumerate(read_rows(file, columns), start=1):
        if language is None or row["language"] == language:
            if not _is_conversation(row["conversation"]):
                raise DataError(
                    f"{file}, row {number}: 'conversation' must be a list of messages, each with content, and with the "
                    "role user or assistant in turn."
                )
            texts = [message["content"] for message in row["conversation"]]
            yield [*zip(texts[::2], texts[1::2], strict=False)]


def _is_conversation(messages: Any) -> bool:
    return isinstance(messages, list) and all(
        isinstance(message, dict)
        and message.get("role") == ("user", "assistant")[i % 2]
        and isinstance(message.get("content"), str)
        for i, message in enumerate(messages)
    )


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
    """The conversations of these settings, whose ``data.path`` is the folder of LMSYS-Chat-1M.

    Raises:
        ConfigError: when no path is named, or an option is not allowed.
        DataError: when a file is absent or malformed, or no conversation can be used.
    """
    options, folder = settings.read_options(LMSYSOptions), settings.require_path("the folder of LMSYS-Chat-1M's files")
    left_out = cut = 0

    def conversations(path: Path) -> Iterator[list[Chat]]:
        nonlocal left_out, cut
        for file in find_files(path, ROWS):
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

    kept = islice(conversations(folder), options.most or None)
    chats = Spool(counted(kept), lambda chat: chat.turns, lambda said: Chat(tuple(map(tuple, said))))
    groups: Sequence[Sequence[int]] = [range(begin, end) for begin, end in pairwise(ends)]  # numbers of chats
    _LOG.warning(
        "LMSYS-Chat-1M: %d conversations, %d of them up to a turn of more than %d tokens or none; %d more have fewer "
        "than two turns before it.",
        *(len(groups), cut, settings.max_step_tokens, left_out),
    )
    if not groups:
        where = f" in {options.language}" if options.language else ""
        raise DataError(
            f"{folder} has no conversation{where} of two turns that are short enough (data.max_step_tokens is "
            f"{settings.max_step_tokens})."
        )
    if settings.eval_path is not None:
        held = [*chain.from_iterable(islice(conversations(Path(settings.eval_path)), settings.eval_samples))]
        tell_held_out(len(held), settings, f"{settings.eval_path} has no more that can be used")
    else:
        numbers, groups = hold_out(groups, settings.eval_samples, f"{seed} held out")
        held = [chats[number] for number in numbers]
        tell_held_out(len(held), settings, f"at most a tenth of {len(chats):,}, conversations whole")
    return Examples(chats.only(chain(*groups)), held, turns, settings.random_steps, seed)
