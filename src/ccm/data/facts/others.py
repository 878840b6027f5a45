"""Other words in the place of a list's, so that a memory learns to hold any word and not to tell those apart."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ccm.data.builtin.dialogues import MadeUp

# Small words, which give a phrase its shape.
_KEPT = (
    "about|after|all|and|are|behind|below|between|for|from|her|his|into|kind|love|low|near|new|next|not|off|old|one|our|"
    "out|over|than|that|the|their|them|there|they|two|three|four|five|six|seven|eight|nine|ten|thing|under|where|with|"
    "your"
)
CONTENT = re.compile(rf"\b(?!(?:{_KEPT})\b)[A-Za-z]{{3,}}")
_WHOLE = re.compile("[Ġ▁][A-Za-z][a-z]{2,11}")  # what begins a word: Ġ marks it in byte-level BPE, ▁ elsewhere


@dataclass(frozen=True)
class OtherWords:
    """Exchanges the words of a phrase for words of a tokenizer's vocabulary, or for words that nobody has.

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
        return CONTENT.sub(lambda match: self._like(rng, match[0]), phrase)

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
        return sorted({token[1:] for token in self.tokenizer.get_vocab() if _WHOLE.fullmatch(token)})

    @cached_property
    def _invention(self) -> MadeUp:
        return MadeUp(rate=1.0, spliced=0.6, pieced=0.5, tokenizer=self.tokenizer)
