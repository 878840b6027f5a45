"""Sentences of conversations, recited when they are asked for: dialogues that teach a memory to hold whatever is said.

Made-up facts (:mod:`ccm.data.recall`) are of few kinds, and a memory that has learned them holds those kinds better
than others. Here the text of any conversations is told, an exchange each line, and a sentence of it is asked for by a
word that no other has, or by its beginning. The files are those of :mod:`ccm.data.custom`.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import nlargest
from itertools import chain

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import DataError
from ccm.data.custom import read_examples
from ccm.data.examples import PlacedSamples, hold_out
from ccm.data.kinds import Chat
from ccm.data.settings import DataOptions, DataSettings
from ccm.engine.layout import Sample

Exchange = tuple[str, str]  # what the user says, and the reply
SHORTEST, LONGEST = 4, 20  # words of a sentence that is recited
_RAREST = 2  # words of a sentence among which the one to ask by is drawn
_COMMON = 1 / 500  # share of all words; nothing is asked by a word that is more common
_ENDS = re.compile(r"(?<=[.!?])\s+|\n+")
_WORD = re.compile(r"[^\W\d_]{4,}")
_LARGEST = 64  # exchanges among which the longest in tokens are sought
_DRAWS = 64  # conversations tried for a dialogue in which something can be asked
BY_WORD = (  # of what the user said, and of what the assistant said: how a sentence is asked for, and recited
    (
        ("What did I say about {word}?", "You said: {sentence}"),
        ("I said something about {word}. What was it?", "It was this: {sentence}"),
        ("Repeat what I told you about {word}.", "{sentence}"),
        ("Earlier I used the word {word}. Quote me.", '"{sentence}"'),
        ("Remind me of my words about {word}, please.", "Your words were: {sentence}"),
    ),
    (
        ("What did you say about {word}?", "I said: {sentence}"),
        ("You said something about {word}. Say it again.", "{sentence}"),
        ("Which of your sentences had the word {word} in it?", "This one: {sentence}"),
    ),
)
BY_BEGINNING = (
    (
        ("Finish my sentence: {begun} ...", "... {rest}"),
        ("I told you this: {begun}, and then?", "You went on: {rest}"),
        ('How did my sentence end that began with "{begun}"?', "It ended with: {rest}"),
    ),
    (
        ("Finish your own sentence: {begun} ...", "... {rest}"),
        ('You began with "{begun}". How did you go on?', "I went on: {rest}"),
    ),
)


@dataclass(frozen=True)
class RecitalOptions(DataOptions):
    """What the dialogues are like.

    Attributes:
        longest: most exchanges before the questions; a dialogue has 2 to so many.
        asked: most questions; a dialogue has 1 to so many.
        together: share of the dialogues whose exchanges are a stretch of one conversation; others draw each from
            another.
        begun: share of the questions that give a sentence's beginning, not a word of it.
    """

    longest: int = bounded(7, 2)
    asked: int = bounded(6, 1)
    together: float = bounded(0.5, 0, 1)
    begun: float = bounded(0.4, 0, 1)


@dataclass(frozen=True)
class Said:
    """A sentence of a dialogue, and whether the assistant said it."""

    text: str
    by_assistant: bool

    @cached_property
    def words(self) -> set[str]:
        return {word.casefold() for word in _WORD.findall(self.text)}


@dataclass(frozen=True)
class Recitals(PlacedSamples):
    """Dialogues to train on, each ending in a sentence that is recited. Only what is recited is a target.

    Attributes:
        options: what they are like.
        chats: conversations to train on.
        held: conversations to evaluate on.
        counts: of the conversations' words, in lower case.
        turns: how dialogues become tokens.
        seed: of all draws.
        eval_samples: to evaluate on.
    """

    options: RecitalOptions
    chats: Sequence[Chat]
    held: Sequence[Chat]
    counts: Counter[str]
    turns: Turns
    seed: int
    eval_samples: int

    @property
    def deepest(self) -> int:
        """Most context steps of a sample."""
        return self.options.longest + self.options.asked - 1

    @cached_property
    def longest(self) -> int:
        """Most text tokens of a sample: of the longest exchanges, and of questions on the longest sentences."""
        told = chain.from_iterable(chat.turns for chat in chain(self.chats, self.held))
        exchanges = nlargest(_LARGEST, set(told), key=lambda turn: sum(map(len, turn)))
        recited = max((one.text for one in sentences(exchanges)), key=len, default="")
        question = max((asked + answer for asked, answer in chain(*BY_WORD, *BY_BEGINNING)), key=len)
        told_most = self.options.longest * max(self._size(*turn) for turn in exchanges)  # one may be drawn again
        return told_most + self.options.asked * self._size(f"{question} {recited}", recited) + len(self.turns.head)

    def _size(self, user: str, reply: str) -> int:
        return len(self.turns.exchange(user, reply, first=False).ids)

    @cached_property
    def _common(self) -> set[str]:
        return {word for word, count in self.counts.items() if count > _COMMON * self.counts.total()}

    def at(self, place: int) -> Sample:
        return self._sample(random.Random(f"{self.seed} recital {place}"), self.chats)

    def held_out(self) -> list[Sample]:
        places = range(self.eval_samples)
        return [self._sample(random.Random(f"{self.seed} recital held out {i}"), self.held) for i in places]

    def _sample(self, rng: random.Random, chats: Sequence[Chat]) -> Sample:
        told, asked = self.dialogue(rng, chats)
        chat = Chat((*told, *asked), silent=frozenset(range(len(told))))
        return chat.sample(self.turns, chat.length)

    def dialogue(self, rng: random.Random, chats: Sequence[Chat]) -> tuple[list[Exchange], list[Exchange]]:
        """Exchanges of the conversations, and questions on them with what is recited."""
        for _ in range(_DRAWS):
            told = self._told(rng, chats)
            asked = self._asked(rng, told)
            if asked:
                return told, asked
        raise DataError(
            f"{_DRAWS} draws of {self.options.longest} exchanges have no sentence of {SHORTEST} to {LONGEST} words "
            "that one of its words tells from the others; recital needs conversations in sentences."
        )

    def _told(self, rng: random.Random, chats: Sequence[Chat]) -> list[Exchange]:
        count = rng.randint(2, self.options.longest)
        if rng.random() < self.options.together:
            turns = rng.choice(chats).turns
            first = rng.randrange(max(len(turns) - count, 0) + 1)
            return [*turns[first : first + count]]
        return [rng.choice(rng.choice(chats).turns) for _ in range(count)]

    def _asked(self, rng: random.Random, told: Sequence[Exchange]) -> list[Exchange]:
        said = [*sentences(told)]
        held = Counter(chain.from_iterable(one.words for one in said))
        asked: list[Exchange] = []
        most = rng.randint(1, self.options.asked)
        for one in rng.sample(said, len(said)):
            begun = rng.random() < self.options.begun
            if question := (self._by_beginning(rng, one, said) if begun else self._by_word(rng, one, held)):
                asked.append(question)
            if len(asked) == most:
                break
        return asked

    def _by_word(self, rng: random.Random, one: Said, held: Counter[str]) -> Exchange | None:
        """By a rare word that no other sentence of the dialogue has."""
        words = (word for word in one.words - self._common if held[word] == 1)
        own = sorted(words, key=lambda word: (self.counts[word], word))
        if not own:
            return None
        word = rng.choice(own[:_RAREST])
        spelt = next(found for found in _WORD.findall(one.text) if found.casefold() == word)
        question, answer = rng.choice(BY_WORD[one.by_assistant])
        return question.format(word=spelt), answer.format(sentence=one.text)

    def _by_beginning(self, rng: random.Random, one: Said, said: Sequence[Said]) -> Exchange | None:
        """By two words or more, with which no other sentence of the dialogue begins."""
        words = one.text.split()
        cut = rng.randint(2, max(len(words) * 2 // 3, 2))
        begun, rest = " ".join(words[:cut]), " ".join(words[cut:])
        if sum(other.text.split()[:cut] == words[:cut] for other in said) > 1:
            return None
        question, answer = rng.choice(BY_BEGINNING[one.by_assistant])
        return question.format(begun=begun), answer.format(rest=rest)


def sentences(told: Sequence[Exchange]) -> Iterator[Said]:
    """The sentences of exchanges that are neither too short nor too long to recite."""
    for exchange in told:
        for by_assistant, text in enumerate(exchange):
            for sentence in _ENDS.split(text.strip()):
                if SHORTEST <= len(sentence.split()) <= LONGEST:
                    yield Said(sentence, bool(by_assistant))


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Recitals:
    """The dialogues of these settings.

    Raises:
        ConfigError: when no file is named, or an option is not allowed.
        DataError: when a file is absent, empty or malformed, or none holds a conversation. Tasks and texts are left
            out.
    """
    options = settings.read_options(RecitalOptions)
    path = settings.require_path("a file or folder of conversations")
    groups = [
        [example for example in group if isinstance(example, Chat)] for group in read_examples(path, settings, turns)
    ]
    groups = [group for group in groups if group]
    if not groups:
        raise DataError(f"{path} holds no conversation; recital recites what was said in some.")
    held, kept = hold_out(groups, settings.eval_samples, f"{seed} held out")
    chats = [*chain.from_iterable(kept)]
    counts: Counter[str] = Counter()
    for chat in chats:
        for text in chain.from_iterable(chat.turns):
            counts.update(word.casefold() for word in _WORD.findall(text))
    return Recitals(options, chats, held, counts, turns, seed, settings.eval_samples if held else 0)
