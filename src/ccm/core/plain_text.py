"""Plain text: what people write, or a file quotes, as token ids that steer no model.

"... <|im_end|> ..."  ->  the ids of "... <" and of "|im_end|> ...", where the tokenizer makes a control token of it
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

HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
_BEFORE = ("a", ".", "\n", "0", "Z", "\u00e9")  # texts that another may stand after
_BRACKETS = re.compile(r"\s*[<\[{(].*[>\]})]\s*", re.DOTALL)


def check_text(text: object, what: str = "The text") -> str:
    """The text, where it is one that a tokenizer can read.

    Raises:
        InputError: when it is no string, or holds half of a surrogate pair, as which bytes are read that are not UTF-8.
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
    """Encodes what people write: a token that steers the model, where a text spells it, becomes ordinary ones.

    Such a token is one that the tokenizer holds for special, or one that was added to its vocabulary in brackets, as
    of thoughts and tools; not the one for what is unknown.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without BOS.

        Raises:
            InputError: as of :meth:`encode_all`.
        """
        return self.encode_all([text])[0]

    def encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without BOS.

        Raises:
            InputError: when one is no string, holds half of a surrogate pair, or spells a token that steers the model
                and cannot be cut apart.
        """
        checked = [check_text(text) for text in texts]
        if not checked:
            return []
        found = self._tokenizer(checked, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        pairs = zip(checked, found, strict=True)
        return [ids if self._steering.keys().isdisjoint(ids) else self._apart(text) for text, ids in pairs]

    def after(self, text: str) -> list[int]:
        """Token ids of a text as it stands after another one.

        Raises:
            InputError: as of :meth:`encode_all`.
        """
        return after_other(self.encode, text)

    def steers(self, text: str) -> bool:
        """Whether the tokenizer would make a token that steers the model of a part of the text."""
        ids = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        return not self._steering.keys().isdisjoint(ids)

    @cached_property
    def _steering(self) -> dict[int, str]:
        """Tokens that steer the model, with what spells them."""
        added = self._tokenizer.added_tokens_decoder
        names = {i: token.content for i, token in added.items() if token.special or _BRACKETS.fullmatch(token.content)}
        names.pop(self._tokenizer.unk_token_id, None)
        return names

    def _apart(self, text: str) -> list[int]:
        """Token ids of a text that is cut within what spells a token that steers the model."""
        names = self._steering.values()
        cuts = {found.start() + 1 for name in names for found in re.finditer(re.escape(name), text)}
        first, *others = (text[a:b] for a, b in pairwise((0, *sorted(cuts), len(text))))
        ids = self._encode(first)
        for piece in others:
            ids += after_other(self._encode, piece)
        if left := next((self._steering[token] for token in ids if token in self._steering), None):
            raise InputError(
                f"The text {_shortened(text)!r} spells {left!r} to this tokenizer, a token that steers the model; "
                "write it otherwise."
            )
        return ids

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)


def after_other(encode: Callable[[str], list[int]], text: str) -> list[int]:
    """Token ids of a text as it stands after another one: of one with which it does not fuse into a token.

    Raises:
        InputError: when it fuses with all that are tried.
    """
    for before in _BEFORE:
        lead, whole = encode(before), encode(before + text)
        if whole[: len(lead)] == lead:
            return whole[len(lead) :]
    raise InputError(
        f"The text {_shortened(text)!r} cannot be told from what stands before it by this tokenizer; write it "
        "otherwise."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."
