"""Build the built-in model from seeds: tokenizer, base model, compression adapters.

The base is trained from scratch on whole conversations. Some batches have full context; the others have a memory, so
that the base learns to read from few entries. The COMP embeddings and gates of this training only initialize the
adapters, which are trained on the base as on any other base.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ccm.chat.turns import Turns
from ccm.cli.commands.progress import progress
from ccm.cli.console import ending, quiet
from ccm.core.config import CCMConfig, LoRASettings
from ccm.core.rules import make_rule
from ccm.data.builtin.dialogues import MadeUp
from ccm.data.builtin.generator import corpus
from ccm.engine.adapter_files import read_adapter, write_adapter
from ccm.engine.decoder import CCMModel
from ccm.engine.fingerprint import fingerprint_base
from ccm.engine.layout import Layout
from ccm.models.builtin import START, TURNS, WEIGHTS
from ccm.training.batches import Batch
from ccm.training.loop import train
from ccm.training.recipe import Recipe, load_recipe
from ccm.training.stages import Stage

RECIPE = Path(__file__).with_name("base.yaml")
VOCABULARY = 3072
ADAPTERS: dict[str, tuple[str, ...]] = {  # changes to the recipe "builtin"
    "concat": (),
    "gate": ("adapter.rule=gate", "adapter.n_tok=4", "seed=2"),
    "merge": ("adapter.rule=merge", "adapter.n_tok=4", "seed=2", "max_steps=4000"),
}


def build_tokenizer(folder: Path) -> None:
    """Train a byte-level BPE on the training split of the dialogues, with invented names, and save it to the folder.

    With real names, every name in the training data would become a single token. Only unseen names would consist of
    several tokens, and the model would not learn to recall such names.
    """
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", TURNS.separator, TURNS.reply_separator]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rng, made_up = random.Random(5), MadeUp(rate=1.0, spliced=0.7)
    dialogues = (made_up(rng, dialogue) for dialogue in corpus(seed=1, dialogues=20_000))
    raw.train_from_iterator((line for d in dialogues for t in d.turns for line in (t.user, t.reply)), trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def base_config() -> LlamaConfig:
    """The sizes of the built-in base model: 2.36 M parameters."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=3072,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


class Pretraining(Stage):
    """Trains all weights of the base from scratch; draws a rule for every batch."""

    RULES = (("full", 1, 0.35), ("concat", 2, 0.3), ("gate", 4, 0.35))  # name, N, share of batches

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        config = CCMConfig(rule="gate", n_tok=4, lora=LoRASettings(r=0), turns=turns.form, base_model="..")
        self.model = CCMModel(LlamaForCausalLM(base_config()), config)
        self.model.base.requires_grad_(True)
        self.model.to(recipe.device or "cpu")
        self.rules = {name: make_rule(name) for name, *_ in self.RULES} | {"gate": self.model.rule}
        self.seed = recipe.seed
        super().__init__(self.model.base, self.model.base_id, self.model, config, self.model.rule, recipe, turns)

    def draw(self, number: int) -> tuple[str, int]:
        """The rule and N of the batch with that number."""
        shares = [share for *_, share in self.RULES]
        ((name, n_tok, _),) = random.Random(f"{self.seed} rule {number}").choices(self.RULES, shares)
        return name, n_tok

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        name, n_tok = self.draw(batch.number)
        self.rule = self.model.rule = self.rules[name]
        return super().sums(replace(batch, n_tok=n_tok))

    def logits(self, layout: Layout) -> Tensor:
        return self.module(layout).logits

    def _write(self, folder: Path) -> None:
        """Write a copy in float16 (5 MB), which the adapters are then trained on."""
        copy = LlamaForCausalLM(self.base.config).half()
        copy.load_state_dict(self.base.state_dict())
        copy.save_pretrained(folder)
        self.model.base_id = fingerprint_base(copy)
        self.model.save_pretrained(folder / START.name)
        self.turns.tokenizer.save_pretrained(folder)


def build_base(output: Path, runs: Path, changes: tuple[str, ...] = ()) -> None:
    """Build the tokenizer and the base model in ``output / "base"``; an interrupted training resumes."""
    folder = output / "base"
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer(folder)
    places = (f"model={folder}", f"output_dir={runs / 'base'}")
    recipe = load_recipe(RECIPE, (*places, *changes))
    with progress(recipe) as shown:
        train(recipe, resume=(runs / "base").is_dir(), report=shown.report, advance=shown.advance, make=Pretraining)
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (folder / name).write_bytes((runs / "base" / name).read_bytes())
    shutil.copytree(runs / "base" / START.name, folder / START.name, dirs_exist_ok=True)


def build_adapter(name: str, output: Path, runs: Path, changes: tuple[str, ...] = (), threads: int = 1) -> None:
    """Train a shipped adapter into ``output / name``; an interrupted training resumes."""
    quiet()
    torch.set_num_threads(threads)
    turns = (f"turns.separator={TURNS.separator}", f"turns.reply_separator={TURNS.reply_separator}")
    base = output / "base"
    places = (f"model={base}", f"init_adapter={base / START.name}", f"output_dir={runs / name}")
    recipe = load_recipe("builtin", (*places, *turns, *ADAPTERS[name], *changes))
    with progress(recipe, name) as shown:
        train(recipe, resume=(runs / name).is_dir(), report=shown.report, advance=shown.advance)
    adapter = read_adapter(runs / name)
    write_adapter(replace(adapter, config=replace(adapter.config, base_model="../base")), output / name)


def main() -> None:
    """Build everything or a part of it, training the adapters in parallel; an interrupted build resumes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for base and adapters")
    parser.add_argument("--runs", type=Path, default=Path("runs/builtin"), help="folder for logs and checkpoints")
    parser.add_argument("--only", choices=["base", "adapters"], help="only this part")
    parser.add_argument("--set", nargs="*", default=[], help="KEY=VALUE over the recipes, such as mixed_precision=true")
    args = parser.parse_args()
    changes = tuple(args.set)
    quiet()
    if args.only != "adapters":
        build_base(args.output, args.runs, changes)
    if args.only != "base":
        threads = max(1, (os.cpu_count() or 1) // len(ADAPTERS))
        work = partial(build_adapter, output=args.output, runs=args.runs, changes=changes, threads=threads)
        with ProcessPoolExecutor(len(ADAPTERS), mp_context=get_context("spawn")) as pool:
            list(pool.map(work, ADAPTERS))


if __name__ == "__main__":
    with ending():
        main()
