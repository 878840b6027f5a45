"""How much is in a folder of a data set, found by reading it as training and evaluation do, and what it lacks."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccm.core.errors import DataError
from ccm.core.extras import needs
from ccm.data import dailydialog as daily
from ccm.data import soda as social
from ccm.data.metaicl import read_lines
from ccm.data.reading import read_items, read_rows, read_text, readable

_SPLITS = ("train", "validation", "test")
_LAMP_FILES = [f"{split}_{part}.json" for split in ("train", "dev") for part in ("questions", "outputs")]


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


def _listed(folder: Path) -> dict[str, Sequence[str]]:
    """The tasks of hr_to_lr to train and to test on; nothing where its list is not in the folder."""
    try:
        listed = json.loads((folder / "hr_to_lr.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return {what: listed[what] for what in ("train", "test")}


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
    needs("pyarrow", extra="data", what="LMSYS-Chat-1M, in Parquet files,")
    from pyarrow import ArrowException, parquet

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


_WANTED: dict[str, Callable[[Path], Mapping[str, str]]] = {  # what people call it, and which paths would do
    "dailydialog": lambda _: {name: name for name in (f"dialogues_{split}.txt" for split in _SPLITS)},
    "soda": lambda _: {"train.parquet": "train.*", "valid.parquet": "valid*.*"},
    "metaicl": lambda folder: {
        "hr_to_lr.json": "hr_to_lr.json",
        **{task: f"{task}/*.jsonl" for tasks in _listed(folder).values() for task in tasks},
    },
    "lamp": lambda folder: {
        **{f"LaMP_{number}": f"LaMP_{number}/*" for number in (1, 2, 3, 4, 5, 7)},
        **{
            name: name
            for task in sorted(folder.glob("LaMP_*"))
            for name in (f"{task.name}/{file}" for file in _LAMP_FILES)
        },
    },
    "pg19": lambda _: {split: f"{split}/*.txt" for split in _SPLITS},
    "longmemeval": lambda _: {
        "longmemeval_s_cleaned.json": "longmemeval_s*",
        "longmemeval_oracle.json": "longmemeval_oracle*",
    },
}


def missing(name: str, folder: Path) -> list[str]:
    """The files of a data set that its folder lacks, and of MetaICL and LaMP the tasks; where it is known which there
    are."""
    wanted = _WANTED[name](folder) if name in _WANTED else {}
    return [what for what, pattern in wanted.items() if not any(folder.glob(pattern))]


def _count(rows: Iterator[Any]) -> int:
    return sum(1 for _ in rows)


def _answered(questions: Path) -> int:
    outputs = _outputs(questions)
    try:
        with readable(outputs):
            golds = {gold["id"] for gold in json.loads(outputs.read_text(encoding="utf-8"))["golds"]}
        return sum(question["id"] in golds for _, question in read_items(questions))
    except (KeyError, TypeError) as error:
        raise DataError(f"{questions} and {outputs.name} are no LaMP files: {error!r}.") from None


def _outputs(questions: Path) -> Path:
    return questions.with_name(questions.name.replace("questions", "outputs"))
