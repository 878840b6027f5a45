"""How much is in a folder of a data set, found by reading it as training and evaluation do, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ccm.core.errors import DataError
from ccm.data import dailydialog as daily
from ccm.data import soda as social
from ccm.data.lamp import read_outputs
from ccm.data.metaicl import listed_tasks, read_lines
from ccm.data.reading import count_rows, read_items, read_rows, read_text
from ccm.data.sources.catalogue import SOURCES

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
    listed = _listed(folder)
    return {f"tasks to {what} on": len(tasks & {*names}) for what, names in listed.items()} or {"tasks": len(tasks)}


def _listed(folder: Path) -> dict[str, list[str]]:
    """The tasks of hr_to_lr to train and to test on; nothing where its list is not in the folder."""
    return {what: tasks for what in ("train", "test") if (tasks := listed_tasks(folder, what)) is not None}


def lamp(folder: Path) -> dict[str, int]:
    """Questions that have their answers, by task and split, where both files are there."""
    files = sorted(file for file in folder.glob("LaMP_*/*_questions.json") if _outputs(file).is_file())
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
    return {"conversations": sum(count_rows(file, "conversation") for file in sorted(folder.glob("*.parquet")))}


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


def missing(name: str, folder: Path) -> list[str]:
    """The files of a data set that its folder lacks, and of MetaICL and LaMP the tasks, as far as they are known."""
    wanted = {**SOURCES[name].wanted}
    if name == "metaicl":
        wanted |= {task: f"{task}/*.jsonl" for tasks in _listed(folder).values() for task in tasks}
    if name == "lamp":
        wanted |= {place: place for task in sorted(folder.glob("LaMP_*")) for place in _lamp_files(task.name)}
    return [what for what, pattern in wanted.items() if not any(folder.glob(pattern))]


def _lamp_files(task: str) -> list[str]:
    return [f"{task}/{split}_{part}.json" for split in ("train", "dev") for part in ("questions", "outputs")]


def _count(rows: Iterator[Any]) -> int:
    return sum(1 for _ in rows)


def _answered(questions: Path) -> int:
    outputs = read_outputs(_outputs(questions))
    try:
        return sum(question["id"] in outputs for _, question in read_items(questions))
    except (KeyError, TypeError) as error:
        raise DataError(f"{questions} is no file of LaMP: {error!r}.") from None


def _outputs(questions: Path) -> Path:
    return questions.with_name(questions.name.replace("questions", "outputs"))
