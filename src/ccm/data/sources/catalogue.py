"""Which data sets there are, under which terms, where they are published, and what their folders look like.

A row is what is known of a data set. ``Source.address`` says how its addresses are known: from the publisher's own
pages, listings and repositories, or "not verified". A file's size and checksum stand here only where the publisher's
own record of it gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ccm.core.errors import ConfigError, DataError, did_you_mean

_SPLITS = "train|validation|test"
_BOOKS = "https://storage.googleapis.com/deepmind-gutenberg/"
_LAMP = "https://ciir.cs.umass.edu/downloads/LaMP/"
_METAICL = "https://raw.githubusercontent.com/facebookresearch/MetaICL/ec0f1c199965f54d4b4d35556e5ca9ba0a6719ab/"
_SODA = "d80f16879432016b62fa3d32d0fc4eeea4af78aa"
_LOCOMO = "https://raw.githubusercontent.com/snap-research/locomo/3eb6f2c585f5e1699204e3c3bdf7adc5c28cb376/"


@dataclass(frozen=True)
class File:
    """A file as it is published.

    Attributes:
        path: where it is kept among the downloads; on the Hub its path in the repository, which may be a pattern.
        where: its address, or the repository on the Hugging Face Hub.
        revision: of the repository.
        size: in bytes; None where it is not known for sure.
        sha256: likewise.
        lists: where it is a list of other files: what gives these from its text.
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
    archives: Sequence[str] = ()
    terms: str = ""

    def target(self, path: str) -> str | None:
        """Where in the folder a published file belongs, by its path; None where it is not wanted."""
        for pattern, place in self.takes:
            if found := re.fullmatch(f"(?:.*/)?{pattern}", path):
                return found.expand(place)
        return None


def _books(names: str) -> Iterable[File]:
    """The books that a list of PG19 names, such as "test/10146.txt"."""
    for name in names.split():
        if not re.fullmatch(rf"({_SPLITS})/\d+\.txt", name):
            raise DataError(f"{name!r} is no name of a book; the list of PG19's files has changed.")
        yield File(name, _BOOKS + name)


def _metaicl_files(config: str) -> Iterable[File]:
    """The files of the tasks that MetaICL's hr_to_lr.json names."""
    tasks = json.loads(config)
    names = [(task, "16384_100_train") for task in tasks["train"]]
    pools = [f"16_{seed}_train" for seed in (13, 21, 42, 87, 100)]
    names += [(task, part) for task in tasks["test"] for part in ("16_100_test", *pools)]
    for task, part in names:
        yield File(f"data/{task}/{task}_{part}.jsonl", "allenai/metaicl-data")


def _lamp_files() -> Iterable[File]:
    """LaMP-2 is the news, as in the paper; what lies under LaMP_2/new is another task, on films."""
    for number in (1, 2, 3, 4, 5, 7):
        for split in ("train", "dev"):
            for part in ("questions", "outputs"):
                path = f"LaMP_{number}/{split}/{split}_{part}.json"
                yield File(path, _LAMP + path)


_UNIFIED, _PRETRAIN = (
    f"train {name} --set data.path={{0.parent}} --set output_dir=DIR" for name in ("unified", "pretrain")
)

SOURCES = {
    "dailydialog": Source(
        title="DailyDialog",
        about="13,118 daily conversations, 8 turns each",
        licence="CC BY-NC-SA 4.0",
        commercial=False,
        home="http://yanran.li/dailydialog",
        paper="https://aclanthology.org/I17-1099",
        size=4_500_000,
        files=[File("I17-1099.Datasets.zip", "https://aclanthology.org/attachments/I17-1099.Datasets.zip")],
        address="address not verified: many projects name this attachment of the paper, its page was not seen",
        used_by=("train dialog --set data.path={} --set output_dir=DIR", "evaluate dialog --data {}"),
        layout="dialogues_train.txt, dialogues_validation.txt, dialogues_test.txt",
        takes=[
            (rf"dialogues_({_SPLITS})\.txt(?:\.gz)?", r"dialogues_\1.txt"),
            (rf"({_SPLITS})(?:/0000|-00000-of-00001[^/]*|)\.parquet", r"dialogues_\1.txt"),
        ],
        known={"dialogues, train": 11_118, "dialogues, validation": 1_000, "dialogues, test": 1_000},
        archives=("*.zip",),
    ),
    "soda": Source(
        title="SODA",
        about="1.5 million social dialogues, made by a language model",
        licence="CC BY 4.0",
        commercial=True,
        home="https://huggingface.co/datasets/allenai/soda",
        paper="https://arxiv.org/abs/2212.10465",
        size=771_641_388,
        files=[
            File(
                "train.parquet",
                "allenai/soda",
                revision=_SODA,
                size=688_771_672,
                sha256="b21314575fdc4cbf9fc74f7af4854d55fba8cc9ba72f2f3791ae2df8b23032c4",
            ),
            File(
                "valid.parquet",
                "allenai/soda",
                revision=_SODA,
                size=82_869_716,
                sha256="3e813e5b14c4edca5849cb7922f9c38568ecb71f27931a7c4c29ec1160bd0d1c",
            ),
        ],
        address="from the publisher's commit d80f168 on the Hub, sizes and checksums with it",
        used_by=(
            "train soda --set data.path={} --set output_dir=DIR",
            "evaluate soda --data {}",
            "train unified --set data.path={0.parent} --set output_dir=DIR",
        ),
        layout="train.parquet, valid.parquet",
        takes=[(r"(train|valid|validation)\.(parquet|jsonl)", r"\1.\2")],
        known={"dialogues, train": 1_191_582, "dialogues, validation": 146_346},
    ),
    "metaicl": Source(
        title="MetaICL, hr_to_lr",
        about="classification and question answering: 61 tasks to train on, 26 to test on",
        licence="CC BY-NC 4.0; every task has terms of its own",
        commercial=False,
        home="https://github.com/facebookresearch/MetaICL",
        paper="https://arxiv.org/abs/2110.15943",
        size=None,
        files=[
            File(
                "hr_to_lr.json",
                _METAICL + "config/hr_to_lr.json",
                size=1423,
                sha256="6f46fcba30623a1a85f715bb16237fae70c687a2fe53b4f5f4d70d8d5cb663a4",
                lists=_metaicl_files,
            )
        ],
        address="the list from the publisher's repository; files that AI2 made with its scripts, by the Hub's listing",
        used_by=(
            "train metaicl --set data.path={} --set output_dir=DIR",
            "evaluate metaicl --data {}",
            "train unified --set data.path={0.parent} --set output_dir=DIR",
        ),
        layout="hr_to_lr.json, and a folder TASK each with TASK_16384_100_train.jsonl or TASK_16_100_test.jsonl",
        takes=[(r"([^/]+)/(\1_[^/]+\.jsonl)", r"\1/\2"), (r"hr_to_lr\.json", "hr_to_lr.json")],
        known={"tasks to train on": 61, "tasks to test on": 26},
        archives=("*.zip", "*.tar", "*.tar.*"),
    ),
    "lamp": Source(
        title="LaMP 1 to 5, 7",
        about="personal classification and writing, from a user's earlier texts",
        licence="CC BY-NC-SA 4.0; the texts have terms of their own",
        commercial=False,
        home="https://lamp-benchmark.github.io",
        paper="https://arxiv.org/abs/2304.11406",
        size=None,
        files=[*_lamp_files()],
        address="addresses not verified: other projects name them, the publisher's page was not seen",
        used_by=(
            "train lamp --set data.path={}/LaMP_2 --set output_dir=DIR",
            "evaluate lamp --number 2 --data {}/LaMP_2",
        ),
        layout="a folder LaMP_N each, in it train_ and dev_questions.json and train_ and dev_outputs.json",
        takes=[
            (
                r"LaMP[_-]?(\d)/(?:(?:train|dev)/)?((?:train|dev)_(?:questions|outputs)\.json)",
                r"LaMP_\1/\2",
            )
        ],
    ),
    "pg19": Source(
        title="PG19",
        about="28,752 books of Project Gutenberg from before 1919",
        licence="Apache 2.0; the books are in the public domain in the USA",
        commercial=True,
        home="https://github.com/google-deepmind/pg19",
        paper="https://arxiv.org/abs/1911.05507",
        size=11_700_000_000,
        files=[
            File(f"data/{split}_files.txt", "deepmind/pg19", lists=_books) for split in ("validation", "test", "train")
        ],
        address="from the publisher's lists on the Hub, and the store that its loading script names",
        used_by=("evaluate pg19 --data {}",),
        layout="a file .txt a book, in train, validation and test",
        takes=[(rf"(?:pg19_)?({_SPLITS})/([^/]+)\.txt(?:\.gz)?", r"\1/\2.txt")],
        known={"books, train": 28_602, "books, validation": 50, "books, test": 100},
    ),
    "redpajama": Source(
        title="RedPajama-Data-V2, English sample",
        about="web pages of the snapshot 2023-06, its parts head and middle",
        licence="Common Crawl's terms of use",
        commercial=None,
        home="https://huggingface.co/datasets/togethercomputer/RedPajama-Data-V2",
        paper="https://arxiv.org/abs/2411.12372",
        size=1_500_000_000,
        files=[
            File(f"sample/documents/2023-06/{shard:04}/en_{part}.json.gz", "togethercomputer/RedPajama-Data-V2")
            for shard in range(10)
            for part in ("head", "middle")
        ],
        address="from the Hub's listing of the publisher's repository",
        used_by=(_PRETRAIN,),
        layout="JSON lines with raw_content, gzipped: 2023-06-0000-en_head.jsonl.gz and so on",
        takes=[
            (r"(\d{4}-\d\d)/(\d{4})/(en_\w+)\.json\.gz", r"\1-\2-\3.jsonl.gz"),
            (r"([^/]+\.jsonl(?:\.gz)?)", r"\1"),
        ],
    ),
    "lmsys": Source(
        title="LMSYS-Chat-1M",
        about="a million conversations with 25 chat models",
        licence="LMSYS-Chat-1M Dataset License Agreement",
        commercial=None,
        home="https://huggingface.co/datasets/lmsys/lmsys-chat-1m",
        paper="https://arxiv.org/abs/2309.11998",
        size=1_490_000_000,
        files=[File("data/train-*.parquet", "lmsys/lmsys-chat-1m")],
        address="pattern from the publisher's card on the Hub",
        used_by=(_PRETRAIN,),
        layout="the publisher's Parquet files",
        takes=[(r"([^/]+\.parquet)", r"\1")],
        known={"conversations": 1_000_000},
        terms="accept its terms at https://huggingface.co/datasets/lmsys/lmsys-chat-1m, and say: hf auth login",
    ),
    "locomo": Source(
        title="LoCoMo",
        about="10 very long conversations, with questions on them",
        licence="CC BY-NC 4.0",
        commercial=False,
        home="https://github.com/snap-research/locomo",
        paper="https://arxiv.org/abs/2402.17753",
        size=2_805_274,
        files=[
            File(
                "locomo10.json",
                _LOCOMO + "data/locomo10.json",
                size=2_805_274,
                sha256="79fa87e90f04081343b8c8debecb80a9a6842b76a7aa537dc9fdf651ea698ff4",
            )
        ],
        address="from the publisher's repository, size and checksum of its own bytes",
        used_by=("evaluate locomo --data {}",),
        layout="locomo10.json",
        takes=[(r"locomo10\.json(?:\.gz)?", "locomo10.json")],
        known={"conversations": 10, "questions": 1_986},
    ),
    "longmemeval": Source(
        title="LongMemEval",
        about="500 questions on long histories of chats; the cleaned release of September 2025",
        licence="MIT",
        commercial=True,
        home="https://github.com/xiaowu0162/LongMemEval",
        paper="https://arxiv.org/abs/2410.10813",
        size=293_000_000,
        files=[
            File("longmemeval_s_cleaned.json", "xiaowu0162/longmemeval-cleaned"),
            File("longmemeval_oracle.json", "xiaowu0162/longmemeval-cleaned"),
        ],
        address="from the publisher's README",
        used_by=("evaluate longmemeval --data {}/longmemeval_s_cleaned.json",),
        layout="longmemeval_s_cleaned.json, longmemeval_oracle.json",
        takes=[(r"(longmemeval_(?:s|s_cleaned|oracle))(?:\.json)?(?:\.gz)?", r"\1.json")],
        known={"questions, s_cleaned": 500, "questions, oracle": 500},
    ),
}


def source(name: str) -> Source:
    """The data set of that name.

    Raises:
        ConfigError: when there is none.
    """
    if name not in SOURCES:
        meant = did_you_mean([name], SOURCES)
        raise ConfigError(f"There is no data set {name!r} to prepare.{meant} There are: {', '.join(SOURCES)}.")
    return SOURCES[name]
