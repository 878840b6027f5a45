"""A tiny random encoder-decoder, and one in a folder with the built-in model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import EOS, PAD, VOCAB
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from ccm.core.errors import StackError
from ccm.engine.stack import ENCODER_OLDEST, check_versions
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer


def needs_t5() -> None:
    """Skip a test where the libraries are too old for T5, and for no other reason."""
    try:
        check_versions(ENCODER_OLDEST, "T5")
    except StackError as error:
        pytest.skip(str(error))


def tiny_t5(attn: str = "sdpa", vocab: int = VOCAB, scale: float = 0.25) -> PreTrainedModel:
    """Weights large enough for logits of several units; three layers of encoder, two of decoder; no dropout."""
    needs_t5()
    config = T5Config(
        vocab_size=vocab,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    base = T5ForConditionalGeneration._from_config(config, attn_implementation=attn)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in base.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.ndim == 1 else parameter.copy_(scale * noise)
    base.generation_config.eos_token_id = None
    return base.double().eval()


def write_t5(folder: Path) -> Path:
    """A base model that can be loaded."""
    tiny_t5(vocab=3072, scale=0.15).save_pretrained(folder)
    load_tokenizer(WEIGHTS / "base").save_pretrained(folder)
    return folder
