"""Build the built-in model from seeds: tokenizer, base model, compression adapters."""

from __future__ import annotations

import argparse
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ccm.builtin.generator import HELD_OUT, KINDS, Dialogue, Turn, corpus, training_dialogue
from ccm.config import CCMConfig, TurnFormat
from ccm.layout import IGNORE, Layout, Sample, Step, build_layout
from ccm.rules import make_rule
from ccm.turns import Turns, make_turns

TURNS = TurnFormat(separator="<|user|>", reply_separator="<|assistant|>")
VOCABULARY = 1024
MAX_OFFSET = 2048  # of the first token in training, so that depth is not a matter of positions
_SYLLABLES = [c + v for c in "b d f g h j k l m n p r s t v w z br ch dr gr kl sh st th tr".split() for v in "aeiou"]
_ENDINGS = ["", "", "n", "r", "s", "l", "x", "nd", "rt", "th"]
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
    """The sizes of the built-in base model: 1.97 M parameters."""
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


def invented(rng: random.Random, dialogue: Dialogue, rate: float) -> Dialogue:
    """Some names and cities replaced by made-up ones, all through the dialogue: copying is learned, not a list."""
    told = {value for turn in dialogue.turns for kind, value in turn.told if kind in _NAMED}
    swaps = {value: _made_up(rng) for value in sorted(told) if rng.random() < rate}
    if not swaps:
        return dialogue
    swaps |= {old.lower(): new.lower() for old, new in swaps.items()}
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, swaps))})\b")

    def swap(text: str) -> str:
        return pattern.sub(lambda match: swaps[match[0]], text)

    return replace(dialogue, turns=tuple(replace(t, user=swap(t.user), reply=swap(t.reply)) for t in dialogue.turns))


def _made_up(rng: random.Random) -> str:
    while True:
        word = "".join(rng.choices(_SYLLABLES, k=rng.choice((1, 2, 2, 3)))) + rng.choice(_ENDINGS)
        if word.title() not in HELD_OUT and len(word) > 2:
            return word.title()


def to_sample(dialogue: Dialogue, turns: Turns) -> Sample:
    """A dialogue as steps; every reply, and the EOS after it, is a target."""
    steps = [turns.exchange(t.user, t.reply, first=i == 0) for i, t in enumerate(dialogue.turns)]
    return Sample(steps[:-1], steps[-1])


def batches(seed: int, turns: Turns, *, tokens: int, long_share: float, rate: float = 0.3) -> Iterator[list[Sample]]:
    """Endless batches of about ``tokens`` tokens, of dialogues of 4-16 turns and, at that share, of 17-48 turns.

    Dialogues of like length go together: they are drawn in pools of 16 batches, sorted, and cut.
    """
    rng = random.Random(seed)
    while True:
        cut: list[list[Sample]] = []
        for shortest, longest, share in ((4, 16, 1.0 - long_share), (17, 48, long_share)):
            pool: list[Sample] = []
            while sum(map(_length, pool)) < 16 * tokens * share:
                dialogue = training_dialogue(rng, rng.randint(shortest, longest))
                pool.append(to_sample(invented(rng, dialogue, rate), turns))
            pool.sort(key=_length)
            cut += _cut(pool, tokens)
        rng.shuffle(cut)
        yield from cut


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
    parameters: list[torch.nn.Parameter],
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
            print(f"{name}: step {step}/{steps}  loss {mean:.4f}  {spent:.0f} s, {spent / step * (steps - step):.0f} s left", flush=True)
        if step % 500 == 0 or step == steps:
            save()


def train_base(folder: Path, tokenizer: PreTrainedTokenizerFast, *, steps: int, tokens: int, seed: int) -> None:
    """The base model, from scratch, with every reply of whole dialogues in full context; saved in half precision."""
    torch.manual_seed(seed)
    base = LlamaForCausalLM(base_config())
    turns = make_turns(tokenizer, TURNS)
    config = CCMConfig(rule="full")
    rule = make_rule("full")
    offsets = torch.Generator().manual_seed(seed)

    def loss_of(samples: list[Sample]) -> torch.Tensor:
        layout = build_layout(samples, config, rule, tokenizer.pad_token_id)
        shift = torch.randint(0, MAX_OFFSET + 1, (len(samples), 1), generator=offsets)
        hidden = base.model(
            layout.ids,
            attention_mask=(layout.blocks >= 0).long(),
            position_ids=layout.positions + shift,
            use_cache=False,
        ).last_hidden_state
        wanted = layout.targets != IGNORE
        return cross_entropy(base.lm_head(hidden[wanted]), layout.targets[wanted])

    data = batches(seed, turns, tokens=tokens, long_share=0.2)
    train([*base.parameters()], loss_of, data, steps=steps, lr=3e-3, weight_decay=0.05, name="base", save=lambda: save_half(base, folder))


def save_half(base: LlamaForCausalLM, folder: Path) -> None:
    """Write a copy in half precision: 4 MB, and what the adapters are then trained on."""
    copy = LlamaForCausalLM(base.config).half()
    copy.load_state_dict(base.state_dict())
    copy.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--tokens", type=int, default=4096)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(args.output)
    train_base(args.output, tokenizer, steps=args.steps, tokens=args.tokens, seed=1)


if __name__ == "__main__":
    main()
