"""The dialogues that the adapters of SmolLM2 are trained and measured on, from corpora with free licences.

    python -m reproductions.smollm2 --data DIR --output CHATS

DIR holds ``schema-guided-dialogue`` (CC BY-SA 4.0), ``synthetic-persona-chat`` (CC BY 4.0) and ``topical-chat``
(CDLA-Sharing-1.0). CHATS gets ``train``, a file each, and ``held_out``: SGD's dev split, and a tenth of persona-chat,
drawn by a checksum of its text. Facts to recall are made by the package itself (``ccm.data.facts``).
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from ccm.data.facts import read_bank
from ccm.files import write_atomically

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


def conversation(talk: Talk) -> dict | None:
    """Messages: the first who speaks is the user. None where fewer than two turns have a reply."""
    said = [(speaker, " ".join(text.strip() for _, text in lines)) for speaker, lines in groupby(talk, lambda t: t[0])]
    said = [text for _, text in said[: len(said) // 2 * 2]]
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(said)]
    return {"messages": messages} if len(messages) >= 4 and all(said) else None


def write(path: Path, talks: Iterator[Talk]) -> None:
    """A file of conversations, and what is in it."""
    made = [made for talk in talks if (made := conversation(talk))]
    values = [value.casefold() for value in read_bank("held_out").values() if "#" not in value]
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in made)
    found = sorted(v for v in values if re.search(rf"\b{re.escape(v)}\b", text.casefold()))
    write_atomically(path, lambda part: part.write_text(text, encoding="utf-8"))
    note = f"; facts that recall is measured with: {', '.join(found)}" if found else ""
    print(f"{path}: {len(made):,} conversations{note}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    args = parser.parse_args(arguments)
    for name in ("train", "held_out"):
        (args.output / name).mkdir(parents=True, exist_ok=True)
    write(args.output / "train" / "schema-guided.jsonl", schema_guided(args.data, "train"))
    write(args.output / "train" / "topical.jsonl", topical(args.data))
    write(args.output / "train" / "persona.jsonl", personas(args.data, held_out=False))
    write(args.output / "held_out" / "schema-guided.jsonl", schema_guided(args.data, "dev"))
    write(args.output / "held_out" / "persona.jsonl", personas(args.data, held_out=True))


if __name__ == "__main__":
    main()
