"""Which data sets there are, under which terms, where they are published, and what their folders look like.

A row of ``catalogue.yaml`` is what is known of a data set. ``Source.address`` says how its addresses are known: from
the publisher's own pages, listings and repositories, or "not verified".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from ccm.core.errors import DataError, unknown_name


@dataclass(frozen=True)
class File:
    """A file as it is published.

    Attributes:
        path: where it is kept among the downloads; on the Hub its path in the repository, which may be a pattern.
        where: its address, or the repository on the Hugging Face Hub.
        revision: of the repository.
        size: in bytes; None where it is not known for sure.
        sha256: its checksum; None where it is not known for sure.
        lists: of a list of other files, the function from its text to them.
    """

    path: str
    where: str
    revision: str = "main"
    size: int | None = None
    sha256: str | None = None
    lists: Callable[[str], Iterable[File]] | None = None

    @property
    def on_hub(self) -> bool:
        """Whether it is in a repository of the Hugging Face Hub."""
        return "://" not in self.where

    @property
    def url(self) -> str:
        """Its address."""
        if not self.on_hub:
            return self.where
        return f"https://huggingface.co/datasets/{self.where}/resolve/{self.revision}/{self.path}"


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        title: what people call it.
        about: what it holds.
        licence: as the publisher names it.
        commercial: whether the licence allows commercial use; None where the licences are others' and vary.
        home: the publisher's page.
        paper: that describes it.
        size: of all files in bytes, about; None where it is not known.
        files: as they are published.
        address: how their addresses are known.
        used_by: the commands of ``ccm`` that read it, with ``{}`` for its folder.
        layout: what its folder holds afterwards.
        takes: what is taken of the publisher's files: pairs of a pattern of a path, and the path in the folder.
        known: how much there should be in it, by kind.
        wanted: what must not be missing in it: what people call it, and a pattern of its path.
        archives: patterns of the archives that are opened, inner ones too.
        terms: what has to be done before it may be downloaded.
    """

    title: str
    about: str
    licence: str
    commercial: bool | None
    home: str
    paper: str
    size: int | None
    files: Sequence[File]
    address: str
    used_by: Sequence[str]
    layout: str
    takes: Sequence[tuple[str, str]]
    known: Mapping[str, int] = field(default_factory=dict)
    wanted: Mapping[str, str] = field(default_factory=dict)
    archives: Sequence[str] = ()
    terms: str = ""

    def target(self, path: str) -> str | None:
        """Where in the folder a published file belongs, by its path; None where it is not wanted."""
        for pattern, place in self.takes:
            if found := re.fullmatch(f"(?:.*/)?{pattern}", path):
                return found.expand(place)
        return None


def _books(names: str) -> Iterator[File]:
    """The books that a list of PG19 names, such as "test/10146.txt"."""
    for name in names.split():
        if not re.fullmatch(r"(train|validation|test)/\d+\.txt", name):
            raise DataError(f"{name!r} is no name of a book; the list of PG19's files has changed.")
        yield File(name, f"https://storage.googleapis.com/deepmind-gutenberg/{name}")


def _metaicl_files(config: str) -> Iterator[File]:
    """The files of the tasks that MetaICL's hr_to_lr.json names."""
    tasks = json.loads(config)
    names = [(task, "16384_100_train") for task in tasks["train"]]
    pools = [f"16_{seed}_train" for seed in (13, 21, 42, 87, 100)]
    names += [(task, part) for task in tasks["test"] for part in ("16_100_test", *pools)]
    for task, part in names:
        yield File(f"data/{task}/{task}_{part}.jsonl", "allenai/metaicl-data")


_LISTS = {None: None, "metaicl": _metaicl_files, "pg19": _books}


def _files(row: dict[str, Any]) -> Iterator[File]:
    """The files of a row of the catalogue: one for every choice of the values of ``each``."""
    each, lists = row.pop("each", {}), _LISTS[row.pop("lists", None)]
    for values in product(*each.values()):
        path = row["path"].format(**dict(zip(each, values, strict=True)))
        yield File(**{**row, "path": path, "where": row["where"].format(path=path), "lists": lists})


def _read() -> dict[str, Source]:
    table = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    return {
        name: Source(**{**row, "files": [file for one in row["files"] for file in _files(one)]})
        for name, row in table.items()
    }


SOURCES = _read()


def source(name: str) -> Source:
    """The data set of that name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in SOURCES:
        raise unknown_name("data set", name, SOURCES)
    return SOURCES[name]
