"""What a turn added to a conversation, as text: from it, its memory can be made again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class Passage(NamedTuple):
    """An exchange that became a step of a memory.

    Attributes:
        said: the messages before the reply.
        reply: the text that followed.
        ids: token ids that the step was read as; None where they are not known for the model that there is now.
        room: for how many tokens room was made before; None as of ``ids``.
    """

    said: Sequence[Mapping[str, Any]]
    reply: str
    ids: list[int] | None
    room: int | None = None


@dataclass(frozen=True)
class Transcript:
    """The exchanges of a turn, and what stood before all steps while they were read.

    Attributes:
        system: the system message.
        tools: definitions of tools.
        passages: in order.
    """

    system: str
    tools: Sequence[Mapping[str, Any]]
    passages: Sequence[Passage]

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @staticmethod
    def loads(text: str) -> Transcript:
        """Of JSON that :meth:`dumps` made."""
        told = json.loads(text)
        return Transcript(told["system"], told["tools"], [Passage(*passage) for passage in told["passages"]])
