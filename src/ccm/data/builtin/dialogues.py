"""The data set of the built-in model: dialogues that tell facts and ask for them later, drawn without end."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.data.builtin import words
from ccm.data.builtin.generator import HELD_OUT, Dialogue, recall_dialogue, training_dialogue, untold_question
from ccm.data.builtin.recall import evaluate_recall
from ccm.data.settings import DataOptions, DataSettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample, Step

LONGEST = 48  # turns of a dialogue
_ONSETS = (*"bdfghjklmnprstvwz", "br", "ch", "dr", "gr", "kl", "sh", "st", "th", "tr")
_SYLLABLES = [onset + vowel for onset in _ONSETS for vowel in "aeiou"]
_ENDINGS = ["", "", "n", "r", "s", "l", "x", "nd", "rt", "th"]
_REAL = [word for word in words.NAMES + words.CITIES if word not in HELD_OUT and " " not in word]
_NAMED = ("name", "home", "sister", "brother", "friend")


@dataclass(frozen=True)
class BuiltinOptions(DataOptions):
    """What the dialogues are like.

    Attributes:
        longest: short dialogues have 4 to so many turns.
        ramp: samples over which ``longest`` grows from 4 turns to its value.
        long: share of the dialogues that have 17 to 48 turns instead.
        asking: share of the turns that are questions.
        dense: share of the short dialogues that first tell 2 to 9 facts, and then ask for them.
        untold: in a dense dialogue, how likely a question on what was never told follows another question.
        made_up: share of the names and cities that are made up, each all through its dialogue, so that copying is
            learned and not a list.
        pieced: share of the made-up names that are drawn from the tokenizer's own pieces: any may follow any other.
        spliced: share of the other made-up names that are made of two real ones, not of syllables.
        questions_only: whether the replies to questions are the only targets.
        recall: dialogues of 12 steps on which an evaluation measures recall; 0 for none.
    """

    longest: int = bounded(14, 4, LONGEST)
    ramp: int = bounded(0, 0)
    long: float = bounded(0.05, 0, 1)
    asking: float = bounded(0.5, 0.05, 1)
    dense: float = bounded(0.35, 0, 1)
    untold: float = bounded(0.2, 0, 1)
    made_up: float = bounded(0.5, 0, 1)
    pieced: float = bounded(0.0, 0, 1)
    spliced: float = bounded(0.7, 0, 1)
    questions_only: bool = True
    recall: int = bounded(0, 0)


@dataclass(frozen=True)
class BuiltinData:
    """Dialogues of the training split as samples, each ending in a question."""

    options: BuiltinOptions
    turns: Turns
    seed: int
    eval_samples: int
    longest: int = 1024  # a dialogue of 48 turns has some 900 tokens
    deepest: int = LONGEST - 1

    def pool(self, index: int, count: int) -> list[Sample]:
        done = index * count
        longest = self.options.longest
        if done < self.options.ramp:
            longest = 4 + (longest - 4) * done // self.options.ramp
        return self._draw(random.Random(f"{self.seed} dialogues {index}"), longest, count)

    def held_out(self) -> list[Sample]:
        return self._draw(random.Random(f"{self.seed} held out"), self.options.longest, self.eval_samples)

    def measure(self, model: CCMModel) -> dict[str, float]:
        """Recall of 12 steps, as ``ccm evaluate builtin`` defines it, and what is invented."""
        if not self.options.recall:
            return {}
        report = evaluate_recall(model, self.turns.tokenizer, dialogues=self.options.recall, seed=1)
        return {"recall": report.recall, "invented": report.invented}

    @cached_property
    def _made_up(self) -> MadeUp:
        options = self.options
        return MadeUp(options.made_up, options.spliced, options.pieced, self.turns.tokenizer)

    def _draw(self, rng: random.Random, longest: int, count: int) -> list[Sample]:
        samples: list[Sample] = []
        while len(samples) < count:
            dialogue = self._made_up(rng, self._dialogue(rng, longest))
            asked = [i for i, turn in enumerate(dialogue.turns) if turn.asked]
            if asked and asked[-1] > 0:
                samples.append(self._sample(replace(dialogue, turns=dialogue.turns[: asked[-1] + 1])))
        return samples

    def _dialogue(self, rng: random.Random, longest: int) -> Dialogue:
        options = self.options
        if rng.random() < options.long:
            return training_dialogue(rng, rng.randint(17, LONGEST), asking=options.asking)
        if rng.random() < options.dense:
            facts = rng.randint(2, 9)
            questions, lines = min(facts, rng.randint(2, 6)), facts + rng.randint(0, 2)
            return self._doubted(rng, recall_dialogue(rng, lines + questions, facts, questions, split="train"), lines)
        return training_dialogue(rng, rng.randint(4, longest), asking=options.asking)

    def _doubted(self, rng: random.Random, dialogue: Dialogue, lines: int) -> Dialogue:
        """The dialogue with questions on what it never tells among those after its first ``lines`` turns."""
        turns = [*dialogue.turns[:lines]]
        for turn in dialogue.turns[lines:]:
            turns.append(turn)
            if rng.random() < self.options.untold:
                turns.append(untold_question(rng, dialogue))
        return replace(dialogue, turns=tuple(turns))

    def _sample(self, dialogue: Dialogue) -> Sample:
        steps = []
        for i, turn in enumerate(dialogue.turns):
            step = self.turns.exchange(turn.user, turn.reply, first=i == 0)
            steps.append(step if turn.asked or not self.options.questions_only else Step(step.ids))
        return Sample(steps[:-1], steps[-1], self.turns.head)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> BuiltinData:
    """The dialogues of these settings.

    Raises:
        ConfigError: when an option is not allowed, or a path is named.
    """
    settings.forbid_paths()
    return BuiltinData(settings.read_options(BuiltinOptions), turns, seed, settings.eval_samples)


@dataclass(frozen=True)
class MadeUp:
    """Replaces names and cities of dialogues by made-up ones.

    Attributes:
        rate: share of the names and cities that are replaced, each all through its dialogue.
        spliced: share of the names without pieces that are made of two real ones, not of syllables.
        pieced: share of the names that are made of a tokenizer's pieces.
        tokenizer: whose pieces.
    """

    rate: float
    spliced: float
    pieced: float = 0.0
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, compare=False)

    def __call__(self, rng: random.Random, dialogue: Dialogue) -> Dialogue:
        """The dialogue with its share of made-up names."""
        told = {value for turn in dialogue.turns for kind, value in turn.told if kind in _NAMED}
        swaps = {value: self.name(rng) for value in sorted(told) if rng.random() < self.rate}
        if not swaps:
            return dialogue
        swaps |= {old.lower(): new.lower() for old, new in swaps.items()}
        pattern = re.compile(rf"\b({'|'.join(map(re.escape, swaps))})\b")

        def swap(text: str) -> str:
            return pattern.sub(lambda match: swaps[match[0]], text)

        turns = (replace(turn, user=swap(turn.user), reply=swap(turn.reply)) for turn in dialogue.turns)
        return replace(dialogue, turns=tuple(turns))

    def name(self, rng: random.Random) -> str:
        """A name that is not among those held out."""
        while True:
            word = self._word(rng).title()
            if word not in HELD_OUT and len(word) > 2:
                return word

    def _word(self, rng: random.Random) -> str:
        if self.pieced and rng.random() < self.pieced and all(self._pieces):
            first, later = self._pieces
            return rng.choice(first) + "".join(rng.choices(later, k=rng.choice((1, 1, 2, 2, 3))))
        if self.spliced and rng.random() < self.spliced:
            one, two = rng.choices(_REAL, k=2)
            return one[: rng.randint(1, 4)] + two[-rng.randint(2, 5) :]
        return "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(_ENDINGS)

    @cached_property
    def _pieces(self) -> tuple[list[str], list[str]]:
        """What a name may begin with, and what may follow: the pieces of letters, each once."""
        assert self.tokenizer is not None
        texts = [self.tokenizer.convert_tokens_to_string([token]) for token in self.tokenizer.get_vocab()]
        first = {text.strip() for text in texts if re.fullmatch(" ?[A-Z][a-z]{0,4}", text)}
        later = {text for text in texts if re.fullmatch("[a-z]{1,4}", text)}
        return sorted(first), sorted(later)
