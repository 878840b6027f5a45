"""Turns: from the text of a conversation to the tokens of its steps, and back.

first turn    [BOS] preamble text M | reply          M = reply separator, S = separator
later turns           S    text M | reply            the reply's closing EOS is a target, never part of the step

A statement is a turn without M and reply. What people write is plain text (:mod:`ccm.plain_text`): separators and chat
templates alone have tokens that steer the model.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.config import TurnFormat
from ccm.errors import ConfigError, InputError
from ccm.layout import IGNORE, Step
from ccm.plain_text import PlainText, after_other, check_text

T = TypeVar("T", str, list[int])
_SAMPLES = ("Yes", "42")  # texts without a common beginning or end: what turns of both share is of the format


def make_turns(tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> Turns:
    """The turns of that format.

    Raises:
        ConfigError: when the tokenizer lacks what the format needs.
    """
    return {"separators": SeparatorTurns, "chat": TemplateTurns}[form.template](tokenizer, form)


class Turns(ABC):
    """What the two formats share. Subclasses say how a user's turn reads.

    Attributes:
        plain: encodes what people write.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> None:
        if tokenizer.eos_token_id is None:
            raise ConfigError("The tokenizer has no EOS token, so no reply would ever end; set tokenizer.eos_token.")
        self.tokenizer, self.form, self.plain = tokenizer, form, PlainText(tokenizer)
        self._last: tuple[list[int], str] = ([], "")  # decoded

    @cached_property
    def eos_id(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.eos_token_id

    def prompt(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a user's turn, up to where the reply begins.

        Raises:
            InputError: when the text is no string, empty, only white space, or holds half of a surrogate pair.
        """
        return self._first(self._checked(text)) if first else self._later(self._checked(text))

    def statement(self, text: str, *, first: bool) -> Step:
        """A context step that no reply follows; the targets are the text. In a chat template it is a user's message.

        Raises:
            InputError: when the text is no string, or holds half of a surrogate pair.
        """
        ids, lead, close = self._statement(check_text(text, "The statement"), first=first)
        end = len(ids) - close
        return Step(ids, [*[IGNORE] * (lead - 1), *ids[max(lead, 1) : end], *[IGNORE] * (close + 1)])

    def exchange(self, text: str, reply: str, *, first: bool) -> Step:
        """A turn with its reply as one step, of the past; the targets are the reply and the EOS after it.

        Raises:
            InputError: as of :meth:`prompt`.
        """
        prompt, answer = self._past(self._checked(text), first=first), self.encode_reply(reply)
        targets = [IGNORE] * (len(prompt) - 1) + answer + [self.eos_id]
        return Step(prompt + answer, targets)

    def encode_reply(self, reply: str) -> list[int]:
        """Token ids of a reply as the model would write it after a prompt."""
        return self.plain.encode(check_text(reply, "The reply"))

    def shown(self, reply: str) -> str:
        """A reply as the format shows it once it is of the past; a chat template may leave a thought out."""
        return reply

    def remembered(self, text: str, prompt: list[int], reply: list[int], *, first: bool) -> list[int]:
        """Token ids of the step that a generated reply makes of a turn: those that were read, as far as the format
        renders an exchange of the past as it rendered the prompt.

        Args:
            text: of the user's turn.
            prompt: its token ids.
            reply: token ids of the reply.
            first: whether it is the first turn.
        """
        return [*prompt, *reply]

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

    def decode(self, ids: Sequence[int], *, but: int = 0) -> str:
        """The text of a reply: without special tokens, its last ``but`` characters, and white space around it."""
        text = self._text([token for token in ids if token not in self._special])
        return text[: len(text) - but].strip()

    def cut(self, ids: Sequence[int]) -> list[int] | None:
        """The ids of a reply before a next turn that begins within them; None where none does."""
        text = self._text(ids)
        at = min((at for mark in self.marks if (at := text.find(mark)) >= 0), default=None)
        if at is None:
            return None
        kept = next(n for n in range(len(ids), -1, -1) if text[:at].startswith(self._text(ids[:n])))
        return [*ids[:kept], *self._inside(text[len(self._text(ids[:kept])) : at])]

    def pending(self, ids: Sequence[int]) -> int:
        """How many characters at the end of a reply may turn out to begin a next turn."""
        text = self._text(ids)
        lengths = (n for mark in self.marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
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

    def _checked(self, text: str) -> str:
        if not check_text(text, "The turn").strip():
            raise InputError(f"The turn {text!r} is empty; write some text.")
        return text

    def _past(self, text: str, *, first: bool) -> list[int]:
        """Token ids of a turn, up to where its reply begins, once that is of the past."""
        return self._first(text) if first else self._later(text)

    @cached_property
    def _opening(self) -> list[int]:
        """Token ids with which every later turn begins."""
        return in_common(*map(self._later, _SAMPLES))

    @cached_property
    def _lead(self) -> list[int]:
        """Token ids with which every first turn begins: what stands before its text, such as a system message."""
        return in_common(*map(self._first, _SAMPLES))

    @property
    def marks(self) -> Sequence[str]:
        """Texts with which a turn begins, so that a reply ends there; white space alone is none."""
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

    def _format(self, text: str) -> list[int]:
        """Token ids of what is of the format: special tokens are what they say."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)

    def _inside(self, text: str) -> list[int]:
        """As :meth:`_format`, of what stands after other text: at the start of a string, some would lose a space."""
        return after_other(self._format, text)


class SeparatorTurns(Turns):
    """The authors' format: fixed strings between the turns."""

    def _first(self, text: str) -> list[int]:
        return [*self._said(text, first=True), *self._reply_separator]

    def _later(self, text: str) -> list[int]:
        return [*self._said(text, first=False), *self._reply_separator]

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids = self._said(text, first=first)
        return ids, len(ids) - len(self.plain.encode(text)), 0

    def _said(self, text: str, *, first: bool) -> list[int]:
        if not first:
            return [*self._separator, *self.plain.encode(text)]
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self.plain.encode(self.form.preamble + text)]

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


class TemplateTurns(Turns):
    """The tokenizer's chat template. A later turn is the difference of two renderings of a conversation.

    Templates may render an earlier reply otherwise than the last one, so the two renderings need not share a prefix.
    They are aligned at a marker in the reply before the turn; what both have after it belongs to that reply. Where a
    template opens a thought for the model to go on with, and shows none in replies of the past, those are learned and
    remembered as it shows them.
    """

    _MARKER = "ccm-marker-7c1e"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> None:
        super().__init__(tokenizer, form)
        if not tokenizer.chat_template:
            raise ConfigError('The tokenizer has no chat template; use TurnFormat(template="separators").')

    @cached_property
    def eos_id(self) -> int:
        """The special token with which the template closes a reply; the tokenizer's EOS where it has none."""
        closing = self._format(self._after(self._MARKER, self._render(_reply(self._MARKER), reply_follows=False)))
        if closing and closing[0] in self.tokenizer.added_tokens_decoder:
            return closing[0]
        return super().eos_id

    def encode_reply(self, reply: str) -> list[int]:
        return super().encode_reply(self.shown(check_text(reply, "The reply")))

    def remembered(self, text: str, prompt: list[int], reply: list[int], *, first: bool) -> list[int]:
        said = self._text(reply)
        if not self._asks and self.shown(said).strip() == said.strip():
            return super().remembered(text, prompt, reply, first=first)
        return [*self._past(text, first=first), *self.encode_reply(said)]

    def _first(self, text: str) -> list[int]:
        return self._turn(text, first=True, reply_follows=True)

    def _later(self, text: str) -> list[int]:
        return self._turn(text, first=False, reply_follows=True)

    def _past(self, text: str, *, first: bool) -> list[int]:
        return self._turn(text, first=first, reply_follows=True, past=True)

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids, *samples = (self._turn(one, first=first, reply_follows=False) for one in (text, *_SAMPLES))
        return ids, len(in_common(*samples)), len(in_common(*(one[::-1] for one in samples)))

    def _turn(self, text: str, *, first: bool, reply_follows: bool, past: bool = False) -> list[int]:
        quoted: dict[str, str] = {}
        preamble = self._held(self.form.preamble, quoted, beside=text)
        user = {"role": "user", "content": self._held(text, quoted, beside=self.form.preamble)}
        if first:
            rendered = self._render([user], reply_follows=reply_follows, preamble=preamble)
        else:
            marker = self._MARKER
            while marker in text or marker in preamble:
                marker += "-"
            before = _reply(marker)
            closing = self._after(marker, self._render(before, reply_follows=False, preamble=preamble))
            following = self._after(
                marker, self._render([*before, user], reply_follows=reply_follows, preamble=preamble)
            )
            rendered = following[len(in_common(closing, following)) :]
        if past and self._asks and rendered.endswith(self._asks):
            rendered = rendered[: len(rendered) - len(self._asks)] + self._shows
        for mark, held in quoted.items():
            if mark not in rendered and (first or mark in user["content"]):
                raise InputError(
                    f"The text {held!r} spells a token that steers the model, and the chat template does not show it "
                    "as it is; write it otherwise."
                )
        return self._ids(rendered, quoted)

    def _held(self, text: str, quoted: dict[str, str], *, beside: str) -> str:
        """The text as the template is to see it: a mark in its place where it spells a token that steers the model.

        Args:
            text: as it was written.
            quoted: the held texts by their marks, which grows.
            beside: another text of the same rendering.
        """
        core = text.strip()
        if not self.plain.steers(core):
            return text
        mark = f"ccm-quoted-{len(quoted)}"
        while mark in text or mark in beside:
            mark += "-"
        quoted[mark] = core
        return text.replace(core, mark)

    def _ids(self, rendered: str, quoted: Mapping[str, str]) -> list[int]:
        """Token ids of a rendering, in which marks stand for the quoted texts."""
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, quoted))})", rendered) if quoted else [rendered]:
            if part in quoted:
                ids += self.plain.after(quoted[part]) if ids else self.plain.encode(quoted[part])
            else:
                ids += self._inside(part) if ids else self._format(part)
        return ids

    @cached_property
    def _asks(self) -> str:
        """What the template writes for a reply to go on with, beyond what it shows before one of the past."""
        return self._leads[0]

    @cached_property
    def _shows(self) -> str:
        """What it shows there instead before a reply of the past."""
        return self._leads[1]

    @cached_property
    def _leads(self) -> tuple[str, str]:
        hello, _ = _reply("")
        asked = self._render([hello], reply_follows=True)
        shown = self._around_reply[0]
        common = len(in_common(asked, shown))
        return asked[common:], shown[common:]

    @cached_property
    def _around_reply(self) -> tuple[str, str]:
        """What the template writes before and after a reply of the past."""
        before, found, after = self._exchanged(self._MARKER).rpartition(self._MARKER)
        if not found:
            raise ConfigError("The chat template drops the assistant's replies; it cannot render a conversation.")
        return before, after

    def shown(self, reply: str) -> str:
        before, after = self._around_reply
        rendered = self._exchanged(reply)
        whole = len(rendered) >= len(before) + len(after)
        if whole and rendered.startswith(before) and rendered.endswith(after):
            return rendered[len(before) : len(rendered) - len(after)]
        return reply

    def _exchanged(self, reply: str) -> str:
        """A rendered conversation with a reply that another turn follows."""
        hello, said = _reply(reply)
        return self._render([hello, said, hello], reply_follows=False)

    def _render(self, messages: list[dict[str, Any]], *, reply_follows: bool, preamble: str | None = None) -> str:
        content = self.form.preamble if preamble is None else preamble
        system = [{"role": "system", "content": content}] if content else []
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


def in_common(one: T, other: T) -> T:
    """What two texts, or lists of ids, begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]
