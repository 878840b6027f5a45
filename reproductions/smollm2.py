"""The adapters that ship for SmolLM2 135M: their dialogues, from corpora with free licences, and their trainings.

    python -m reproductions.smollm2 --data DIR --output RUNS

DIR holds ``schema-guided-dialogue`` (CC BY-SA 4.0), ``synthetic-persona-chat`` (CC BY 4.0), ``topical-chat``
(CDLA-Sharing-1.0) and ``books-gutenberg`` (novels in the public domain). RUNS gets ``chats``, with ``train``, a file
each, and ``held_out``: SGD's dev split, and a tenth of persona-chat, drawn by a checksum of its text. Facts to recall
are made by the package itself (``ccm.data.facts``). Then the first stage is trained, concat on top of it, and the
other rules, which begin with concat's adapter. What is there is not made again, and an interrupted training is
continued. ``--ship`` trains nothing: it writes the adapters of RUNS into the package, also those of unfinished
trainings.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from ccm.cli.console import ending, quiet
from ccm.core.adapter_folders import PEFT_CONFIG
from ccm.core.errors import AdapterError, DataError
from ccm.core.files import save_json, write_atomically
from ccm.data.facts import read_bank
from ccm.engine.adapter_files import read_adapter, read_stage1, write_adapter
from ccm.models.catalogue import ADAPTERS
from ccm.models.load import TURNS
from ccm.training.results import adapter_of
from reproductions.parts import train_part

MODEL = "smollm2-135m"
RULES = {  # what differs from the recipe; gate and merge hold as much as concat does after two steps
    "concat": (),
    "gate": ("adapter.rule=gate", "adapter.n_tok=8"),
    "merge": ("adapter.rule=merge", "adapter.n_tok=8"),
}
SAVED = ("saved_dtype=bfloat16",)  # every stage, so that the next one is trained on what ships
BOOKS = (
    *("Barchester-Towers", "Dracula", "Far-from-the-Madding-Crowd", "Great-Expectations", "Little-Women"),
    *("Middlemarch", "North-and-South", "Pride-and-Prejudice"),
)
SENTENCE = range(4, 16)  # words of a sentence that is recited
STRETCH = 16  # such sentences in a conversation
Talk = list[tuple[str, str]]  # who speaks, and what is said


def _lines(path: Path) -> Iterator[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def schema_guided(folder: Path, split: str) -> Iterator[Talk]:
    """Task dialogues of a user and a system."""
    for item in _lines(folder / "schema-guided-dialogue" / f"{split}.jsonl.gz"):
        yield [(speaker, text) for speaker, text in item["turns"]]


def topical(folder: Path) -> Iterator[Talk]:
    """Two people who talk about what they know."""
    for path in sorted((folder / "topical-chat").glob("*.jsonl.gz")):
        for item in _lines(path):
            yield [(turn["agent"], turn["text"]) for turn in item["turns"]]


def personas(folder: Path, *, held_out: bool) -> Iterator[Talk]:
    """Two people who get to know each other: nine tenths, or the tenth that is held out."""
    packed = (folder / "synthetic-persona-chat" / "Synthetic-Persona-Chat_valid.csv.gz").read_bytes()
    for row in csv.DictReader(io.StringIO(gzip.decompress(packed).decode("utf-8"))):
        text = row["Best Generated Conversation"]
        if (zlib.crc32(text.encode()) % 10 == 0) == held_out:
            yield re.findall(r"^(User \d): (.*\S)", text, re.MULTILINE)


def books(folder: Path) -> Iterator[Talk]:
    """Short sentences of novels, as if two people read them to each other: words of every kind, to be recited.

    Sentences with a fact that recall is measured with are left out.
    """
    measured = re.compile(rf"\b({'|'.join(map(re.escape, _measured()))})\b", re.IGNORECASE)
    for name in BOOKS:
        path = next((folder / "books-gutenberg" / "train").glob(f"{name}_*.txt.gz"), None)
        if path is None:
            raise DataError(f"{folder / 'books-gutenberg' / 'train'} holds no {name}_*.txt.gz.")
        text = re.sub('[_"“”]', "", gzip.decompress(path.read_bytes()).decode("utf-8"))
        sentences = (" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text))
        kept = [one for one in sentences if len(one.split()) in SENTENCE and not measured.search(one)]
        for first in range(0, len(kept), STRETCH):
            yield [(str(i % 2), sentence) for i, sentence in enumerate(kept[first : first + STRETCH])]


def _measured() -> list[str]:
    """The facts of the task recall, as far as they are words."""
    return sorted(value.casefold() for value in read_bank("held_out").values() if "#" not in value)


def conversation(talk: Talk) -> dict | None:
    """Messages: the first who speaks is the user. None where fewer than two turns have a reply."""
    said = [" ".join(text.strip() for _, text in lines) for _, lines in groupby(talk, lambda turn: turn[0])]
    said = said[: len(said) // 2 * 2]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return {"messages": messages} if len(messages) >= 4 and all(said) else None


def write(path: Path, talks: Iterator[Talk]) -> None:
    """A file of conversations, and what is in it."""
    made = [made for talk in talks if (made := conversation(talk))]
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made)
    found = [v for v in _measured() if re.search(rf"\b{re.escape(v)}\b", text.casefold())]
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    note = f"; facts that recall is measured with: {', '.join(found)}" if found else ""
    print(f"{path}: {len(made):,} conversations{note}")


FILES: dict[str, Callable[[Path], Iterator[Talk]]] = {
    "train/schema-guided.jsonl": lambda data: schema_guided(data, "train"),
    "train/topical.jsonl": topical,
    "train/persona.jsonl": lambda data: personas(data, held_out=False),
    "train/books.jsonl": books,
    "held_out/schema-guided.jsonl": lambda data: schema_guided(data, "dev"),
    "held_out/persona.jsonl": lambda data: personas(data, held_out=True),
}


def prepare(data: Path, chats: Path) -> None:
    """The files of dialogues that are not there."""
    for name, talks in FILES.items():
        if not (chats / name).is_file():
            (chats / name).parent.mkdir(parents=True, exist_ok=True)
            write(chats / name, talks(data))


def ship(runs: Path, target: Path) -> None:
    """Write the adapters of all rules that have a training, beside the first stage that they share."""
    first = Path(adapter_of(runs / "base"))
    stage1, base = read_stage1(first), target / "base"
    saved = [read_adapter(Path(adapter_of(runs / rule))) for rule in RULES if (runs / rule).is_dir()]
    for adapter in saved:
        if adapter.stage1 is None or adapter.stage1.fingerprint != stage1.fingerprint:
            raise AdapterError(f"The {adapter.config.rule} adapter in {runs} has another first stage than {first}.")
    base.mkdir(parents=True, exist_ok=True)
    for name in ("adapter_model.safetensors", TURNS):
        shutil.copyfile(first / name, base / name)
    save_json(base / PEFT_CONFIG, stage1.settings | {"base_model_name_or_path": MODEL})
    for adapter in saved:
        named = replace(adapter, config=replace(adapter.config, base_model=MODEL))
        write_adapter(named, target / adapter.config.rule, shared=base.name)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the dialogues, then train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the corpora; needed until they are prepared")
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"), help="folder for everything")
    parser.add_argument(
        "--rules", nargs="*", default=[*RULES], choices=[*RULES], help="adapters to train, beside concat"
    )
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE over the recipe of all trainings")
    parser.add_argument("--ship", action="store_true", help="write adapters into the package; train nothing")
    args = parser.parse_args(arguments)
    quiet()
    if args.ship:
        return ship(args.output, ADAPTERS / MODEL)
    chats, changes = args.output / "chats", (*SAVED, *args.set)
    if args.data:
        prepare(args.data, chats)
    elif not all((chats / name).is_file() for name in FILES):
        parser.error("--data names the folder of the corpora, which are not prepared yet.")
    places: tuple[str, ...] = (f"data.path={chats}",)
    base = train_part("smollm2", "base", "base", args.output / "base", places, changes)
    places = (*places, f"base_adapter={base}")
    for rule in ("concat", *(rule for rule in args.rules if rule != "concat")):
        trained = train_part("smollm2", rule, "compress", args.output / rule, places, (*RULES[rule], *changes))
        if rule == "concat":
            places = (*places, f"init_adapter={trained}")


if __name__ == "__main__":
    with ending():
        main()
