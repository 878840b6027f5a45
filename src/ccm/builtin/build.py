"""Build the built-in model from seeds: tokenizer, base model, compression adapters."""

from __future__ import annotations

import argparse
import math
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ccm.base import load_base
from ccm.builtin import WEIGHTS, words
from ccm.builtin.generator import HELD_OUT, Dialogue, corpus, recall_dialogue, training_dialogue
from ccm.config import CCMConfig, LoRASettings, TurnFormat
from ccm.console import quiet
from ccm.layout import IGNORE, Sample, Step, build_layout
from ccm.model import CCMModel
from ccm.rules import make_rule
from ccm.turns import Turns, make_turns

TURNS = TurnFormat(separator="<|user|>", reply_separator="<|assistant|>")
VOCABULARY = 3072  # the words of the dialogues whole: a value in pieces is hard to carry in a few entries
POOL = 16  # batches whose dialogues are drawn and sorted together
MAX_OFFSET = 2048  # of the first token in training, so that depth is not a matter of positions
_ONSETS = (*"bdfghjklmnprstvwz", "br", "ch", "dr", "gr", "kl", "sh", "st", "th", "tr")
_SYLLABLES = [onset + vowel for onset in _ONSETS for vowel in "aeiou"]
_ENDINGS = ["", "", "n", "r", "s", "l", "x", "nd", "rt", "th"]
_REAL = [word for word in words.NAMES + words.CITIES if word not in HELD_OUT and " " not in word]
_NAMED = ("name", "home", "sister", "brother", "friend")


def build_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the training split of the dialogues; saved to the folder."""
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
    lines = (line for d in corpus(seed=1, dialogues=20_000) for t in d.turns for line in (t.user, t.reply))
    raw.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


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


def invented(rng: random.Random, dialogue: Dialogue, rate: float, spliced: float) -> Dialogue:
    """Some names and cities replaced by made-up ones, all through the dialogue: copying is learned, not a list."""
    told = {value for turn in dialogue.turns for kind, value in turn.told if kind in _NAMED}
    swaps = {value: _made_up(rng, spliced) for value in sorted(told) if rng.random() < rate}
    if not swaps:
        return dialogue
    swaps |= {old.lower(): new.lower() for old, new in swaps.items()}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, swaps))})\b")

    def swap(text: str) -> str:
        return pattern.sub(lambda match: swaps[match[0]], text)

    return replace(dialogue, turns=tuple(replace(t, user=swap(t.user), reply=swap(t.reply)) for t in dialogue.turns))


def _made_up(rng: random.Random, spliced: float) -> str:
    """The beginning of one real word and the end of another or, but for a share of ``spliced``, syllables."""
    while True:
        if spliced and rng.random() < spliced:
            one, two = rng.choices(_REAL, k=2)
            word = one[: rng.randint(1, 4)] + two[-rng.randint(2, 5) :]
        else:
            word = "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(_ENDINGS)
        if word.title() not in HELD_OUT and len(word) > 2:
            return word.title()


def to_sample(dialogue: Dialogue, turns: Turns, *, only_questions: bool = False) -> Sample:
    """A dialogue as steps; every reply (or every reply to a question), and the EOS after it, is a target."""
    steps = []
    for i, turn in enumerate(dialogue.turns):
        step = turns.exchange(turn.user, turn.reply, first=i == 0)
        steps.append(step if turn.asked or not only_questions else Step(step.ids))
    return Sample(steps[:-1], steps[-1])


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a schedule and dialogues of its own.

    Attributes:
        steps: optimizer steps.
        lr: peak learning rate.
        seed: of the dialogues and their offsets.
        longest: the short dialogues have 4 to so many turns.
        long_share: share of the tokens that comes from dialogues of 17 to 48 turns instead.
        rate: share of the names and cities that are made up.
        spliced: share of these that are made of two real ones, not of syllables.
        asking: share of the turns that are questions.
        dense: share of the short dialogues that first tell 2 to 9 facts, and then ask for them.
        ramp: steps over which ``longest`` is reached, from 4 turns on.
    """

    steps: int
    lr: float
    seed: int
    longest: int
    long_share: float
    rate: float
    spliced: float = 0.5
    asking: float = 0.42
    dense: float = 0.0
    ramp: int = 0


def batches(phase: Phase, turns: Turns, *, tokens: int, only_questions: bool = False) -> Iterator[list[Sample]]:
    """Endless batches of about ``tokens`` tokens, of dialogues of like length: they are drawn in pools and sorted.

    Args:
        phase: which dialogues.
        turns: how they become tokens.
        tokens: of a batch, padding included.
        only_questions: whether replies to questions alone are targets.
    """
    rng, given = random.Random(phase.seed), 0
    while True:
        longest = phase.longest if given >= phase.ramp else 4 + (phase.longest - 4) * given // phase.ramp
        cut: list[list[Sample]] = []
        for draw, share in (
            (partial(_short, phase, longest), 1.0 - phase.long_share),
            (lambda rng: training_dialogue(rng, rng.randint(17, 48), asking=phase.asking), phase.long_share),
        ):
            pool: list[Sample] = []
            while sum(map(_length, pool)) < POOL * tokens * share:
                dialogue = invented(rng, draw(rng), phase.rate, phase.spliced)
                pool.append(to_sample(dialogue, turns, only_questions=only_questions))
            cut += _cut(sorted(pool, key=_length), tokens)
        cut = [batch for batch in cut if any(map(_teaches, batch))]
        rng.shuffle(cut)
        yield from cut
        given += len(cut)


def _short(phase: Phase, longest: int, rng: random.Random) -> Dialogue:
    if phase.dense and rng.random() < phase.dense:
        return _dense(rng)
    return training_dialogue(rng, rng.randint(4, longest), asking=phase.asking)


def _dense(rng: random.Random) -> Dialogue:
    facts = rng.randint(2, 9)
    questions, lines = min(facts, rng.randint(2, 6)), facts + rng.randint(0, 2)
    return recall_dialogue(rng, lines + questions, facts, questions, split="train")


def _teaches(sample: Sample) -> bool:
    return any(target != IGNORE for step in (*sample.steps, sample.query) for target in step.targets)


def _length(sample: Sample) -> int:
    return sum(len(step.ids) for step in (*sample.steps, sample.query))


def _cut(pool: list[Sample], tokens: int) -> list[list[Sample]]:
    cut: list[list[Sample]] = [[]]
    for sample in pool:
        if cut[-1] and (len(cut[-1]) + 1) * _length(sample) > tokens:
            cut.append([])
        cut[-1].append(sample)
    return cut


def train(
    parameters: list[torch.Tensor],
    loss_of: Callable[[list[Sample]], torch.Tensor],
    data: Iterator[list[Sample]],
    *,
    steps: int,
    lr: float,
    weight_decay: float,
    name: str,
    save: Callable[[], None],
) -> None:
    """AdamW with linear warm-up and a cosine to a twentieth; prints a line every 50 steps, saves every 500."""
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    warmup = max(1, steps // 30)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warmup, 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * i / steps)))
    )
    begun, mean = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        loss = loss_of(next(data))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        mean = loss.item() if step == 1 else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0 or step == steps:
            spent = time.monotonic() - begun
            left = spent / step * (steps - step)
            print(f"{name}: step {step}/{steps}  loss {mean:.4f}  {spent:.0f} s, {left:.0f} s left", flush=True)
        if step % 500 == 0 or step == steps:
            save()


def train_phases(
    phases: tuple[Phase, ...],
    parameters: list[torch.Tensor],
    loss_of: Callable[[list[Sample], torch.Tensor], torch.Tensor],
    turns: Turns,
    *,
    tokens: int,
    only_questions: bool,
    weight_decay: float,
    name: str,
    save: Callable[[], None],
) -> None:
    """One phase after the other; ``loss_of`` gets the samples and the position (B, 1) of each row's first token."""
    for phase in phases:
        offsets = torch.Generator().manual_seed(phase.seed)

        def loss(samples: list[Sample], offsets: torch.Generator = offsets) -> torch.Tensor:
            return loss_of(samples, torch.randint(0, MAX_OFFSET + 1, (len(samples), 1), generator=offsets))

        data = batches(phase, turns, tokens=tokens, only_questions=only_questions)
        train(parameters, loss, data, steps=phase.steps, lr=phase.lr, weight_decay=weight_decay, name=name, save=save)


BASE_PHASES = (
    Phase(steps=3000, lr=3e-3, seed=1, longest=16, long_share=0.2, rate=0.25, spliced=0.0),
    Phase(steps=1400, lr=2.5e-3, seed=11, longest=16, long_share=0.2, rate=0.5),
)


def train_base(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tokens: int) -> None:
    """The base model, from scratch, with every reply of whole dialogues in full context; saved in half precision."""
    torch.manual_seed(BASE_PHASES[0].seed)
    base = LlamaForCausalLM(base_config())
    config = CCMConfig(rule="full")
    rule = make_rule("full")

    def loss_of(samples: list[Sample], start: torch.Tensor) -> torch.Tensor:
        layout = build_layout(samples, config, rule, tokenizer.pad_token_id)
        hidden = base.model(
            layout.ids,
            attention_mask=(layout.blocks >= 0).long(),
            position_ids=layout.positions + start,
            use_cache=False,
        ).last_hidden_state
        wanted = layout.targets != IGNORE
        return cross_entropy(base.lm_head(hidden[wanted]), layout.targets[wanted])

    train_phases(
        BASE_PHASES,
        [*base.parameters()],
        loss_of,
        make_turns(tokenizer, TURNS),
        tokens=tokens,
        only_questions=False,
        weight_decay=0.05,
        name="base",
        save=partial(save_half, base, folder),
    )


def save_half(base: LlamaForCausalLM, folder: Path) -> None:
    """Write a copy in half precision: 5 MB, and what the adapters are then trained on."""
    copy = LlamaForCausalLM(base.config).half()
    copy.load_state_dict(base.state_dict())
    copy.save_pretrained(folder)


@dataclass(frozen=True)
class AdapterRecipe:
    """One of the shipped adapters.

    Attributes:
        name: of its folder.
        config: rule, N, LoRA.
        phases: of its training.
    """

    name: str
    config: CCMConfig
    phases: tuple[Phase, ...]


ADAPTERS = (
    AdapterRecipe(
        "concat",
        CCMConfig(rule="concat", n_tok=2, lora=LoRASettings(r=64, alpha=128, dropout=0.0), turns=TURNS),
        (Phase(steps=2000, lr=2e-3, seed=2, longest=14, long_share=0.1, rate=0.05, asking=0.55, ramp=700),),
    ),
    AdapterRecipe(
        "merge",
        CCMConfig(rule="merge", n_tok=4, lora=LoRASettings(r=64, alpha=128), turns=TURNS),
        (
            Phase(steps=500, lr=2e-3, seed=2, longest=14, long_share=0.0, rate=0.05, asking=0.55, ramp=500),
            Phase(steps=1900, lr=2e-3, seed=4, longest=14, long_share=0.0, rate=0.05, dense=0.7),
        ),
    ),
)


def train_adapter(folder: Path, recipe: AdapterRecipe, *, tokens: int, threads: int) -> None:
    """A compression adapter on the base in ``folder``: replies to all questions of a dialogue, in one parallel pass."""
    quiet()
    torch.set_num_threads(threads)
    torch.manual_seed(recipe.phases[0].seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "base")
    model = CCMModel(load_base(folder / "base", device="cpu"), replace(recipe.config, base_model="../base")).train()

    def loss_of(samples: list[Sample], start: torch.Tensor) -> torch.Tensor:
        layout = build_layout(samples, model.config, model.rule, tokenizer.pad_token_id)
        loss = model(replace(layout, positions=layout.positions + start)).loss
        assert loss is not None
        return loss

    train_phases(
        recipe.phases,
        [*model.adapter_tensors().values()],
        loss_of,
        make_turns(tokenizer, TURNS),
        tokens=tokens,
        only_questions=True,
        weight_decay=0.0,
        name=recipe.name,
        save=partial(model.save_pretrained, folder / recipe.name),
    )


def main() -> None:
    """Build everything, or a part of it, into a folder; the adapters are trained side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder for base and adapters")
    parser.add_argument("--only", choices=["base", "adapters"], help="only this part")
    parser.add_argument("--tokens", type=int, default=4096, help="of a batch")
    args = parser.parse_args()
    quiet()
    base = args.output / "base"
    base.mkdir(parents=True, exist_ok=True)
    if args.only != "adapters":
        train_base(base, build_tokenizer(base), tokens=args.tokens)
    if args.only != "base":
        threads = max(1, (os.cpu_count() or 1) // len(ADAPTERS))
        work = partial(train_adapter, args.output, tokens=args.tokens, threads=threads)
        with ProcessPoolExecutor(len(ADAPTERS), mp_context=get_context("spawn")) as pool:
            list(pool.map(work, ADAPTERS))


if __name__ == "__main__":
    main()
