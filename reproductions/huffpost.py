"""A stand-in for LaMP-2 out of HuffPost's articles, for as long as LaMP's own files are not at hand.

    python -m reproductions.huffpost --data DIR --output DIR

LaMP-2 was made of this very collection: its users are authors, a profile is what an author wrote before, and the
question is of what category another of the author's articles is. Here each author's latest articles are asked for, and
only categories that are among LaMP's count; figures are not comparable with LaMP's.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ccm.cli.console import ending
from ccm.core.files import save_json
from ccm.data.lamp import TEMPLATES

ARTICLES = "open/news-category-huffpost/news.jsonl.gz"
OTHER_NAMES = {
    "parenting": "parents",
    "science": "science & technology",
    "tech": "science & technology",
    "wellness": "healthy living",
}
LEAST, ASKED = 24, 8  # articles of an author, and how many of them are asked for
CLASSES = TEMPLATES[2].classes


def by_author(path: Path) -> dict[str, list[dict[str, str]]]:
    """The articles of each author, as entries of a profile, in the order of their dates."""
    authors: dict[str, list[dict[str, str]]] = defaultdict(list)
    for line in gzip.decompress(path.read_bytes()).decode("utf-8").splitlines():
        article = json.loads(line)
        category = article["category"].lower()
        category = OTHER_NAMES.get(category, category)
        if article["authors"] and article["headline"] and category in CLASSES:
            number = str(sum(map(len, authors.values())))
            authors[article["authors"]].append({"id": number, "text": article["headline"], "category": category})
    return authors


def questions(authors: dict[str, list[dict[str, str]]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Questions and their answers, in the form of LaMP's files."""
    asked = (
        f"To which of the categories {', '.join(CLASSES)} does this article belong? Answer with the category. article:"
    )
    for articles in authors.values():
        if len(articles) >= LEAST:
            profile = articles[:-ASKED]
            for article in articles[-ASKED:]:
                item = {"id": article["id"], "input": f"{asked} {article['text']}", "profile": profile}
                yield item, article["category"]


def main() -> None:
    """Write ``dev_questions.json`` and ``dev_outputs.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, required=True, help="folder for the two files")
    args = parser.parse_args()
    asked = [*questions(by_author(args.data / ARTICLES))]
    args.output.mkdir(parents=True, exist_ok=True)
    save_json(args.output / "dev_questions.json", [item for item, _ in asked])
    golds = [{"id": item["id"], "output": answer} for item, answer in asked]
    save_json(args.output / "dev_outputs.json", {"task": "LaMP_2", "golds": golds})


if __name__ == "__main__":
    with ending():
        main()
