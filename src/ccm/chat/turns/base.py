"""What all formats of turns share."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, InputError
from ccm.core.plain_text import PlainText, after_other, check_text
from ccm.engine.layout import IGNORE, Step

T = TypeVar("T", str, list[int])
Message = Mapping[str, Any]  # as apply_chat_template takes it: role, content, and what a role has beside
Said = str | Sequence[Message]  # a text of the user, or all messages since the last reply
_OTHERS = 64  # turns that are kept
SAMPLES = ("Yes", "42")  # texts without a common beginning or end: what turns of both share is of the format


class Turns(ABC):
    """What the two formats share. Subclasses say how a user's turn reads.

    Attributes:
        plain: encodes what people write.
        system: the system message; empty where none was given.
        tools: definitions of tools.
        headed: whether a head stands before the first turn that is to be written.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat, system: str, tools: Sequence[Mapping[str, Any]]
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("The tokenizer has no EOS token, so no reply would ever end; set tokenizer.eos_token.")
        self.tokenizer, self.form, self.plain = tokenizer, form, PlainText(tokenizer)
        self.system, self.tools, self.headed = system, tools, bool(system)
        self._others: dict[str, Turns] = {}  # under other system messages
        self._last: tuple[list[int], str] = ([], "")  # decoded

    def under(self, system: str, tools: Sequence[Mapping[str, Any]] = ()) -> Turns:
        """The same turns after another system message and other tools; see :func:`ccm.chat.turns.make_turns`."""
        key = json.dumps([system, [*tools]], sort_keys=True)
        if key not in self._others:
            if len(self._others) == _OTHERS:
                del self._others[next(iter(self._others))]
            self._others[key] = type(self)(self.tokenizer, self.form, system, tools)
        return self._others[key]

    @property
    @abstractmethod
    def head(self) -> list[int]:
        """Token ids that stand before all turns, and stay as they are."""

    @cached_property
    def eos_id(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.eos_token_id

    def prompt(self, said: Said, *, first: bool) -> list[int]:
        """Token ids of what is said before a reply, up to where the reply begins.

        Args:
            said: a text of the user, or messages.
            first: whether nothing but a head stands before.

        Raises:
            InputError: when a text is no string, empty, only white space, or holds half of a surrogate pair, or the
                format has no form for a message.
        """
        return self._asked(self._checked(said), first=first)

    def statement(self, text: str, *, first: bool) -> Step:
        """A context step that no reply follows; the targets are the text. In a chat template it is a user's message.

        Raises:
            InputError: when the text is no string, or holds half of a surrogate pair.
        """
        ids, lead, close = self._statement(check_text(text, "The statement"), first=first)
        end = len(ids) - close
        return Step(ids, [*[IGNORE] * (lead - 1), *ids[max(lead, 1) : end], *[IGNORE] * (close + 1)])

    def exchange(self, said: Said, reply: str, *, first: bool) -> Step:
        """What is said, with its reply, as one step of the past; the targets are the reply and the EOS after it.

        Without any message, it is a reply that nobody asked for.

        Raises:
            InputError: as of :meth:`prompt`.
        """
        prompt, answer = self._asked(self._checked(said), first=first, past=True), self.encode_reply(reply)
        targets = [IGNORE] * (len(prompt) - 1) + answer + [self.eos_id]
        return Step(prompt + answer, targets)

    def reads_plainly(self, talk: Sequence[tuple[str, str]]) -> bool:
        """Whether turns and replies read as they are, with the same between them as between any others.

        No turn of such a conversation is refused, and no reply of it is shown otherwise; this is found out far sooner
        than turn by turn.
        """
        said = [text for turn in talk for text in turn]
        return all(map(str.strip, said)) and not self.plain.steers(check_text("\n".join(said)))

    @cached_property
    def around(self) -> int:
        """Tokens of a first turn and its reply that are of the format."""
        return len(self.exchange(*SAMPLES, first=True).ids)

    def encode_reply(self, reply: str) -> list[int]:
        """Token ids of a reply as the model would write it after a prompt."""
        return self.plain.encode(check_text(reply, "The reply"))

    def shown(self, reply: str) -> str:
        """A reply as the format shows it once it is of the past; a chat template may leave a thought out."""
        return reply

    def remembered(self, said: Said, prompt: list[int], reply: list[int], *, first: bool) -> list[int]:
        """Token ids of the step that a generated reply makes of a turn: those that were read, as far as the format
        renders an exchange of the past as it rendered the prompt.

        Args:
            said: before the reply.
            prompt: its token ids.
            reply: token ids of the reply.
            first: whether it is the first turn.
        """
        return [*prompt, *reply]

    def ends(self, ids: Tensor) -> Tensor:
        """(B, T) bool, whether a turn ends after each of the ids (B, T): where they go on with what begins a later one.

        Text that spells the opening of a turn counts as one. Where nothing stands between the turns, none is found.
        """
        opening = torch.tensor(self._opening, device=ids.device)
        found = torch.zeros_like(ids, dtype=torch.bool)
        if 0 < len(opening) < ids.shape[1]:
            begins = (ids.unfold(1, len(opening), 1) == opening).all(-1)
            found[:, : begins.shape[1] - 1] = begins[:, 1:]
        for lead in (self._lead, self._lead[1:]):  # without the first token, where that is a sink
            begins = torch.tensor(lead[: ids.shape[1]], device=ids.device)
            found[(ids[:, : len(begins)] == begins).all(-1), : len(begins)] = False
        return found

    def decode(self, ids: Sequence[int], *, but: int = 0) -> str:
        """The text of a reply: without special tokens, its last ``but`` characters, and white space around it."""
        text = self._text([token for token in ids if token not in self._special])
        return text[: len(text) - but].strip()

    def cut(self, ids: Sequence[int], stops: Sequence[str] = ()) -> list[int] | None:
        """The ids of a reply before a next turn, or one of the ``stops``, within them; None where there is none."""
        text = self._text(ids)
        at = min((at for mark in (*self.marks, *stops) if (at := text.find(mark)) >= 0), default=None)
        if at is None:
            return None
        kept = next(n for n in range(len(ids), -1, -1) if text[:at].startswith(self._text(ids[:n])))
        return [*ids[:kept], *self._inside(text[len(self._text(ids[:kept])) : at])]

    def pending(self, ids: Sequence[int], stops: Sequence[str] = ()) -> int:
        """How many characters at the end of a reply may turn out to begin a next turn, or one of the ``stops``."""
        text = self._text(ids)
        marks = (mark[: len(text) + 1] for mark in (*self.marks, *stops))
        lengths = (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
        return max(lengths, default=0)

    def _text(self, ids: Sequence[int]) -> str:
        """All that the ids say; a reply under way is asked for again and again."""
        asked = [*ids]
        if asked != self._last[0]:
            self._last = asked, self.tokenizer.decode(asked, clean_up_tokenization_spaces=False)
        return self._last[1]

    @cached_property
    def _special(self) -> frozenset[int]:
        """Tokens that no text shows."""
        return frozenset(token for token, added in self.tokenizer.added_tokens_decoder.items() if added.special)

    def _checked(self, said: Said) -> Sequence[Message]:
        listed = isinstance(said, list | tuple) and all(isinstance(one, Mapping) for one in said)
        messages: Sequence[Any] = said if listed else [from_user(check_text(said, "The turn"))]
        return [self._whole(message) for message in messages]

    @staticmethod
    def _whole(message: Message) -> Message:
        """A message whose content is text; that of a tool, or beside calls of tools, may be empty."""
        if not isinstance(message.get("role"), str):
            raise InputError(f"The message {message!r} has no role; give it one, such as user.")
        silent = message["role"] == "tool" or bool(message.get("tool_calls"))
        text = message.get("content")
        text = check_text("" if text is None and silent else text, "The turn")
        if not text.strip() and not silent:
            raise InputError(f"The turn {text!r} is empty; write some text.")
        return {**message, "content": text}

    @cached_property
    def _opening(self) -> list[int]:
        """Token ids with which every later turn begins."""
        return in_common(*(self.prompt(text, first=False) for text in SAMPLES))

    @cached_property
    def _lead(self) -> list[int]:
        """Token ids with which every first turn begins: what stands before its text, such as a system message."""
        return in_common(*(self.prompt(text, first=True) for text in SAMPLES))

    @property
    def marks(self) -> Sequence[str]:
        """Texts with which a turn begins, so that a reply ends there; white space alone is none."""
        return ()

    @abstractmethod
    def _asked(self, messages: Sequence[Message], *, first: bool, past: bool = False) -> list[int]:
        """Token ids of messages, up to where the reply begins; ``past``: as the format writes them later."""

    @abstractmethod
    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        """Token ids of a turn without a reply, and how many of them stand before and after the text."""

    def _format(self, text: str) -> list[int]:
        """Token ids of what is of the format: special tokens are what they say."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def _inside(self, text: str) -> list[int]:
        """As :meth:`_format`, of what stands after other text: at the start of a string, some would lose a space."""
        return after_other(self._format, text)


def from_user(text: str) -> Message:
    """A message of the user."""
    return {"role": "user", "content": text}


def in_common(one: T, other: T) -> T:
    """What two texts, or lists of ids, begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]
