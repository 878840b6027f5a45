"""The small LLaMA of the reproductions, from scratch: open texts -> tokenizer -> model, with full context.

    python -m reproductions.small --data DIR

It ships in ``reproductions/weights``, so that the reproductions begin with the same one. What it learns of is dialogues
and books under open licences alone; no data set that a reproduction measures is among them.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ccm.chat.turns import Turns
from ccm.cli.commands.progress import progress
from ccm.cli.console import ending, quiet
from ccm.core.config import CCMConfig
from ccm.data import dailydialog
from ccm.data.tasks import PAPER_TURNS
from ccm.engine.fingerprint import fingerprint_base
from ccm.engine.layout import Layout
from ccm.training.loop import train
from ccm.training.recipe import Recipe, load_recipe
from ccm.training.stages import FULL, FullContext, Stage

SMALL = Path(__file__).with_name("weights")
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
VOCABULARY = 4096
SEPARATOR = PAPER_TURNS.separator
BETWEEN = "</s><s>"  # two documents, as the tokenizer reads them
FILE = 1 << 20  # characters of a file, about
BOOK, PAGES = 400_000, 20_000  # characters of each book, and of a document of them
TALKS = 2  # free talk is read so often while the rest is read once


def documents(data: Path) -> Iterator[str]:
    """Dialogues and books as texts; a dialogue's turns stand apart as the paper's do."""
    for path in sorted((data / "open/schema-guided-dialogue").glob("train.jsonl.gz")):
        for line in _read(path).splitlines():
            yield _joined(text for _, text in json.loads(line)["turns"])
    for _ in range(TALKS):
        yield from _talks(data)
    for path in sorted((data / "open/books-gutenberg/train").glob("*.txt.gz")):
        text = _read(path)[:BOOK]
        yield from (text[begin : begin + PAGES] for begin in range(0, len(text), PAGES))


def _talks(data: Path) -> Iterator[str]:
    for path in sorted((data / "open/topical-chat").glob("*.jsonl.gz")):
        for line in _read(path).splitlines():
            yield _joined(turn["text"] for turn in json.loads(line)["turns"])
    for path in sorted((data / "open/synthetic-persona-chat").glob("*.csv.gz")):
        for row in csv.DictReader(io.StringIO(_read(path))):
            yield _joined(turn.partition(": ")[2] for turn in row["Best Generated Conversation"].splitlines())


def _joined(turns: Iterable[str]) -> str:
    return SEPARATOR.join(map(dailydialog.tidy, turns))


def _read(path: Path) -> str:
    return gzip.decompress(path.read_bytes()).decode("utf-8")


def write_corpus(texts: Iterable[str], folder: Path) -> None:
    """The documents in random order, in text files of about a million characters."""
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = [*texts]
    random.Random(7).shuffle(shuffled)
    part: list[str] = []
    number = size = 0
    for text in (*shuffled, None):
        if part and (text is None or size > FILE):
            (folder / f"{number:03d}.txt").write_text(BETWEEN.join(part), encoding="utf-8")
            part, number, size = [], number + 1, 0
        if text:
            part.append(text)
            size += len(text)


def build_tokenizer(corpus: Path, folder: Path) -> None:
    """A byte-level BPE over the corpus."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator((path.read_text(encoding="utf-8") for path in sorted(corpus.glob("*.txt"))), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)


def model_config() -> LlamaConfig:
    """4.3 M parameters."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=4,
        num_attention_heads=8,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


class Whole(Stage):
    """All weights of a model, with full context."""

    def __init__(self, model: LlamaForCausalLM, recipe: Recipe, turns: Turns) -> None:
        config = CCMConfig(rule="full", turns=turns.form)
        super().__init__(model, fingerprint_base(model), FullContext(model), config, FULL, recipe, turns)

    def logits(self, layout: Layout) -> Tensor:
        return self.module(layout)

    def _write(self, folder: Path) -> None:
        """In half precision: 9 MB."""
        copy = LlamaForCausalLM(self.base.config).half()
        copy.load_state_dict(self.base.state_dict())
        copy.save_pretrained(folder)
        self.turns.tokenizer.save_pretrained(folder)


def from_scratch(recipe: Recipe, turns: Turns) -> Whole:
    """A model that nothing was trained of before."""
    return Whole(LlamaForCausalLM(model_config()), recipe, turns)


def build(data: Path, runs: Path, output: Path = SMALL, changes: tuple[str, ...] = ()) -> None:
    """Corpus, tokenizer and training in ``runs``, the model into ``output``; goes on where it was."""
    corpus, tokenizer, run = runs / "corpus", runs / "tokenizer", runs / "training"
    if not tokenizer.is_dir():
        write_corpus(documents(data), corpus)
        build_tokenizer(corpus, tokenizer)
    places = (f"model={tokenizer}", f"data.path={corpus}", f"output_dir={run}")
    recipe = load_recipe(Path(__file__).with_suffix(".yaml"), (*places, *changes))
    with progress(recipe, "small") as shown:
        train(recipe, resume=run.is_dir(), report=shown.report, advance=shown.advance, make=from_scratch)
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (output / name).write_bytes((run / name).read_bytes())


def main() -> None:
    """Build the model anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--runs", type=Path, default=Path("runs/small"), help="folder for corpus, log and checkpoints")
    parser.add_argument("--output", type=Path, default=SMALL, help="folder for the model")
    args = parser.parse_args()
    quiet()
    build(args.data, args.runs, args.output)


if __name__ == "__main__":
    with ending():
        main()
