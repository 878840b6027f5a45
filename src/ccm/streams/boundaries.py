"""Where text may be cut: the ends of sentences and paragraphs, told from token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

SENTENCE, PARAGRAPH = 1, 2  # how well a piece of text ends there; 0 is within a sentence
_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")
_CLOSING = "\"'\u201d\u2019)]}*_ \t\r\n"


class Boundaries:
    """A tokenizer's knowledge of where sentences and paragraphs end.

    A sentence ends after a token whose text ends in a full stop or the like, quotes and brackets aside; a paragraph
    after a token that completes an empty line, for the lines of a book are broken anywhere. "Mr." passes for a
    sentence.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        count = max(tokenizer.get_vocab().values(), default=0) + 1
        texts = [tokenizer.decode([token]) for token in range(count)]
        self._sentence = _table([text.rstrip(_CLOSING).endswith(_ENDS) for text in texts])
        self._breaks = _table([text.count("\n") for text in texts])
        self._blank = _table([not text.strip() for text in texts])

    def __call__(self, ids: Tensor) -> Tensor:
        """(B, T) whether, and how well, a piece of text may end after each of the ids (B, T)."""
        known = ids.cpu().clamp(max=len(self._sentence) - 1)
        sentence = self._sentence[known].bool() & (ids.cpu() < len(self._sentence))
        breaks = self._breaks[known]
        before = torch.zeros_like(breaks)
        before[:, 1:] = breaks[:, :-1] * self._blank[known][:, 1:]  # a line break, and another right after it
        paragraph = (breaks > 0) & (breaks + before > 1)
        strength = torch.where(paragraph, PARAGRAPH, SENTENCE * sentence.long())
        return strength.to(ids.device)


def _table(values: Sequence[int | bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)
