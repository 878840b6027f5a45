"""DailyDialog, from the publisher's files: ``dialogues_train.txt`` and so on, as they are or gzipped.

A dialogue is a line, every turn of it ends in ``__eou__``. Texts and filters are the authors' (Compressed Context
Memory, ICLR 2024, section 4.1); they evaluate on validation and test together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ccm.chat.turns import Turns
from ccm.core.errors import DataError
from ccm.data.dialogue import Corpus, Dialogue, DialogueTask, open_dialogues, open_examples
from ccm.data.examples import Examples
from ccm.data.reading import read_text
from ccm.data.settings import DataSettings
from ccm.data.tasks import TaskSettings


def tidy(text: str) -> str:
    """Apostrophes and punctuation without spaces, and every full stop ends a sentence: "3.5" becomes "3. 5"."""
    text = text.replace("。", ".").replace("\u2019", "'")
    for sign in (",", ".", ";", "'", "?", "!"):  # one after the other: a space may only then stand before another
        text = text.replace(f" {sign}", sign)
    return ". ".join(part.strip() for part in text.replace("' ", "'").split(".")).strip()


def read(folder: Path, split: str) -> Iterator[Dialogue]:
    """The dialogues of a split, in the order of the file.

    Raises:
        DataError: when the file is absent, empty, no text, or a line of it is cut off.
    """
    path = folder / f"dialogues_{split}.txt"
    lines = _lines(path)
    if not any(map(str.strip, lines)):
        raise DataError(f"{path} holds no dialogue; download DailyDialog anew.")
    for number, line in enumerate(lines, start=1):
        *turns, rest = line.split("__eou__")
        if rest.strip():
            raise DataError(
                f"{path}, line {number} does not end in __eou__, as every turn does: it ends {rest.strip()[-40:]!r}. "
                "Was the file cut off?"
            )
        if turns:
            yield Dialogue(tuple(map(tidy, turns)))


def _lines(plain: Path) -> Sequence[str]:
    packed = plain.with_name(plain.name + ".gz")
    path = packed if packed.is_file() else plain
    if not path.is_file():
        raise DataError(f"{plain.parent} holds no {plain.name}, as it is or gzipped; download DailyDialog into it.")
    return read_text(path).splitlines()


CORPUS = Corpus(
    title="DailyDialog",
    files="dialogues_train.txt, dialogues_validation.txt and dialogues_test.txt",
    read=read,
    measured=("validation", "test"),
    most=0,
    shortest_turn=0,
    longest=(400, 600),
    depths={1: 3, 2: 4, 4: 6, 8: 10, 12: 15},  # the authors report 13 context turns as step 12
)


def open_data(settings: DataSettings, turns: Turns, seed: int) -> Examples:
    """To train on; see :func:`ccm.data.dialogue.open_examples`."""
    return open_examples(CORPUS, settings, turns, seed)


def open_task(settings: TaskSettings, turns: Turns) -> DialogueTask:
    """To evaluate on; see :func:`ccm.data.dialogue.open_dialogues`."""
    return open_dialogues(CORPUS, settings, turns)
