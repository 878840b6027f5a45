"""Turns: from the text of a conversation to the tokens of its steps, and back.

first turn    [BOS] preamble text M | reply          M = reply separator, S = separator
later turns           S    text M | reply            the reply's closing EOS is a target, never part of the step
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.config import TurnFormat
from ccm.errors import ConfigError, InputError
from ccm.layout import IGNORE, Step


def make_turns(tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> Turns:
    """The turns of that format.

    Raises:
        ConfigError: when the tokenizer lacks what the format needs.
    """
    return {"separators": SeparatorTurns, "chat": TemplateTurns}[form.template](tokenizer, form)


class Turns:
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

    def statement(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a context step that no reply follows.

        Raises:
            ConfigError: under a chat template, which knows turns with replies only.
        """
        raise ConfigError(
            "A chat template has no place for context steps without replies; use turns.template=separators for them."
        )

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

        What spells it out passes for it, such as a first turn after a system message. Where nothing stands between the
        turns, none is found.
        """
        opening = torch.tensor(self._opening, device=ids.device)
        found = torch.zeros_like(ids, dtype=torch.bool)
        if 0 < len(opening) < ids.shape[1]:
            begins = (ids.unfold(1, len(opening), 1) == opening).all(-1)
            found[:, : begins.shape[1] - 1] = begins[:, 1:]
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
        one, other = (self._later(text) for text in ("Yes", "42"))
        return one[: next((i for i, pair in enumerate(zip(one, other, strict=False)) if len({*pair}) > 1), len(one))]

    @property
    def _marks(self) -> Sequence[str]:
        """Texts with which a turn begins."""
        return ()

    def _first(self, text: str) -> list[int]:
        raise NotImplementedError

    def _later(self, text: str) -> list[int]:
        raise NotImplementedError

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)


class SeparatorTurns(Turns):
    """The authors' format: fixed strings between the turns."""

    def statement(self, text: str, *, first: bool) -> list[int]:
        if not first:
            return [*self._separator, *self._encode(text)]
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self._encode(self.form.preamble + text)]

    def _first(self, text: str) -> list[int]:
        return [*self.statement(text, first=True), *self._reply_separator]

    def _later(self, text: str) -> list[int]:
        return [*self.statement(text, first=False), *self._reply_separator]

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
        return self._encode(self._render([{"role": "user", "content": text}], reply_follows=True))

    def _later(self, text: str) -> list[int]:
        marker = self._MARKER
        while marker in text:
            marker += "-"
        before = _reply(marker)
        after = [*before, {"role": "user", "content": text}]
        closing = self._after(marker, self._render(before, reply_follows=False))
        following = self._after(marker, self._render(after, reply_follows=True))
        same = 0
        while same < min(len(closing), len(following)) and closing[same] == following[same]:
            same += 1
        return self._encode(following[same:])

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
