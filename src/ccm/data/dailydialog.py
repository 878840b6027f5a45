"""DailyDialog, from the publisher's files: ``dialogues_train.txt`` and so on, as they are or gzipped.

Each line is a dialogue, whose every turn ends in ``__eou__``. Texts and filters are the authors' (Compressed Context
Memory, ICLR 2024, section 4.1); they evaluate on validation and test together.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ccm.core.errors import DataError
from ccm.data.dialogue import Corpus, Dialogue, open_dialogues, open_examples
from ccm.data.reading import read_text


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
    name = f"dialogues_{split}.txt"
    path = next((path for path in (folder / f"{name}.gz", folder / name) if path.is_file()), None)
    if path is None:
        raise DataError(f"{folder} holds no {name}, as it is or gzipped; download DailyDialog into it.")
    lines = read_text(path).splitlines()
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


open_data = partial(open_examples, CORPUS)
open_task = partial(open_dialogues, CORPUS)
