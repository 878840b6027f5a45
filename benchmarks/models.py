"""The models that the benchmarks run, stock and with our seams, and the texts they read. All weights are random."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from ccm.core.config import CCMConfig, LoRASettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.memory import Memory

VOCAB = 2000
MODEL = "Llama, hidden 256, 4 layers, 4 heads, intermediate 688, vocabulary 2,000, float32, random weights"
CONFIG = LlamaConfig(
    vocab_size=VOCAB,
    hidden_size=256,
    intermediate_size=688,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=4096,
    attn_implementation="sdpa",
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,
)
_1B = {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16_384,
    "tie_word_embeddings": True,
}
_8B = _1B | {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "tie_word_embeddings": False}
_TINY = _1B | {"vocab_size": 4096, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
_TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
SIZES: dict[str, tuple[PretrainedConfig, torch.dtype]] = {
    "small": (CONFIG, torch.float32),
    "1b": (LlamaConfig(**_1B), torch.bfloat16),
    "1b, windows": (MistralConfig(**_1B, sliding_window=1024), torch.bfloat16),
    "7b": (LlamaConfig(max_position_embeddings=4096), torch.bfloat16),  # LLaMA-7B
    "8b": (LlamaConfig(**_8B), torch.bfloat16),  # Llama 3.1 8B
    "tiny": (LlamaConfig(**_TINY), torch.float32),
    "tiny, windows": (MistralConfig(**_TINY, sliding_window=32), torch.float32),
}
ROWS, STEPS, STEP_TOKENS, QUERY_TOKENS, TARGET_TOKENS = 4, 8, 54, 48, 24

CONCAT = CCMConfig(rule="concat", n_tok=2, recurrent=True, lora=LoRASettings(dropout=0.0))
MERGE = CCMConfig(rule="merge", n_tok=8, recurrent=True, lora=LoRASettings(dropout=0.0))
FULL = CCMConfig(rule="full", lora=LoRASettings(dropout=0.0))


def stock_model(size: str = "small", device: str = "cpu") -> PreTrainedModel:
    """A stock model with sdpa attention; the same weights at every call."""
    config, dtype = SIZES[size]
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=dtype, attn_implementation="sdpa")
    return model.eval()


def ccm_model(config: CCMConfig, size: str = "small", device: str = "cpu") -> CCMModel:
    """The same model with our seams, for use; ``train()`` it to train."""
    return CCMModel(stock_model(size, device), config).eval()


def with_random_adapter(model: CCMModel) -> CCMModel:
    """The model, in training: in a fresh adapter most gradients are zero."""
    with torch.no_grad():
        for tensor in model.adapter_tensors().values():
            tensor.normal_(std=0.02)
    return model.train()


def random_ids(rows: int, tokens: int, seed: int = 0) -> Tensor:
    """(rows, tokens) random ids; none is the padding id."""
    return torch.randint(3, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def training_samples(rows: int = ROWS, steps: int = STEPS, step_tokens: int = STEP_TOKENS) -> list[Sample]:
    """The batch to train on: every row has its steps, and a query whose last tokens are targets."""
    ids = random_ids(rows, steps * step_tokens + QUERY_TOKENS + 1)
    return [_sample(row, step_tokens) for row in ids.tolist()]


def _sample(ids: list[int], step_tokens: int) -> Sample:
    context = len(ids) - QUERY_TOKENS - 1
    steps = [Step(ids[i : i + step_tokens]) for i in range(0, context, step_tokens)]
    untrained = [IGNORE] * (QUERY_TOKENS - TARGET_TOKENS)
    return Sample(steps, Step(ids[context:-1], untrained + ids[-TARGET_TOKENS:]))


def remember(model: CCMModel, steps: int, tokens: int = STEP_TOKENS) -> Memory:
    """The memory of ``steps`` steps of ``tokens`` random tokens, of one conversation."""
    with torch.no_grad():
        memory = model.empty_memory()
        for number in range(steps):
            memory = model.compress(memory, random_ids(1, tokens, seed=number))
    return memory


def stock_cache(memory: Memory) -> DynamicCache:
    """A stock cache that holds the memory's own tensors."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(memory.keys, memory.values, strict=True)):
        cache.update(key, value, layer)
    return cache
