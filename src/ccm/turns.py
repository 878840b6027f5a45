"""Turns: from the text of a conversation to the tokens of its steps, and back.

first turn    [BOS] preamble text M | reply          M = reply separator, S = separator
later turns           S    text M | reply            the reply's closing EOS is a target, never part of the step

A statement is a turn without M and reply.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.config import TurnFormat
from ccm.errors import ConfigError, InputError
from ccm.layout import IGNORE, Step

T = TypeVar("T", str, list[int])
_SAMPLES = ("Yes", "42")  # texts without a common beginning or end: what turns of both share is of the format


def make_turns(tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> Turns:
    """The turns of that format.

    Raises:
        ConfigError: when the tokenizer lacks what the format needs.
    """
    return {"separators": SeparatorTurns, "chat": TemplateTurns}[form.template](tokenizer, form)


class Turns(ABC):
    """What the two formats share. Subclasses say how a user's turn reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("The tokenizer has no EOS token, so no reply would ever end; set tokenizer.eos_token.")
        self.tokenizer, self.form = tokenizer, form

    @cached_property
    def eos_id(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.eos_token_id

    def prompt(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a user's turn, up to where the reply begins.

        Raises:
            InputError: when the text is empty or only white space.
        """
        if not text.strip():
            raise InputError(f"The turn {text!r} is empty; write some text.")
        return self._first(text) if first else self._later(text)

    def statement(self, text: str, *, first: bool) -> Step:
        """A context step that no reply follows; the targets are the text. In a chat template it is a user's message."""
        ids, lead, close = self._statement(text, first=first)
        end = len(ids) - close
        return Step(ids, [*[IGNORE] * (lead - 1), *ids[max(lead, 1) : end], *[IGNORE] * (close + 1)])

    def exchange(self, text: str, reply: str, *, first: bool) -> Step:
        """A turn with its reply as one step; the targets are the reply and the EOS after it."""
        prompt, answer = self.prompt(text, first=first), self.encode_reply(reply)
        targets = [IGNORE] * (len(prompt) - 1) + answer + [self.eos_id]
        return Step(prompt + answer, targets)

    def encode_reply(self, reply: str) -> list[int]:
        """Token ids of a reply as the model would write it after a prompt."""
        return self._encode(reply)

    def ends(self, ids: Tensor) -> Tensor:
        """(B, T) bool, whether a turn ends after each of the ids (B, T): where they go on with what begins a later one.

        What spells it out within a text passes for it. Where nothing stands between the turns, none is found.
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

    def decode(self, ids: list[int]) -> str:
        """The text of a reply."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def reply(self, ids: Sequence[int]) -> tuple[str, bool]:
        """The text of a reply that is being generated, and whether it has ended: by EOS, or where a turn begins."""
        closing = {self.eos_id, self.tokenizer.eos_token_id}
        end = next((i for i, token in enumerate(ids) if token in closing), len(ids))
        text = self.tokenizer.decode([*ids[:end]])  # special tokens, too: a separator may be one
        cut = min((at for mark in self._marks if (at := text.find(mark)) >= 0), default=len(text))
        said = text[:cut]
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                said = said.replace(token.content, "")
        return said.strip(), end < len(ids) or cut < len(text)

    @cached_property
    def _opening(self) -> list[int]:
        """Token ids with which every later turn begins."""
        return _in_common(*map(self._later, _SAMPLES))

    @cached_property
    def _lead(self) -> list[int]:
        """Token ids with which every first turn begins: what stands before its text, such as a system message."""
        return _in_common(*map(self._first, _SAMPLES))

    @property
    def _marks(self) -> Sequence[str]:
        """Texts with which a turn begins."""
        return ()

    @abstractmethod
    def _first(self, text: str) -> list[int]:
        """Token ids of the first turn of a conversation, up to where the reply begins."""

    @abstractmethod
    def _later(self, text: str) -> list[int]:
        """Likewise, of a turn that follows others."""

    @abstractmethod
    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        """Token ids of a turn without a reply, and how many of them stand before and after the text."""

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class SeparatorTurns(Turns):
    """The authors' format: fixed strings between the turns."""

    def _first(self, text: str) -> list[int]:
        return [*self._said(text, first=True), *self._reply_separator]

    def _later(self, text: str) -> list[int]:
        return [*self._said(text, first=False), *self._reply_separator]

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids = self._said(text, first=first)
        return ids, len(ids) - len(self._encode(text)), 0

    def _said(self, text: str, *, first: bool) -> list[int]:
        if not first:
            return [*self._separator, *self._encode(text)]
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self._encode(self.form.preamble + text)]

    @property
    def _marks(self) -> Sequence[str]:
        return [mark for mark in (self.form.separator, self.form.reply_separator) if mark.strip(" ")]

    @property
    def _opening(self) -> list[int]:
        return self._separator

    @cached_property
    def _separator(self) -> list[int]:
        return self._inside(self.form.separator)

    @cached_property
    def _reply_separator(self) -> list[int]:
        return self._inside(self.form.reply_separator)

    def _inside(self, text: str) -> list[int]:
        """Tokens of a separator as they stand after other text: at the start of a string, some would lose a space."""
        return self._encode("a" + text)[len(self._encode("a")) :]


class TemplateTurns(Turns):
    """The tokenizer's chat template. A later turn is the difference of two renderings of a conversation.

    Templates may render an earlier reply otherwise than the last one, so the two renderings need not share a prefix.
    They are aligned at a marker in the reply before the turn; what both have after it belongs to that reply.
    """

    _MARKER = "ccm-marker-7c1e"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> None:
        super().__init__(tokenizer, form)
        if not tokenizer.chat_template:
            raise ConfigError('The tokenizer has no chat template; use TurnFormat(template="separators").')

    @cached_property
    def eos_id(self) -> int:
        """The special token with which the template closes a reply; the tokenizer's EOS where it has none."""
        closing = self._encode(self._after(self._MARKER, self._render(_reply(self._MARKER), reply_follows=False)))
        if closing and closing[0] in self.tokenizer.added_tokens_decoder:
            return closing[0]
        return super().eos_id

    def _first(self, text: str) -> list[int]:
        return self._turn(text, first=True, reply_follows=True)

    def _later(self, text: str) -> list[int]:
        return self._turn(text, first=False, reply_follows=True)

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids, *samples = (self._turn(one, first=first, reply_follows=False) for one in (text, *_SAMPLES))
        return ids, len(_in_common(*samples)), len(_in_common(*(one[::-1] for one in samples)))

    def _turn(self, text: str, *, first: bool, reply_follows: bool) -> list[int]:
        if first:
            return self._encode(self._render([{"role": "user", "content": text}], reply_follows=reply_follows))
        marker = self._MARKER
        while marker in text:
            marker += "-"
        before = _reply(marker)
        after = [*before, {"role": "user", "content": text}]
        closing = self._after(marker, self._render(before, reply_follows=False))
        following = self._after(marker, self._render(after, reply_follows=reply_follows))
        return self._encode(following[len(_in_common(closing, following)) :])

    def _render(self, messages: list[dict[str, Any]], *, reply_follows: bool) -> str:
        system = [{"role": "system", "content": self.form.preamble}] if self.form.preamble else []
        try:
            return self.tokenizer.apply_chat_template(
                system + messages, tokenize=False, add_generation_prompt=reply_follows
            )
        except TemplateError as error:
            raise ConfigError(f"The tokenizer's chat template refuses the conversation: {error}.") from error

    def _after(self, marker: str, rendered: str) -> str:
        _, found, rest = rendered.rpartition(marker)
        if not found:
            raise ConfigError("The chat template drops the assistant's replies; it cannot render a conversation.")
        return rest


def _reply(text: str) -> list[dict[str, str]]:
    """A conversation whose last reply is ``text``."""
    return [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": text}]


def _in_common(one: T, other: T) -> T:
    """What two texts, or lists of ids, begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]
