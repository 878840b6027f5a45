"""What corpora of dialogues share: every turn is a step, the last but one is the query, the last the answer.

The rules of layout and filtering are the authors' (Compressed Context Memory, ICLR
2024, section 4.1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Literal

from ccm.chat.turns import Turns
from ccm.core.config import bounded
from ccm.core.errors import ConfigError, DataError
from ccm.data.examples import Examples, log_left_out, tell_held_out
from ccm.data.questions import Question
from ccm.data.settings import DataOptions, DataSettings, TaskOptions
from ccm.data.spool import Spool
from ccm.data.tasks import Replies, Task, TaskSettings
from ccm.engine.layout import Sample

LEAST_TURNS, LONGEST_TURN = 3, 128  # shorter dialogues and longer turns are left out
_LEAKED, _UNFIT = "they are evaluated on, too", "too few turns, or too few or many tokens"


@dataclass(frozen=True)
class Corpus:
    """What differs between the corpora.

    Attributes:
        title: what people call it.
        files: what its folder holds, for messages.
        read: the dialogues of a split of a folder: "train", "validation" or "test", their texts tidied.
        measured: the splits that are evaluated on, together.
        most: dialogues to evaluate on at most, the first that are kept; 0 for all.
        shortest_turn: fewest tokens of a turn.
        longest: most tokens of a whole dialogue to train on, and to evaluate on.
        depths: how many turns a dialogue of an evaluation has, by the time step that is reported.
    """

    title: str
    files: str
    read: Callable[[Path, str], Iterator[Dialogue]]
    measured: tuple[str, ...]
    most: int
    shortest_turn: int
    longest: tuple[int, int]
    depths: Mapping[int, int]

    def fits(self, counts: Sequence[int], longest: int) -> bool:
        """Whether a dialogue whose turns have so many tokens each is kept, where ``longest`` are allowed together."""
        turns = len(counts) >= LEAST_TURNS and self.shortest_turn <= min(counts) and max(counts) <= LONGEST_TURN
        return turns and sum(counts) <= longest

    def keep(self, dialogues: Iterable[Dialogue], turns: Turns, longest: int) -> Iterator[Dialogue]:
        """The dialogues that are long enough in turns, and not too long in tokens."""
        for dialogue in dialogues:
            ids = turns.plain.encode_all(dialogue.turns)
            if self.fits([len(turn) for turn in ids], longest):
                yield dialogue

    def evaluated(self, folder: Path) -> Iterator[Dialogue]:
        """The dialogues of the splits that are evaluated on, before any is left out."""
        for split in self.measured:
            yield from self.read(folder, split)


@dataclass(frozen=True)
class Dialogue:
    """The texts of its turns. A sample is its beginning; every turn is a target, the last is the query's."""

    turns: tuple[str, ...]

    @property
    def length(self) -> int:
        return len(self.turns) - 2

    @property
    def size(self) -> int:
        return sum(map(len, self.turns))

    def cut(self, begin: int, end: int) -> Dialogue:
        """The turns from number ``begin``, counted from 0, to before number ``end``."""
        return Dialogue(self.turns[begin:end])

    def sample(self, turns: Turns, steps: int) -> Sample:
        *context, query, answer = self.turns[: steps + 2]
        read = [turns.statement(text, first=i == 0) for i, text in enumerate(context)]
        return Sample(read, turns.exchange(query, answer, first=not context), turns.head)


@dataclass(frozen=True)
class DialogueOptions(DataOptions):
    """How a corpus is read to train on.

    Attributes:
        drop_leaks: leave out dialogues that stand among those to evaluate on, too.
        most: dialogues to train on at most, the first of the file; 0 for all.
    """

    drop_leaks: bool = True
    most: int = bounded(0, 0)


def open_examples(corpus: Corpus, settings: DataSettings, turns: Turns, seed: int) -> Examples:
    """The dialogues of a corpus in the folder ``data.path``; a warning tells what is left out.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when a file is absent or malformed.
    """
    options, folder = settings.read_options(DialogueOptions), settings.published_folder(corpus.files)
    known = {hash(dialogue) for dialogue in corpus.evaluated(folder)} if options.drop_leaks else set()
    left_out: Counter[str] = Counter()

    def unknown() -> Iterator[Dialogue]:
        for dialogue in corpus.read(folder, "train"):
            leaked = hash(dialogue) in known
            left_out[_LEAKED if leaked else _UNFIT] += 1  # those that fit are taken off below
            if not leaked:
                yield dialogue

    usable = islice(corpus.keep(unknown(), turns, corpus.longest[0]), options.most or None)
    kept = Spool(usable, lambda dialogue: dialogue.turns, lambda texts: Dialogue(tuple(texts)))
    if not kept:
        raise DataError(f"No dialogue to train on in {folder} can be used: all are too short or too long.")
    left_out[_UNFIT] -= len(kept)
    log_left_out(corpus.title, left_out)
    found = corpus.keep(corpus.read(folder, "validation"), turns, corpus.longest[1])
    held = [*islice(found, settings.eval_samples)]
    tell_held_out(len(held), settings, "the validation split has no more that can be used")
    return Examples(kept, held, turns, settings.random_steps, seed)


@dataclass(frozen=True)
class DialogueTaskOptions(TaskOptions):
    """How dialogues are evaluated.

    Attributes:
        protocol: "paper" cuts a dialogue to its first turns, so that each time step has targets of its own;
            "fixed-target" has the same targets at every step, and only the latest turns before them.
    """

    protocol: Literal["paper", "fixed-target"] = "paper"


@dataclass
class DialogueTask(Task):
    """Perplexity of a dialogue's last turn.

    Attributes:
        corpus: of which.
        folder: of its files.
        turns: how a dialogue becomes tokens.
        options: how it is evaluated.
    """

    corpus: Corpus
    folder: Path
    turns: Turns
    options: DialogueTaskOptions
    replies = Replies()

    def __post_init__(self) -> None:
        self.depths = [*self.corpus.depths]

    @cached_property
    def _kept(self) -> tuple[list[Dialogue], int]:
        """The dialogues that are measured, and how many were left out before the last of them."""
        seen: Counter[str] = Counter()

        def counted() -> Iterator[Dialogue]:
            for dialogue in self.corpus.evaluated(self.folder):
                seen["dialogues"] += 1
                yield dialogue

        kept = self.corpus.keep(counted(), self.turns, self.corpus.longest[1])
        dialogues = [*islice(kept, self.corpus.most or None)]
        return dialogues, seen["dialogues"] - len(dialogues)

    def questions(self, depth: int) -> Iterator[Question]:
        if depth not in self.corpus.depths:
            raise ConfigError(f"There is no time step {depth}; the steps are {', '.join(map(str, self.depths))}.")
        kept, left_out = self._kept
        deepest = max(self.corpus.depths.values())
        count = self.corpus.depths[depth]
        least = count if self.options.protocol == "paper" else deepest
        long_enough = [dialogue for dialogue in kept if len(dialogue.turns) >= least]
        self.noted = Counter()
        self.skipped = Counter({"filtered": left_out, f"fewer than {least} turns": len(kept) - len(long_enough)})
        for dialogue in long_enough:
            cut = dialogue.cut(least - count, least)
            if all(cut.turns[i] for i in (0, -2, -1)):
                sample, alone = (cut.cut(begin, count).sample(self.turns, count) for begin in (0, count - 2))
                yield Question.of(sample, self.turns.eos_id, self.corpus.title, alone=alone)
            else:
                self.skipped["an empty first turn, query or answer"] += 1


def open_dialogues(corpus: Corpus, settings: TaskSettings, turns: Turns) -> DialogueTask:
    """The dialogues to evaluate on, in the folder of a corpus.

    Raises:
        ConfigError: when no folder is named, or an option is not allowed.
        DataError: when a file is absent.
    """
    folder = settings.require_path(f"the folder that holds {corpus.files}")
    return DialogueTask(corpus, folder, turns, settings.read_options(DialogueTaskOptions))
