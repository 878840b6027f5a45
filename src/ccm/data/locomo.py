"""LoCoMo: questions on what two people said over months (Maharana et al., ACL 2024, arXiv 2402.17753).

From the publisher's ``locomo10.json``, plain or gzipped: a list of conversations, each a table of sessions with their
dates, and questions with the turns that answer them. Replies are judged by category, as the benchmark does.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ccm.chat.turns import Turns
from ccm.core.errors import DataError
from ccm.data.longterm import LongQuestion, LongTask, LongTaskOptions, Turn
from ccm.data.questions import Judged
from ccm.data.reading import read_items
from ccm.data.tasks import Averaging, Replies, TaskSettings

CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop", 5: "adversarial"}
_JUDGED: dict[str, Judged] = {"multi-hop": "parts", "adversarial": "phrase"}
_NAMES = ("locomo10.json", "locomo10.json.gz")
_TURN = re.compile(r"D:?(\d+):(\d+)")  # one text may name several turns, and not all are written alike
UNKNOWN = "Not mentioned in the conversation"


def conversation(item: Mapping[str, Any]) -> tuple[list[Turn], dict[tuple[int, int], int]]:
    """The turns of all sessions in order, and the number of each turn by its session and its number in the session."""
    turns: list[Turn] = []
    places: dict[tuple[int, int], int] = {}
    for session in sorted(int(key[8:]) for key in item if re.fullmatch(r"session_\d+", key)):
        date = item[f"session_{session}_date_time"]
        for i, said in enumerate(item[f"session_{session}"]):
            caption = f" [shows {said['blip_caption']}]" if said.get("blip_caption") else ""
            places[_named(said["dia_id"])[0]] = len(turns)
            turns.append(Turn(session, date, i == 0, f"{said['speaker']}: {said['text']}{caption}"))
    return turns, places


def _named(text: str) -> list[tuple[int, int]]:
    """Session and turn of all turns that a text names."""
    return [(int(session), int(turn)) for session, turn in _TURN.findall(text)]


def read(path: Path) -> Iterator[LongQuestion]:
    """All questions of a file, conversation by conversation.

    Raises:
        DataError: when it is absent or malformed.
    """
    for number, (_, item) in enumerate(read_items(path), start=1):
        try:
            turns, places = conversation(item["conversation"])
            asked = [_asked(row, turns, places, number, i) for i, row in enumerate(item["qa"])]
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{path}: conversation {number} is none of LoCoMo's ({error!r}).") from None
        yield from asked


def _asked(
    row: Mapping[str, Any], turns: Sequence[Turn], places: Mapping[tuple[int, int], int], number: int, place: int
) -> LongQuestion:
    category = CATEGORIES[row["category"]]
    evidence = {places[name] for text in row["evidence"] for name in _named(text) if name in places}
    query = f"Answer in a few words.\nQuestion: {row['question']}"
    if category == "temporal":
        query += " Reckon from the dates of the sessions; about when is enough."
    if category == "adversarial":
        options = [UNKNOWN, str(row["adversarial_answer"])]
        right = random.Random(f"locomo {number} {place}").randrange(2)
        first, second = options if right == 0 else options[::-1]
        query += f" Which is right: (a) {first}, or (b) {second}?"
        answer, references = UNKNOWN, ["ab"[right], "not mentioned", "no information available"]
    else:
        answer = str(row["answer"])
        if category == "open-domain":  # after a semicolon stands why
            answer = answer.split(";")[0].strip()
        references = [answer]
    judged = _JUDGED.get(category, "stems")
    return LongQuestion(turns, evidence, query, answer, category, references, judged, str(number))


def open_task(settings: TaskSettings, turns: Turns) -> LongTask:
    """The questions of a file, or of the folder that holds it.

    Raises:
        ConfigError: when no path is named, or an option is not allowed.
        DataError: when the folder does not hold the file.
    """
    path = settings.require_path("locomo10.json, or the folder that holds it")
    if path.is_dir():
        found = next((path / name for name in _NAMES if (path / name).is_file()), None)
        if found is None:
            raise DataError(f"{path} holds none of {', '.join(_NAMES)}; download it from LoCoMo's repository.")
        path = found
    apart = Averaging(left_out=("adversarial",))  # its answer stands in its query
    options = settings.read_options(LongTaskOptions)
    return LongTask(partial(read, path), CATEGORIES.values(), turns, options, Replies("answer_f1", 32), apart)
