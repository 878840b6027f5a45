"""Turns: from the text of a conversation to the tokens of its steps, and back.

first turn    [BOS] preamble text M | reply          M = reply separator, S = separator
later turns           S    text M | reply            the reply's closing EOS is a target, never part of the step

A statement is a turn without M and reply. Text is text: what people write, or a file quotes, never becomes one of the
tokens that steer a model; it is spelled out in ordinary ones. Separators and chat templates alone have such tokens.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeVar

import torch
from jinja2.exceptions import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ccm.config import TurnFormat
from ccm.errors import ConfigError, InputError
from ccm.layout import IGNORE, Step

T = TypeVar("T", str, list[int])
_BEFORE = ("a", ".", "\n", "0", "Z", "\u00e9")  # texts that another may stand after
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_SAMPLES = ("Yes", "42")  # texts without a common beginning or end: what turns of both share is of the format


def make_turns(tokenizer: PreTrainedTokenizerBase, form: TurnFormat) -> Turns:
    """The turns of that format.

    Raises:
        ConfigError: when the tokenizer lacks what the format needs.
    """
    return {"separators": SeparatorTurns, "chat": TemplateTurns}[form.template](tokenizer, form)


def check_text(text: object, what: str = "The text") -> str:
    """The text, where it is one that a tokenizer can read.

    Raises:
        InputError: when it is no string, or holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is {text!r}, of type {type(text).__name__}; it must be a string.")
    if half := HALF.search(text):
        raise InputError(
            f"{what} holds {half[0]!a} at character {half.start()}: half of a surrogate pair, which is no character. "
            "Was it cut within an emoji? Leave it out."
        )
    return text


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that people wrote, without BOS: special tokens that they spell are ordinary text.

    Raises:
        InputError: when one is no string, or holds half of a surrogate pair.
    """
    checked = [check_text(text) for text in texts]
    return tokenizer(checked, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """As :func:`encode_texts`, of one text."""
    return encode_texts(tokenizer, [text])[0]


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
        return encode_text(self.tokenizer, check_text(reply, "The reply"))

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
        text = self._text(ids, skip_special_tokens=True)
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

    def _text(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        ids = [*ids]
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

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

    @property
    @abstractmethod
    def _steering(self) -> str:
        """All that the format itself writes."""

    @cached_property
    def _tags(self) -> list[str]:
        """Tokens of the format, such as of thoughts and tools, that the tokenizer does not hold for special."""
        added = self.tokenizer.added_tokens_decoder.values()
        return [t.content for t in added if not t.special and t.content.strip() and t.content in self._steering]

    @cached_property
    def _controls(self) -> list[str]:
        """Tokens that steer the model."""
        added = self.tokenizer.added_tokens_decoder.values()
        return [*self._tags, *(token.content for token in added if token.special)]

    def _spelled(self, text: str, *, inside: bool = False) -> list[int]:
        """Token ids of a text that a user wrote; ``inside``: it stands after other text.

        Tokens that steer the model are spelled out: special ones by the tokenizer, others by being cut apart.
        """
        cuts = {found.start() + 1 for tag in self._tags for found in re.finditer(re.escape(tag), text)}
        pieces = [text[a:b] for a, b in pairwise((0, *sorted(cuts), len(text)))]
        ids = [] if inside else encode_text(self.tokenizer, pieces.pop(0))
        for piece in pieces:
            ids += _after_other(lambda text: encode_text(self.tokenizer, text), piece)
        return ids

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
        return _after_other(self._format, text)


class SeparatorTurns(Turns):
    """The authors' format: fixed strings between the turns."""

    @property
    def _steering(self) -> str:
        return self.form.separator + self.form.reply_separator

    def _first(self, text: str) -> list[int]:
        return [*self._said(text, first=True), *self._reply_separator]

    def _later(self, text: str) -> list[int]:
        return [*self._said(text, first=False), *self._reply_separator]

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids = self._said(text, first=first)
        return ids, len(ids) - len(self._spelled(text)), 0

    def _said(self, text: str, *, first: bool) -> list[int]:
        if not first:
            return [*self._separator, *self._spelled(text)]
        bos = self.tokenizer.bos_token_id
        return [*([] if bos is None else [bos]), *self._spelled(self.form.preamble + text)]

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
        return super().encode_reply(self._shown(check_text(reply, "The reply")))

    def remembered(self, text: str, prompt: list[int], reply: list[int], *, first: bool) -> list[int]:
        said = self._text(reply)
        if not self._asks and self._shown(said).strip() == said.strip():
            return super().remembered(text, prompt, reply, first=first)
        return [*self._past(text, first=first), *self.encode_reply(said)]

    @property
    def _steering(self) -> str:
        return str(self.tokenizer.chat_template)

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
        preamble = self._held(self.form.preamble, quoted) if first else self.form.preamble
        user = {"role": "user", "content": self._held(text, quoted)}
        if first:
            rendered = self._render([user], reply_follows=reply_follows, preamble=preamble)
        else:
            marker = self._MARKER
            while marker in text:
                marker += "-"
            before = _reply(marker)
            closing = self._after(marker, self._render(before, reply_follows=False))
            following = self._after(marker, self._render([*before, user], reply_follows=reply_follows))
            rendered = following[len(in_common(closing, following)) :]
        if past and self._asks and rendered.endswith(self._asks):
            rendered = rendered[: len(rendered) - len(self._asks)] + self._shows
        return self._ids(rendered, quoted)

    def _held(self, text: str, quoted: dict[str, str]) -> str:
        """The text as the template is to see it: a mark in its place where it spells a token that steers the model."""
        core = text.strip()
        if not any(token in core for token in self._controls):
            return text
        mark = f"ccm-quoted-{len(quoted)}"
        while mark in self.form.preamble or mark in text:
            mark += "-"
        quoted[mark] = core
        return text.replace(core, mark)

    def _ids(self, rendered: str, quoted: Mapping[str, str]) -> list[int]:
        """Token ids of a rendering, in which marks stand for the quoted texts."""
        ids: list[int] = []
        for mark, text in quoted.items():
            before, found, rendered = rendered.partition(mark)
            if not found:
                raise InputError(
                    f"The text {text!r} spells a token of the chat template, which does not show it as it is; write it "
                    "otherwise."
                )
            ids += self._inside(before) if ids else self._format(before)
            ids += self._spelled(text, inside=True)
        return [*ids, *(self._inside(rendered) if ids else self._format(rendered))]

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

    def _shown(self, reply: str) -> str:
        """A reply as the template shows it once it is of the past, such as without its thought."""
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


def _after_other(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Token ids of a text as it stands after another one: of one with which it does not fuse into a token.

    Raises:
        InputError: when it fuses with all that are tried.
    """
    for before in _BEFORE:
        lead, whole = encode(before), encode(before + text)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    raise InputError(
        f"The text {text!r} cannot be told from what stands before it by this tokenizer; write it otherwise."
    )


def _reply(text: str) -> list[dict[str, str]]:
    """A conversation whose last reply is ``text``."""
    return [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": text}]


def in_common(one: T, other: T) -> T:
    """What two texts, or lists of ids, begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))]
