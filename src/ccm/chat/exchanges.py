"""Messages as exchanges: which are of the past, and which a reply is to follow.

messages    system, user, assistant, user, assistant, user
exchanges           [user] -> assistant, [user] -> assistant             each becomes a step of the memory
asked                                                  [user]            what a reply is to follow
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ccm.chat.turns import Message
from ccm.core.errors import InputError

Exchange = tuple[list[Message], str]  # what was said, and the reply


@dataclass
class Exchanges:
    """Messages of a conversation, in order.

    Attributes:
        system: texts that stand before all steps.
        exchanges: those of the past.
        asked: messages since the last reply.
        place: where they stand, for errors.
    """

    system: list[str] = field(default_factory=list)
    exchanges: list[Exchange] = field(default_factory=list)
    asked: list[Message] = field(default_factory=list)
    place: str = "chat"

    def add(self, message: Message) -> None:
        """Take one more message: a reply of the assistant ends an exchange.

        Raises:
            InputError: when a system message follows others, or one of the system or the assistant has no text.
        """
        content, calls = message.get("content"), message.get("tool_calls")
        needs_text = message["role"] == "system" or (message["role"] == "assistant" and not calls)
        if needs_text and not isinstance(content, str):
            raise InputError(f"The content of a message of the {message['role']} is {content!r}; it must be a text.")
        if message["role"] == "system":
            if self.exchanges or self.asked:
                raise InputError(
                    "A system or developer message stands after others; those of a memory stand before all."
                )
            self.system.append(message["content"])
        elif message["role"] == "assistant" and not calls:
            self.exchanges.append((self.asked, message["content"]))
            self.asked = []
        else:
            self.asked.append(message)

    def check_asked(self) -> None:
        """Refuse messages that ask for nothing.

        Raises:
            InputError: when no message of a user or a tool is the last.
        """
        if not self.asked or self.asked[-1]["role"] == "assistant":
            raise InputError(
                f"The {self.place} asks for nothing; the last must be a message of the user, or what a tool gave."
            )
