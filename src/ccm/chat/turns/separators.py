"""Turns between fixed strings: the authors' format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from ccm.chat.turns.base import Message, Turns
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, InputError


class SeparatorTurns(Turns):
    """The authors' format: fixed strings between the turns."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat, system: str, tools: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(tokenizer, form, system, tools)
        if tools:
            raise ConfigError(
                "This model writes turns with separators, which have no form for tools; take one with a chat template."
            )

    def _asked(self, messages: Sequence[Message], *, first: bool, past: bool = False) -> list[int]:
        ids = [] if messages else self._before(first=first)
        for number, message in enumerate(messages):
            if (role := message["role"]) != "user":
                raise InputError(
                    "This model writes turns with separators, which have no form here for a message of the role "
                    f"{role!r}; allowed are texts of the user, and replies to them. Others take a model with a chat "
                    "template."
                )
            ids += self._said(message["content"], first=first and number == 0)
        return [*ids, *self._reply_separator]

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids = self._said(text, first=first)
        return ids, len(ids) - len(self.plain.encode(text)), 0

    def _said(self, text: str, *, first: bool) -> list[int]:
        said = self.form.preamble + text if first else text
        return [*self._before(first=first), *self.plain.encode(said)]

    def _before(self, *, first: bool) -> list[int]:
        return self._bos if first and not self.headed else self._separator

    @cached_property
    def head(self) -> list[int]:
        return [*self._bos, *self.plain.encode(self.system)] if self.system else []

    @property
    def _bos(self) -> list[int]:
        bos = self.tokenizer.bos_token_id
        return [] if bos is None else [bos]

    @property
    def marks(self) -> Sequence[str]:
        return [mark for mark in (self.form.separator, self.form.reply_separator) if mark.strip()]

    @property
    def _opening(self) -> list[int]:
        return self._separator

    @cached_property
    def _separator(self) -> list[int]:
        return self._inside(self.form.separator)

    @cached_property
    def _reply_separator(self) -> list[int]:
        return self._inside(self.form.reply_separator)
