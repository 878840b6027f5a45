"""Facts told in a dialogue and asked for later: dialogues to train on, and recall as a task.

Both are made, not read (:mod:`ccm.data.facts`). Those to train on have no end; those of the task have kinds of facts,
wordings and values that no training has, unless known ones are asked for.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError
from ccm.data.examples import PlacedSamples
from ccm.data.facts import Line, Writer, mixed, read_bank, told_then_asked
from ccm.data.facts.others import OtherWords
from ccm.data.kinds import Chat
from ccm.data.questions import Question
from ccm.data.settings import DataOptions, DataSettings, TaskOptions
from ccm.data.tasks import Replies, Task, TaskSettings
from ccm.engine.layout import Sample

LONGEST = 40  # lines of a dialogue
LENGTHS = ("1 token", "2 tokens", "3 tokens", "4 tokens or more")  # of a fact
FACTS, QUESTIONS = 8, 4  # of a dialogue of the task


@dataclass(frozen=True)
class RecallOptions(DataOptions):
    """What the dialogues to train on are like.

    Attributes:
        longest: most dialogues have 4 to so many lines.
        long: share of the dialogues that have more, up to 40.
        asking: share of the lines that ask.
        untold: share of the questions that ask for what was never told.
        dense: share of the dialogues that first tell 2 to 10 facts and then ask for them.
        others: share of the values and of the subjects whose words are exchanged for any others, so that copying is
            learned and not a list.
        invented: share of these words that are invented, most of them of several tokens; the rest are single tokens.
        headed: share of the dialogues that stand under a system message of their own.
        asked_only: share of the dialogues in which the replies to questions are the only targets.
    """

    longest: int = bounded(14, 4, LONGEST)
    long: float = bounded(0.05, 0, 1)
    asking: float = bounded(0.45, 0, 1)
    untold: float = bounded(0.1, 0, 1)
    dense: float = bounded(0.4, 0, 1)
    others: float = bounded(0.5, 0, 1)
    invented: float = bounded(0.6, 0, 1)
    headed: float = bounded(0.2, 0, 1)
    asked_only: float = bounded(0.0, 0, 1)


@dataclass(frozen=True)
class RecallData(PlacedSamples):
    """Dialogues to train on, each ending in a question.

    Attributes:
        options: what they are like.
        turns: how they become tokens.
        seed: of all draws.
        eval_samples: to evaluate on, of the same kind.
    """

    options: RecallOptions
    turns: Turns
    seed: int
    eval_samples: int
    longest: int = 2048
    deepest: int = LONGEST - 1

    def at(self, place: int) -> Sample:
        return self._sample(random.Random(f"{self.seed} recall {place}"))

    def held_out(self) -> list[Sample]:
        return [self._sample(random.Random(f"{self.seed} recall held out {i}")) for i in range(self.eval_samples)]

    def _sample(self, rng: random.Random) -> Sample:
        lines = self._lines(rng)
        system = rng.choice(read_bank("train").systems) if rng.random() < self.options.headed else ""
        asked_only = rng.random() < self.options.asked_only
        silent = frozenset(i for i, line in enumerate(lines[:-1]) if asked_only and not line.asks)
        chat = Chat(tuple((line.user, line.reply) for line in lines), system, silent)
        return chat.sample(self.turns, chat.length)

    @cached_property
    def _others(self) -> OtherWords:
        options = self.options
        return OtherWords(options.others, self.turns.tokenizer, read_bank("held_out").words(), options.invented)

    def _lines(self, rng: random.Random) -> Sequence[Line]:
        options = self.options
        writer = Writer(read_bank("train"), rng, self._others, careless=True)
        if rng.random() < options.long:
            return mixed(writer, rng.randint(options.longest, LONGEST), asking=options.asking, untold=options.untold)
        if rng.random() < options.dense:
            facts = rng.randint(2, 10)
            asked = min(facts, rng.randint(2, 6))
            return told_then_asked(writer, facts + rng.randint(0, 2), facts, asked, options.untold)
        return mixed(writer, rng.randint(4, options.longest), asking=options.asking, untold=options.untold)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> RecallData:
    """The dialogues of these settings.

    Raises:
        ConfigError: when an option is not allowed, or a path is named.
    """
    settings.forbid_paths()
    return RecallData(settings.read_options(RecallOptions), turns, seed, settings.eval_samples)


@dataclass(frozen=True)
class RecallTaskOptions(TaskOptions):
    """How recall is measured.

    Attributes:
        dialogues: how many; each tells eight facts, and is asked for four of them, each on its own.
        seed: of the dialogues.
        known: whether kinds of facts, wordings and values are those that training has. The difference from others says
            how much of what was learned holds for these alone.
        others: share of the values and of the subjects whose words are exchanged for any others. Beside ``known`` it
            tells wordings that training has from values that it has.
    """

    dialogues: int = bounded(200, 1)
    seed: int = bounded(0, 0)
    known: bool = False
    others: float = bounded(0.0, 0, 1)


@dataclass
class RecallTask(Task):
    """The share of replies that hold the fact that was asked for, after so many lines; facts of each length apart.

    Attributes:
        turns: how dialogues become tokens.
        options: which dialogues.
    """

    turns: Turns
    options: RecallTaskOptions
    depths = (12,)
    replies = Replies("holds", 24)

    def questions(self, depth: int) -> Iterator[Question]:
        if depth < FACTS:
            raise ConfigError(f"There is no time step {depth}; a dialogue tells {FACTS} facts, one a line.")
        self.skipped, self.noted = Counter(), Counter()
        bank = read_bank("train" if self.options.known else "held_out")
        others = OtherWords(self.options.others, self.turns.tokenizer)
        for number in range(self.options.dialogues):
            writer = Writer(bank, random.Random(f"{self.options.seed} recall {number}"), others)
            lines = told_then_asked(writer, depth, FACTS, QUESTIONS)
            for line in lines[depth:]:
                yield self._question(lines[:depth], line)

    def _question(self, before: Sequence[Line], line: Line) -> Question:
        chat = Chat(tuple((said.user, said.reply) for said in (*before, line)))
        samples = (part.sample(self.turns, part.length) for part in (chat, chat.latest(0)))
        tokens = len(self.turns.tokenizer.encode(f" {line.value}", add_special_tokens=False))
        length = LENGTHS[min(tokens, len(LENGTHS)) - 1]
        question = Question.of(next(samples), self.turns.eos_id, length, alone=next(samples))
        return replace(question, references=(line.value,))


def open_task(settings: TaskSettings, turns: Turns) -> RecallTask:
    """The questions of held-out dialogues.

    Raises:
        ConfigError: when an option is not allowed, or a path is named.
    """
    settings.forbid_paths()
    return RecallTask(turns, settings.read_options(RecallTaskOptions))
