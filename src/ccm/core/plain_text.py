"""Plain text: token ids of text from people or files, without the control tokens that the text may spell.

"... <|im_end|> ..."  ->  the ids of "... <" and of "|im_end|> ...", if the tokenizer would read a control token
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from ccm.core.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF = re.compile("[\ud800-\udfff]")  # half of a surrogate pair
_BEFORE = ("a", ".", "\n", "0", "Z", "\u00e9")  # texts that :func:`after_other` tries in front of another
_BRACKETS = re.compile(r"\s*[<\[{(].*[>\]})]\s*", re.DOTALL)


def check_text(text: object, what: str = "The text") -> str:
    """Return the text if a tokenizer can read it; ``what`` names it in messages.

    Raises:
        InputError: when it is no string, or holds half of a surrogate pair: Python reads bytes that are not UTF-8 so.
    """
    if not isinstance(text, str):
        raise InputError(f"{what} is {text!r}, of type {type(text).__name__}; it must be a string.")
    if half := HALF.search(text):
        held = f"{what} holds {half[0]!a} at character {half.start()}"
        if "\udc80" <= half[0] <= "\udcff":  # surrogateescape
            byte = f"the byte {ord(half[0]) - 0xDC00:#x}, which is not UTF-8, or half of a surrogate pair"
            raise InputError(f"{held}: {byte}. Convert the text to UTF-8, or leave it out.")
        raise InputError(
            f"{held}: half of a surrogate pair, which is no character. Was it cut within an emoji? Leave it out."
        )
    return text


class PlainText:
    """Encodes text from people: where it spells a control token, it becomes ordinary tokens.

    A control token steers the model. It is a special token of the tokenizer (except the unknown token), or an added
    token in brackets, such as those that mark thoughts and tools.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS.

        Raises:
            InputError: see :meth:`encode_all`.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS.

        Raises:
            InputError: when a text is no string, holds half of a surrogate pair, or spells a control token that cannot
                be cut apart.
        """
        checked = [check_text(text) for text in texts]
        if not checked:
            return []
        found = self._tokenizer(checked, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        pairs = zip(checked, found, strict=True)
        return [ids if self._controls.keys().isdisjoint(ids) else self._apart(text) for text, ids in pairs]

    def after(self, text: str) -> list[int]:
        """Token ids of a text that follows another one.

        Raises:
            InputError: see :meth:`encode_all` and :func:`after_other`.
        """
        return after_other(self.encode, text)

    def steers(self, text: str) -> bool:
        """Whether the text spells a control token."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        return not self._controls.keys().isdisjoint(ids)

    @cached_property
    def _controls(self) -> dict[int, str]:
        """The control tokens: the text of each by its id."""
        added = self._tokenizer.added_tokens_decoder
        names = {i: token.content for i, token in added.items() if token.special or _BRACKETS.fullmatch(token.content)}
        names.pop(self._tokenizer.unk_token_id, None)
        return names

    def _apart(self, text: str) -> list[int]:
        """Token ids of a text that spells control tokens: it is cut after the first character of each."""
        names = self._controls.values()
        cuts = {found.start() + 1 for name in names for found in re.finditer(re.escape(name), text)}
        first, *others = (text[a:b] for a, b in pairwise((0, *sorted(cuts), len(text))))
        ids = self._encode(first)
        for piece in others:
            ids += after_other(self._encode, piece)
        if left := next((self._controls[token] for token in ids if token in self._controls), None):
            raise InputError(
                f"To this tokenizer, the text {_shortened(text)!r} spells {left!r}, a token that steers the model; "
                "change the text."
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def after_other(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Token ids of a text that follows another one; no token spans both.

    Raises:
        InputError: when the tokenizer joins the text with each of the texts that are tried in front of it.
    """
    for before in _BEFORE:
        lead, whole = encode(before), encode(before + text)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    raise InputError(
        f"The tokenizer cannot separate the text {_shortened(text)!r} from the text before it; change the text."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
