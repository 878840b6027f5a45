"""Tokenizers of tests, made on the spot, and chat templates of several characters."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TOOL = "<tool>"  # a token that the tokenizer does not hold for special
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>", "<think>", "</think>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
# Strips the thoughts of earlier replies, and shows an empty one before the last.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Opens a thought for the model to go on with, and shows none in replies of the past.
OPEN_THOUGHT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content.split('</think>')[-1] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
BARE = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


def tokenizer(
    template: str | None = None,
    *,
    bos: str | None = "<s>",
    eos: str = "</s>",
    adds_bos: bool = False,
    merges: bool = False,
    special: Sequence[str] = SPECIAL,
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: a token a byte, and special ones; with ``merges``, an "a" and what follows are one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [("a", letter) for letter in alphabet if letter != "a"] if merges else []
    names = [*alphabet, *map("".join, pairs)]
    raw = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(token, special=True) for token in special])
    raw.add_tokens([AddedToken(TOOL)])
    if adds_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token=bos, eos_token=eos, chat_template=template)


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of SentencePiece: a space goes before whatever begins a text."""
    letters = ["\u2581", *"abcdefghijklmnopqrstuvwxyzABSU:\n.", "<unk>", "<s>", "</s>"]
    raw = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    raw.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def fallback_tokenizer(template: str | None = None, special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer as of Llama 2: spaces are letters, one at the start is dropped, unknown characters are bytes."""
    names = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        *"\u2581abcdefghijklmnopqrstuvwxyz.,:",
        "\u2581\u2581",
    ]
    raw = Tokenizer(
        models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens([AddedToken(token, special=True) for token in ("<s>", "</s>", *special)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def unigram_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as of T5: its control tokens are pieces of its vocabulary too, and texts are normalized."""
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", *"abcdefghijklmnopqrstuvwxyz.,:<>/"]
    raw = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
