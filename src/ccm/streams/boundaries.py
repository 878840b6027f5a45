"""Where a text may be cut: the ends of sentences and paragraphs, found in token ids."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

SENTENCE, PARAGRAPH = 1, 2  # how good a cut after a token is; 0 is a cut within a sentence
_ENDS = (".", "!", "?", "\u2026", "\u3002", "\uff01", "\uff1f")
_CLOSING = "\"'\u201d\u2019)]}*_ \t\r\n"


class Boundaries:
    """Finds the ends of sentences and paragraphs in token ids.

    A sentence ends after a token whose text ends with a full stop or a similar mark; closing quotes and brackets may
    follow the mark. An abbreviation such as "Mr." therefore counts as the end of a sentence. A paragraph ends after a
    token that completes an empty line, because books break lines within sentences too.

    Args:
        tokenizer: the tokenizer that the ids come from.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        count = max(tokenizer.get_vocab().values(), default=0) + 1
        texts = [tokenizer.decode([token]) for token in range(count)]
        self._sentence = torch.tensor([text.rstrip(_CLOSING).endswith(_ENDS) for text in texts])
        self._breaks = torch.tensor([text.count("\n") for text in texts])
        self._blank = torch.tensor([not text.strip() for text in texts])

    def __call__(self, ids: Tensor) -> Tensor:
        """How good a cut after each token is: int64 (B, T) of 0, SENTENCE or PARAGRAPH, for token ids (B, T)."""
        known = ids.cpu().clamp(max=len(self._sentence) - 1)
        sentence = self._sentence[known] & (ids.cpu() < len(self._sentence))
        breaks = self._breaks[known]
        before = torch.zeros_like(breaks)
        before[:, 1:] = breaks[:, :-1] * self._blank[known][:, 1:]  # a line break directly before a blank token
        paragraph = (breaks > 0) & (breaks + before > 1)
        strength = torch.where(paragraph, PARAGRAPH, SENTENCE * sentence.long())
        return strength.to(ids.device)
