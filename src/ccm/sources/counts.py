"""How much is in a folder of a data set, found by reading it as training and evaluation do."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ccm.data import dailydialog as daily
from ccm.data import soda as social
from ccm.data.metaicl import read_lines
from ccm.errors import ConfigError, DataError

T = TypeVar("T", list, dict)
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
    return {f"books, {split}": sum(map(_is_text, books)) for split, books in splits.items() if books}


def redpajama(folder: Path) -> dict[str, int]:
    """Pages."""
    files = sorted(folder.glob("*.jsonl*"))
    return {"pages": sum("raw_content" in row for file in files for row in _json_lines(file))}


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
    conversations = _json(folder / "locomo10.json", list)
    return {"conversations": len(conversations), "questions": sum(len(one["qa"]) for one in conversations)}


def longmemeval(folder: Path) -> dict[str, int]:
    """Questions by file."""
    files = sorted(folder.glob("longmemeval_*.json"))
    return {f"questions, {file.stem.removeprefix('longmemeval_')}": len(_json(file, list)) for file in files}


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
        golds = {gold["id"] for gold in _json(outputs, dict)["golds"]}
        return sum(question["id"] in golds for question in _json(questions, list))
    except (KeyError, TypeError) as error:
        raise DataError(f"{questions} and {outputs.name} are no LaMP files: {error!r}.") from None


def _is_text(path: Path) -> bool:
    try:
        return bool(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} is not whole, or no JSON lines: {error}.") from error


def _json(path: Path, kind: type[T]) -> T:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; it may not be whole.") from error
    if not isinstance(held, kind):
        raise DataError(f"{path} must hold a {kind.__name__}, not a {type(held).__name__}.")
    return held
