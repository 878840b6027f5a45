"""How much is in a folder of a data set, found by reading it as training and evaluation do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ccm.data import dailydialog as daily
from ccm.data import soda as social
from ccm.data.metaicl import read_lines
from ccm.data.reading import read_items, read_rows, read_text, readable
from ccm.errors import ConfigError, DataError

_SPLITS = ("train", "validation", "test")


def dailydialog(folder: Path) -> dict[str, int]:
    """Dialogues by split."""
    splits = [split for split in _SPLITS if (folder / f"dialogues_{split}.txt").is_file()]
    return {f"dialogues, {split}": _count(daily.read(folder, split)) for split in splits}


def soda(folder: Path) -> dict[str, int]:
    """Dialogues by split."""
    names = {path.stem.replace("validation", "valid") for path in folder.iterdir()}
    splits = {"train": "train", "valid": "validation"}
    return {
        f"dialogues, {split}": _count(social.read(folder, split)) for stem, split in splits.items() if stem in names
    }


def metaicl(folder: Path) -> dict[str, int]:
    """Tasks of hr_to_lr, by its list where that is in the folder; every line is read."""
    tasks = {path.parent.name for path in folder.glob("*/*.jsonl") if _count(read_lines(path))}
    try:
        listed = json.loads((folder / "hr_to_lr.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"tasks": len(tasks)}
    return {f"tasks to {what} on": len(tasks & {*listed[what]}) for what in ("train", "test")}


def lamp(folder: Path) -> dict[str, int]:
    """Questions that have their answers, by task and split."""
    files = sorted(folder.glob("LaMP_*/*_questions.json"))
    return {f"{file.parent.name}, {file.name.partition('_')[0]}": _answered(file) for file in files}


def pg19(folder: Path) -> dict[str, int]:
    """Books by split."""
    splits = {split: [*(folder / split).glob("*.txt")] for split in _SPLITS}
    return {f"books, {split}": sum(bool(read_text(book)) for book in books) for split, books in splits.items() if books}


def redpajama(folder: Path) -> dict[str, int]:
    """Pages."""
    files = sorted(folder.glob("*.jsonl*"))
    return {"pages": sum(_count(read_rows(file, ["raw_content"])) for file in files)}


def lmsys(folder: Path) -> dict[str, int]:
    """Conversations."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ConfigError("LMSYS-Chat-1M is in Parquet files, which pyarrow reads; say pip install pyarrow.") from None
    try:
        files = [parquet.ParquetFile(file) for file in sorted(folder.glob("*.parquet"))]
        if all("conversation" in file.schema_arrow.names for file in files):
            return {"conversations": sum(file.metadata.num_rows for file in files)}
    except (OSError, ArrowException) as error:
        raise DataError(f"A Parquet file of {folder} cannot be read: {error}; it may not be whole.") from error
    raise DataError(f"A Parquet file of {folder} has no column 'conversation'; it is none of LMSYS-Chat-1M.")


def locomo(folder: Path) -> dict[str, int]:
    """Conversations and questions."""
    conversations = [item for _, item in read_items(folder / "locomo10.json")]
    return {"conversations": len(conversations), "questions": sum(len(one["qa"]) for one in conversations)}


def longmemeval(folder: Path) -> dict[str, int]:
    """Questions by file."""
    files = sorted(folder.glob("longmemeval_*.json"))
    return {f"questions, {file.stem.removeprefix('longmemeval_')}": _count(read_items(file)) for file in files}


COUNTS: dict[str, Callable[[Path], dict[str, int]]] = {  # by the names of the catalogue
    "dailydialog": dailydialog,
    "soda": soda,
    "metaicl": metaicl,
    "lamp": lamp,
    "pg19": pg19,
    "redpajama": redpajama,
    "lmsys": lmsys,
    "locomo": locomo,
    "longmemeval": longmemeval,
}


def _count(rows: Iterator[Any]) -> int:
    return sum(1 for _ in rows)


def _answered(questions: Path) -> int:
    outputs = questions.with_name(questions.name.replace("questions", "outputs"))
    try:
        with readable(outputs):
            golds = {gold["id"] for gold in json.loads(outputs.read_text(encoding="utf-8"))["golds"]}
        return sum(question["id"] in golds for _, question in read_items(questions))
    except (KeyError, TypeError) as error:
        raise DataError(f"{questions} and {outputs.name} are no LaMP files: {error!r}.") from None
