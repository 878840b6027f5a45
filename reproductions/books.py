"""Books read as streams at a small scale: the paper's Figure 8 with a model of 4.3 M parameters, at equal cache size.

    python -m reproductions.books --data DIR --output DIR

The small LLaMA (``reproductions.small``), trained on with all weights on whole novels (``reproductions.whole``); on it
an adapter for running text, for every method and seed; then other books, every one to its end or to so many tokens, by
each adapter, by the window that is always full, and by the authors' window. What is done already is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import stdev
from typing import Any

import torch
from torch import Tensor

import ccm
from ccm.cli.console import ending, quiet
from ccm.core.files import save_json
from ccm.core.plain_text import PlainText
from ccm.data.reading import find_files, read_text
from ccm.evaluation.streams import ENDINGS
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory
from reproductions.parts import processes, train_model, train_part

RECIPE = Path(__file__).with_suffix(".yaml")
TRAIN, TEST = "open/books-gutenberg/train", "open/books-gutenberg/pg19_test"
TEXT = ("data.name=pg19", "data.chunk_tokens=64", "data.query_chunks=2", "data.max_steps=5", "data.random_steps=true")
ADAPTER = (*TEXT, "objective={every: 1}", "adapter.sink=true", "adapter.lora.r=32", "adapter.lora.alpha=64")
LEARNING = ("max_steps=200", "batch_size=32", "lr=2e-3", "lr_end=0.05")
METHODS = {  # what differs; merge and gate hold as many entries as a memory of concat does at most
    "concat": ("adapter.rule=concat", "adapter.n_tok=2"),
    "merge": ("adapter.rule=merge", "adapter.n_tok=8"),
    "gate": ("adapter.rule=gate", "adapter.n_tok=8"),
}
TOLERANCE = 16  # tokens before or after a span's end, where it is to be a sentence's
WINDOWS = (32, 48, 64, 96, 128, 160, 256, 376)  # of the window that is always full: what more raw text is worth


def train_adapter(what: tuple[str, int], places: tuple[str, ...], output: Path) -> Path:
    """The adapter of a method and a seed."""
    method, seed = what
    changes = (*ADAPTER, *LEARNING, *METHODS[method], f"seed={seed}")
    return train_part("custom", f"{method} {seed}", "compress", output / f"{method}-{seed}", places, changes)


@dataclass(frozen=True)
class Reader:
    """A way to read the books: an adapter under its own rule, or a base without one."""

    name: str
    settings: StreamSettings
    adapter: Path | None = None


def read_books(reader: Reader, model: Path, books: Path, tokens: int, output: Path) -> Path:
    """All books by one reader: per book, the tokens predicted and their likelihood.

    They are one batch of streams, but where spans end with sentences, and a batch would end them all at once.
    """
    path = output / f"{reader.name}.json"
    if not path.is_file():
        loaded, tokenizer = _load(reader, model)
        files = {file.name.partition(".")[0]: file for file in find_files(books, ENDINGS)}
        texts = {name: _ids(file, tokenizer, tokens) for name, file in files.items()}
        begun = time.perf_counter()
        batches = [[name] for name in texts] if reader.settings.tolerance else [[*texts]]
        nll: dict[str, float] = {}
        with torch.inference_mode():
            for batch in batches:
                stream = StreamingMemory(loaded, reader.settings, tokenizer, batch=len(batch))
                nll |= _nll(stream, {name: texts[name] for name in batch})
        found = {name: {"tokens": len(texts[name]) - 1, "nll": nll[name]} for name in texts}
        output.mkdir(parents=True, exist_ok=True)
        save_json(path, {"seconds": time.perf_counter() - begun, "books": found})
        print(f"{reader.name}: read", file=sys.stderr)
    return path


def _load(reader: Reader, model: Path) -> Any:
    if reader.adapter is None:
        return ccm.load(model, rule="none", device="cpu")
    return ccm.load(adapter=reader.adapter, device="cpu")


def _ids(file: Path, tokenizer: Any, tokens: int) -> Tensor:
    """(T,) the first tokens of a book, BOS before them."""
    text = read_text(file)
    begin = text[: 12 * tokens] if tokens else text  # no need to tokenize what is not read: a token has 4 characters
    ids = PlainText(tokenizer).encode(begin)
    return torch.tensor([tokenizer.bos_token_id, *(ids[:tokens] if tokens else ids)])


def _nll(stream: StreamingMemory, texts: dict[str, Tensor]) -> dict[str, float]:
    """The summed negative log-likelihood of each text; a stream ends where its text does, the others go on."""
    sums, done = dict.fromkeys(texts, 0.0), 0
    names = sorted(texts, key=lambda name: len(texts[name]))
    while names:
        end = len(texts[names[0]])
        if end > done:
            for nll in stream.scored(torch.stack([texts[name][done:end] for name in names])):
                for name, total in zip(names, nll.double().sum(1).tolist(), strict=True):
                    sums[name] += total
        done, going = end, [i for i, name in enumerate(names) if len(texts[name]) > end]
        names = [names[i] for i in going]
        stream = stream.rows(going) if going else stream
    return sums


def report(folder: Path, shown: dict[str, list[str]], opponent: str) -> str:
    """Perplexity of every book, and how far each method is below the opponent; a method is the mean of its seeds."""
    names = {name for readers in shown.values() for name in readers} | {opponent}
    read = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["books"] for name in names}
    books = sorted(read[opponent])

    def mean(method: str, book: str) -> float:
        logs = [read[name][book]["nll"] / read[name][book]["tokens"] for name in shown[method]]
        return sum(logs) / len(logs)

    lines = [
        f"| book | tokens | {' | '.join(shown)} |",
        f"| --- | ---: |{' ---: |' * len(shown)}",
    ]
    for book in books:
        figures = " | ".join(f"{math.exp(mean(method, book)):.2f}" for method in shown)
        lines.append(f"| {book} | {read[opponent][book]['tokens']:,} | {figures} |")
    means = {method: sum(mean(method, book) for book in books) / len(books) for method in shown}
    lines.append(f"| **geometric mean** | | {' | '.join(f'**{math.exp(x):.2f}**' for x in means.values())} |")
    lines += ["", f"| method | below {opponent} | standard error over books | by seed | books below |"]
    lines.append("| --- | ---: | ---: | --- | ---: |")
    for method, readers in shown.items():
        by_seed = [_below(read[name], read[opponent]) for name in readers]
        each = [sum(x) / len(x) for x in zip(*by_seed, strict=True)]
        spread = stdev(each) / math.sqrt(len(each))
        seeds = ", ".join(f"{_percent(sum(x) / len(x)):+.2f}" for x in by_seed)
        below = sum(x > 0 for x in each)
        mean_below = _percent(sum(each) / len(each))
        lines.append(f"| {method} | {mean_below:+.2f} % | {100 * spread:.2f} | {seeds} | {below} of {len(each)} |")
    return "\n".join(lines) + "\n"


def _below(ours: dict[str, Any], theirs: dict[str, Any]) -> list[float]:
    """Per book, log perplexity of the opponent less ours."""
    return [theirs[b]["nll"] / theirs[b]["tokens"] - ours[b]["nll"] / ours[b]["tokens"] for b in sorted(theirs)]


def _percent(logs: float) -> float:
    """By how many percent a perplexity is lower."""
    return 100 * (1 - math.exp(-logs))


def main() -> None:
    """Build what is asked for, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output", type=Path, default=Path("runs/books"), help="folder for everything")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the rule concat")
    parser.add_argument("--others", nargs="*", default=["merge", "gate"], choices=["merge", "gate"], help="of one seed")
    parser.add_argument("--tokens", type=int, default=60_000, help="of each book at most; 0 is all")
    args = parser.parse_args()
    quiet()
    model = args.output / "model"
    train_model(RECIPE, model, args.data / TRAIN, ())
    wanted = [*product(["concat"], args.seeds), *product(args.others, args.seeds[:1])]
    work = partial(train_adapter, places=(f"model={model}", f"data.path={args.data / TRAIN}"), output=args.output)
    windows = {
        f"window {size}": StreamSettings(cache_size=size, span=16, memory_size=0, evict="window") for size in WINDOWS
    }
    streams = args.output / f"streams-{args.tokens}"
    with processes() as pool:
        adapters = [*pool.map(work, wanted)]
        made = [*zip(wanted, adapters, strict=True)]
        readers = [Reader(f"{rule} {seed}", StreamSettings(), folder) for (rule, seed), folder in made]
        readers += [Reader(name, settings) for name, settings in windows.items()]
        readers.append(Reader("blocks", StreamSettings(evict="blocks")))
        sentences = StreamSettings(tolerance=TOLERANCE)
        readers += [Reader(f"sentences {seed}", sentences, folder) for (rule, seed), folder in made if rule == "concat"]
        read = partial(read_books, model=model, books=args.data / TEST, tokens=args.tokens, output=streams)
        [*pool.map(read, readers)]
    shown = {"window": ["window 160"], "blocks": ["blocks"], "concat": [f"concat {seed}" for seed in args.seeds]}
    shown["concat, sentence ends"] = [f"sentences {seed}" for seed in args.seeds]
    shown |= {rule: [f"{rule} {args.seeds[0]}"] for rule in args.others}
    longer = {name: [name] for name in windows}
    text = report(streams, shown, "window 160") + "\n" + report(streams, longer, "window 160")
    (args.output / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    with ending():
        main()
