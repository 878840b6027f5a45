"""Turns as the tokenizer's chat template writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from ccm.chat.turns.base import SAMPLES, Message, Said, Turns, from_user, in_common
from ccm.core.config import TurnFormat
from ccm.core.errors import ConfigError, InputError
from ccm.core.plain_text import check_text


class TemplateTurns(Turns):
    """The tokenizer's chat template. A later turn is what it writes after a marker in the reply before the turn.

    So a later turn begins with what closes that reply, which is no part of the reply's step. Where a template opens a
    thought for the model to go on with, and shows none in replies of the past, those are learned and remembered as it
    shows them. The format's preamble is a system message of the first step, where no other is given.
    """

    _MARKER, _SAID = "ccm-marker-7c1e", "ccm-said-7c1e"  # stand for a reply, and for what a user says

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, form: TurnFormat, system: str, tools: Sequence[Mapping[str, Any]]
    ) -> None:
        super().__init__(tokenizer, form, system, tools)
        if not tokenizer.chat_template:
            raise ConfigError("The tokenizer has no chat template; take turns.template=separators.")
        if tools and form.preamble and not system:
            raise ConfigError("Tools stand beside a system message, and turns.preamble is none; give one.")
        self._found: dict[str, str] = {}
        self._between: dict[int, list[str]] = {}  # of conversations of so many turns, what is written around the texts
        if self.plain.steers(told := json.dumps([*tools], ensure_ascii=False)):
            raise InputError(f"The tools {told} spell a token that steers the model; write them otherwise.")
        if system or tools:
            self._check()

    @cached_property
    def head(self) -> list[int]:
        quoted: dict[str, str] = {}
        lead = self._lead_text(self._held(self._system, quoted))
        self._check_shown(lead, quoted if self.system else {})
        return self._ids(lead, quoted, inside=False)

    def _check(self) -> None:
        """See whether the template falls apart into turns: some write a system message before the last one alone.

        Raises:
            ConfigError: where the turns of a conversation are not what it makes of the conversation.
        """
        hello, reply = from_user("42"), {"role": "assistant", "content": "Yes."}
        said, alike = [*self.head], True
        for first in (True, False):
            prompt = self.prompt(hello["content"], first=first)
            past = [*self.exchange(hello["content"], reply["content"], first=first).ids]
            alike &= bool(self._asks) or past[: len(prompt)] == prompt
            said += past
        said += prompt
        whole = self._format(self._render([hello, reply, hello, reply, hello], reply_follows=True))
        if not alike or self._text(said) != self._text(whole):
            raise ConfigError(
                "The chat template does not write a conversation turn by turn: the system message, or tools, seem to "
                "stand before its last turn alone. Leave them out, or take turns.template=separators."
            )

    @cached_property
    def eos_id(self) -> int:
        """The special token with which the template closes a reply; the tokenizer's EOS where it has none."""
        if self._closing and self._closing[0] in self.tokenizer.added_tokens_decoder:
            return self._closing[0]
        return super().eos_id

    def encode_reply(self, reply: str) -> list[int]:
        shown = self.shown(check_text(reply, "The reply"))
        before, lead = self._before_reply
        text = self._space + shown
        whole = self._format(before + text)
        if whole[: len(lead)] == lead and not self.plain.steers(text):
            return whole[len(lead) :]
        return self.plain.after(text)

    def reads_plainly(self, talk: Sequence[tuple[str, str]]) -> bool:
        if not super().reads_plainly(talk):
            return False
        if len(talk) not in self._between:
            marks = [(f"{self._SAID}-{i}-", f"{self._MARKER}-{i}-") for i in range(len(talk))]
            every = "|".join(mark for turn in marks for mark in turn)
            self._between[len(talk)] = re.split(every, self._talked(marks))
        between, said = self._between[len(talk)], [text for turn in talk for text in turn]
        joined = (
            "".join(part for pair in zip(between, [*texts, ""], strict=True) for part in pair)
            for texts in (said, [text.strip() for text in said])
            if len(between) == len(said) + 1
        )
        return self._talked(talk) in joined

    def _talked(self, talk: Sequence[tuple[str, str]]) -> str:
        """A rendered conversation that another turn follows."""
        turns = ((("user", user), ("assistant", reply)) for user, reply in talk)
        said = [{"role": role, "content": text} for turn in turns for role, text in turn]
        return self._render([*said, from_user("42")], reply_follows=False)

    def remembered(self, said: Said, prompt: list[int], reply: list[int], *, first: bool) -> list[int]:
        text = self._text(reply)
        if not self._asks and self.shown(text).strip() == text.strip():
            return super().remembered(said, prompt, reply, first=first)
        return [*self._asked(self._checked(said), first=first, past=True), *self.encode_reply(text)]

    def _asked(self, messages: Sequence[Message], *, first: bool, past: bool = False) -> list[int]:
        return self._turn(messages, first=first, reply_follows=True, past=past)

    def _statement(self, text: str, *, first: bool) -> tuple[list[int], int, int]:
        ids, *samples = (self._turn([from_user(one)], first=first, reply_follows=False) for one in (text, *SAMPLES))
        lead, close = len(in_common(*samples)), len(in_common(*(one[::-1] for one in samples)))
        if close and ids[-close:] == self._closing:  # with which the next turn begins
            ids, close = ids[:-close], 0
        return ids, lead, close

    def _turn(self, messages: Sequence[Message], *, first: bool, reply_follows: bool, past: bool = False) -> list[int]:
        quoted: dict[str, str] = {}
        beside = "\n".join([*(message["content"] for message in messages), self._system])
        said = [{**message, "content": self._held(message["content"], quoted, beside=beside)} for message in messages]
        shown = {**quoted}
        system = self._held(self._system, quoted, beside=beside)
        render = partial(self._rendered, first=first, reply_follows=reply_follows, system=system)
        rendered = render(said)
        self._check_messages(said, rendered, render)
        if past and rendered.endswith(self._asks):
            rendered = rendered[: len(rendered) - len(self._asks)] + self._shows
        self._check_shown(rendered, quoted if first else shown)
        return self._without_head(rendered, system, quoted) if first else self._ids(rendered, quoted, inside=True)

    def _rendered(self, messages: Sequence[Message], *, first: bool, reply_follows: bool, system: str) -> str:
        """What the template writes for messages at the beginning, or after a reply."""
        marker = self._marker(system, json.dumps([*messages], ensure_ascii=False))
        asked = messages or [{"role": "assistant", "content": self._SAID}]  # a reply that nobody asked for
        before = [] if first else _reply(marker)
        rendered = self._render([*before, *asked], reply_follows=reply_follows and bool(messages), system=system)
        rendered = rendered if first else self._after(marker, rendered)
        return rendered if messages else rendered.rpartition(self._SAID)[0]

    def _check_messages(
        self, messages: Sequence[Message], rendered: str, render: Callable[[Sequence[Message]], str]
    ) -> None:
        """Refuse messages that spell a token that steers beside their content, or that the template drops.

        Raises:
            InputError: naming them.
        """
        for number, message in enumerate(messages):
            beside = {name: value for name, value in message.items() if name != "content"}
            if self.plain.steers(told := json.dumps(beside, ensure_ascii=False)):
                raise InputError(f"The message {told} spells a token that steers the model; write it otherwise.")
            if message["role"] == "user":
                continue
            for name in ("tool_calls", "content"):
                without = {**message, name: "" if name == "content" else None}
                if message.get(name) and render([*messages[:number], without, *messages[number + 1 :]]) == rendered:
                    raise InputError(
                        f"The chat template of this model does not show the {name} of the message {message!r}; it has "
                        "no form for them."
                    )

    def _without_head(self, rendered: str, system: str, quoted: Mapping[str, str]) -> list[int]:
        """Token ids of a first turn, of a rendering that begins with the head."""
        lead, ids = self._lead_text(system), self._ids(rendered, quoted, inside=False)
        if ids[: len(self.head)] == self.head:
            return ids[len(self.head) :]
        if not rendered.startswith(lead):  # some write the date, and it is another day
            self._found[system] = lead = self._find_lead(system)
        if not rendered.startswith(lead):
            raise ConfigError(f"The chat template no longer writes {lead!r} before the first turn; begin anew.")
        return self._ids(rendered[len(lead) :], quoted, inside=True)

    @property
    def _system(self) -> str:
        """The system message of every rendering."""
        return self.system or self.form.preamble

    def _lead_text(self, system: str) -> str:
        """What the template writes before a first turn, under that system message, and not before a later one."""
        if system not in self._found:
            self._found[system] = "" if self.form.preamble and not self.system else self._find_lead(system)
        return self._found[system]

    def _find_lead(self, system: str) -> str:
        marker, user = self._marker(system), from_user(self._SAID)
        first, *_ = self._render([user], reply_follows=False, system=system).rpartition(self._SAID)
        following = self._after(marker, self._render([*_reply(marker), user], reply_follows=False, system=system))
        later, *_ = following.rpartition(self._SAID)
        closing = self._after(marker, self._render(_reply(marker), reply_follows=False, system=system))
        return first.removesuffix(later[self._begin(later, len(in_common(closing, later))) :])

    def _begin(self, text: str, at: int) -> int:
        """Where the token of the format begins that a place of a text lies in; the place itself where there is none."""
        names = "|".join(re.escape(token.content) for token in self.tokenizer.added_tokens_decoder.values())
        around = (found for found in re.finditer(names, text) if found.start() < at < found.end())
        return next((found.start() for found in around), at)

    def _marker(self, *texts: str) -> str:
        """What stands for a reply and is in none of the texts."""
        marker = self._MARKER
        while any(marker in text for text in texts):
            marker += "-"
        return marker

    def _held(self, text: str, quoted: dict[str, str], *, beside: str = "") -> str:
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

    def _check_shown(self, rendered: str, quoted: Mapping[str, str]) -> None:
        """Refuse a rendering without the marks that stand for held texts.

        Raises:
            InputError: when one is missing.
        """
        if hidden := next((text for mark, text in quoted.items() if mark not in rendered), None):
            raise InputError(
                f"The text {hidden!r} spells a token that steers the model, and the chat template does not show it as "
                "it is; write it otherwise."
            )

    def _ids(self, rendered: str, quoted: Mapping[str, str], *, inside: bool) -> list[int]:
        """Token ids of a rendering, in which marks stand for the quoted texts; ``inside``: it stands after another."""
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, quoted))})", rendered) if quoted else [rendered]:
            follows = inside or ids
            if part in quoted:
                ids += self.plain.after(quoted[part]) if follows else self.plain.encode(quoted[part])
            else:
                ids += self._inside(part) if follows else self._format(part)
        return ids

    @cached_property
    def _closing(self) -> list[int]:
        """Token ids with which the template closes a reply."""
        return self._format(self._after(self._MARKER, self._render(_reply(self._MARKER), reply_follows=False)))

    @property
    def _asks(self) -> str:
        """What the template writes for a reply to go on with, beyond what it shows before one of the past."""
        return self._leads[1]

    @property
    def _shows(self) -> str:
        """What it shows there instead before a reply of the past."""
        return "" if self._space else self._leads[2]

    @cached_property
    def _space(self) -> str:
        """White space that it shows there, which is the model's to write, and so of the reply."""
        _, asks, shows = self._leads
        return shows if not asks and shows.isspace() else ""

    @cached_property
    def _leads(self) -> tuple[str, str, str]:
        """What stands before every reply, and what more before one that is asked for, or one of the past."""
        hello, _ = _reply("")
        asked, shown = self._render([hello], reply_follows=True), self._around_reply[0]
        common = len(in_common(asked, shown))
        return asked[:common], asked[common:], shown[common:]

    @cached_property
    def _before_reply(self) -> tuple[str, list[int]]:
        """What stands before a reply of the past, from the last token of the format on, and its token ids."""
        lead, tokens = self._leads[0], self.tokenizer.added_tokens_decoder.values()
        text = lead[max((lead.rfind(token.content) for token in tokens), default=0) :] + self._shows
        return text, self._format(text)

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

    def _render(self, messages: Sequence[Message], *, reply_follows: bool, system: str | None = None) -> str:
        content = self._system if system is None else system
        before = [{"role": "system", "content": content}] if content else []
        try:
            return self.tokenizer.apply_chat_template(
                [*before, *messages],
                tools=[*self.tools] or None,
                tokenize=False,
                add_generation_prompt=reply_follows,
            )
        except TemplateError as error:
            raise ConfigError(f"The tokenizer's chat template refuses the conversation: {error}.") from error

    def _after(self, marker: str, rendered: str) -> str:
        _, found, rest = rendered.rpartition(marker)
        if not found:
            raise ConfigError("The chat template drops the assistant's replies; it cannot render a conversation.")
        return rest


def _reply(text: str) -> list[Message]:
    """A conversation whose last reply is ``text``."""
    return [from_user("Hello."), {"role": "assistant", "content": text}]
