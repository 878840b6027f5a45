"""Other words in the place of a list's, so that a memory learns to hold any word and not to tell those apart."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ccm.data.builtin.dialogues import MadeUp

_KEPT = "all|and|behind|for|from|half|her|his|into|next|new|off|old|out|over|the|their|under|with|your"  # small words
CONTENT = re.compile(rf"\b(?!(?:{_KEPT})\b)[^\W\d_]{{3,}}", re.IGNORECASE)
_WHOLE = re.compile("[Ġ▁][A-Za-z][a-z]{2,11}")  # what begins a word: Ġ marks it in byte-level BPE, ▁ elsewhere
_ENOUGH = 1000  # such words; a vocabulary that has fewer lends none
_ARTICLE = re.compile(r"\b([Aa])n?(?= (\w))")


@dataclass(frozen=True)
class OtherWords:
    """Exchanges the words of a phrase for words of a tokenizer's vocabulary, or for words that nobody has.

    A vocabulary that does not mark where words begin, such as WordPiece, lends none; all words are invented then.

    Attributes:
        share: of the phrases whose words are exchanged.
        tokenizer: whose words and pieces.
        banned: words that are never used, in lower case.
        invented: share of the words that are invented.
    """

    share: float
    tokenizer: PreTrainedTokenizerBase = field(compare=False)
    banned: Collection[str] = ()
    invented: float = 0.3

    def instead(self, rng: random.Random, phrase: str) -> str:
        """The phrase, or one of its shape: its small words, figures and capitals stay."""
        if "#" in phrase or not self.share or rng.random() >= self.share:
            return phrase
        other = CONTENT.sub(lambda match: self._like(rng, match[0]), phrase)
        return _ARTICLE.sub(lambda match: match[1] + "n" * (match[2] in "aeiouAEIO"), other)

    def _like(self, rng: random.Random, word: str) -> str:
        other = self._word(rng)
        return other.title() if word[0].isupper() else other

    def _word(self, rng: random.Random) -> str:
        while True:
            known = self._whole and rng.random() >= self.invented
            word = (rng.choice(self._whole) if known else self._invention.name(rng)).lower()
            if word not in self.banned:
                return word

    @cached_property
    def _whole(self) -> list[str]:
        words = {token[1:] for token in self.tokenizer.get_vocab() if _WHOLE.fullmatch(token)}
        return sorted(words) if len(words) >= _ENOUGH else []

    @cached_property
    def _invention(self) -> MadeUp:
        return MadeUp(rate=1.0, spliced=0.6, pieced=0.5, tokenizer=self.tokenizer)
