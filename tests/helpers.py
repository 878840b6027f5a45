"""Tiny random models of every family, random conversations, and the two ways to read them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from copies import copied
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Exaone4Config,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    Starcoder2Config,
)

from ccm.core.config import CCMConfig, LoRASettings
from ccm.core.files import load_tensors
from ccm.core.tensor_files import write_file
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample, Step, build_layout
from ccm.engine.memory import Memory

LAYERS = 3  # of the tiny models: the fewest through which a step can see the text of the step before
NO_PATHS = (None, 7, b"bytes", "null\0character", Path("a\0"), "half of a pair \ud83d")
PRODUCTS = 10 * LAYERS  # of matrices, one after another: the depth where a model is float32 itself


def tolerance(
    magnitude: float = 10.0, depth: int = LAYERS, dtype: torch.dtype = torch.float32, safety: float = 56.0
) -> float:
    """How far apart two ways to one number may end: roundings of the largest number, one after another at every depth.

    The order of the sums in a product of matrices, and so their rounding, is the processor's. The tiny models are
    float64, in which that is nothing; but whatever their dtype, the stock models have norms, softmax and rotations in
    float32, and what stands at the edge of a rounding there falls to either side. So the dtype is float32 unless a test
    says else.

    Args:
        magnitude: of the numbers; those of logits are 1 to 10.
        depth: layers that one rounding goes through; 1 for a single operation.
        dtype: of the coarsest numbers on the way.
        safety: roundings of each layer.
    """
    return safety * torch.finfo(dtype).eps * depth * max(1.0, magnitude)


VOCAB, PAD, BOS, EOS = 97, 0, 1, 2
WINDOW = 4  # of the families that slide: shorter than most steps
POSITIONS = 128


@dataclass(frozen=True)
class Row:
    """What a rule promises, N = 2. Entries are those after steps of 3, 5 and 2 tokens, and of the closed memory."""

    name: str
    compresses: str
    open: tuple[int, int, int]
    closed: int
    sink: int  # entries that a sink adds to the closed memory
    reversible: bool = True
    mixes: bool = False
    needs_content: bool = False  # the weights depend on what stands at the COMP tokens, so that mixing needs it
    keeps_text: bool = False
    forgets: bool = False
    adapters: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


TABLE = [
    Row("concat", "step", (2, 4, 6), 6, sink=1, adapters=("gist",)),
    Row("merge", "step", (2, 2, 2), 2, sink=1, reversible=False, mixes=True),
    Row(
        "ema",
        "step",
        (2, 2, 2),
        2,
        sink=1,
        reversible=False,
        mixes=True,
        adapters=("merge",),
        options={"weight": 0.3},
    ),
    Row(
        "gate",
        "step",
        (2, 2, 2),
        2,
        sink=1,
        reversible=False,
        mixes=True,
        needs_content=True,
        options={"bias": 0.5},
    ),
    Row("gist", "context", (3, 8, 10), 2, sink=1),
    Row("full", "never", (3, 8, 10), 10, sink=0, keeps_text=True),
    Row("none", "never", (0, 0, 0), 0, sink=0, forgets=True),
    Row("pos_control", "context", (3, 8, 10), 12, sink=0, keeps_text=True, adapters=("concat", "gist")),
]
RULE_NAMES = tuple(row.name for row in TABLE)
COMPRESSING = tuple(row.name for row in TABLE if row.compresses != "never")
PUBLISHED = ("concat", "merge", "ema", "gist", "full", "none", "pos_control")  # those that the slow oracles know
TOLERANCE = tolerance()  # 2e-4, on logits

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}
_GQA = {**_SIZES, "num_key_value_heads": 2}
_SLIDE = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
_HYBRID = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZES),
    "llama_gqa": lambda: LlamaConfig(**_GQA),
    "mistral": lambda: MistralConfig(**_GQA, sliding_window=None),
    "mistral_window": lambda: MistralConfig(**_GQA, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(**_GQA),
    "qwen2_window": lambda: Qwen2Config(**_GQA, **_SLIDE),
    "qwen3": lambda: Qwen3Config(**_GQA, head_dim=16),
    "gemma3": lambda: Gemma3TextConfig(
        **{**_GQA, "tie_word_embeddings": True},
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=_HYBRID,
    ),
    "phi3": lambda: Phi3Config(**_GQA, sliding_window=None),
    "phi3_window": lambda: Phi3Config(**_GQA, sliding_window=WINDOW),
    "smollm3": lambda: SmolLM3Config(**_GQA, no_rope_layer_interval=2),
    "olmo2": lambda: Olmo2Config(**_GQA),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZES),
    "mixtral": lambda: MixtralConfig(**_GQA, sliding_window=None, num_local_experts=4),
    "qwen3_moe": lambda: Qwen3MoeConfig(
        **_GQA, head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "gemma2": lambda: Gemma2Config(
        **_GQA,
        head_dim=8,
        query_pre_attn_scalar=8,
        attn_logit_softcapping=2.0,
        sliding_window=WINDOW,
        layer_types=_HYBRID,
    ),
    "cohere": lambda: CohereConfig(**_GQA, logit_scale=1.0),
    "cohere2": lambda: Cohere2Config(**_GQA, logit_scale=1.0, sliding_window=WINDOW, layer_types=_HYBRID),
    "glm4": lambda: Glm4Config(**_GQA, head_dim=8, partial_rotary_factor=0.5),
    "exaone4": lambda: Exaone4Config(**_GQA, sliding_window=WINDOW, layer_types=_HYBRID),
    "granite": lambda: GraniteConfig(**_GQA, embedding_multiplier=2.0, residual_multiplier=0.5, logits_scaling=0.5),
    "starcoder2": lambda: Starcoder2Config(**_GQA, sliding_window=None),
    "starcoder2_window": lambda: Starcoder2Config(**_GQA, sliding_window=WINDOW),
    "gpt2": lambda: GPT2Config(**_SIZES, n_inner=48, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "llama4": lambda: Llama4TextConfig(
        **_GQA,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=2,
        interleave_moe_layer_step=2,
        no_rope_layers=[1, 0, 1],
        attention_chunk_size=WINDOW,
        floor_scale=5,
    ),
}
WINDOWED = (
    "mistral_window",
    "qwen2_window",
    "gemma3",
    "phi3_window",
    "gemma2",
    "cohere2",
    "exaone4",
    "starcoder2_window",
    "llama4",
)
EAGER_ONLY = ("gemma2",)  # sdpa has no softcap
ABSOLUTE = ("gpt2",)  # add their positions to the embeddings: keys cannot be moved
KERNELS = [(f, attn) for f in FAMILIES for attn in ("sdpa", "eager") if attn == "eager" or f not in EAGER_ONLY]


def tiny_base(
    family: str = "llama", *, seed: int = 0, attn: str | None = None, dtype: torch.dtype = torch.float64, **sizes: Any
) -> PreTrainedModel:
    """A stock model with weights large enough for logits of several units, so that a tolerance of 2e-4 means a lot.

    It is float64: two ways to one number then differ by less than any tolerance here, and a likeliest token is the same
    one, with whatever kernels a processor has.
    """
    key = repr(("base", family, seed, attn, dtype, sorted(sizes.items())))
    return copied(key, lambda: _made_base(family, seed, attn, dtype, sizes))


def _made_base(family: str, seed: int, attn: str | None, dtype: torch.dtype, sizes: dict[str, Any]) -> PreTrainedModel:
    config = FAMILIES[family]()
    for name, value in sizes.items():
        setattr(config, name, value)
    base = AutoModelForCausalLM.from_config(config, attn_implementation=attn, experts_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in base.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * noise) if parameter.ndim == 1 else parameter.copy_(0.25 * noise)
    base.generation_config.eos_token_id = None
    base.generation_config.pad_token_id = PAD
    return base.to(dtype).eval()


def ccm_config(rule: str = "concat", **settings: Any) -> CCMConfig:
    """A config with a small LoRA without dropout."""
    return CCMConfig(rule=rule, **{"lora": LoRASettings(r=4, alpha=16, dropout=0.0), **settings})


def tiny_model(
    rule: str = "concat",
    *,
    family: str = "llama",
    attn: str | None = None,
    seed: int = 0,
    base: PreTrainedModel | None = None,
    **settings: Any,
) -> CCMModel:
    """A model whose adapter matters: LoRA B is not zero, COMP embeddings are random, and so is what the rule owns."""

    def make() -> CCMModel:
        model = CCMModel(tiny_base(family, attn=attn, seed=seed) if base is None else base, config).eval()
        randomize_adapter(model, seed + 1)
        return model

    config = ccm_config(rule, **settings)
    if base is not None or config.embeddings == "table":  # a table has a hook of its own, which copies have not
        return make()
    return copied(repr(("model", family, attn, seed, config)), make)


def randomize_adapter(model: CCMModel, seed: int) -> None:
    """Fill all that is trained with noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.adapter_tensors().values():
            tensor.copy_(0.25 * torch.randn(tensor.shape, generator=generator))


def make_sample(lengths: Sequence[int], query: int, seed: int = 0, head: int = 0) -> Sample:
    """Steps of those lengths and a query, of random ids among which pad, BOS and EOS ids occur; and a head."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.choice((PAD, BOS, EOS)) if rng.random() < 0.1 else rng.randrange(VOCAB) for _ in range(count)]

    return Sample([Step(ids(length)) for length in lengths], Step(ids(query)), ids(head))


def samples(
    max_rows: int = 2, min_steps: int = 1, max_steps: int = 4, longest_head: int = 0
) -> st.SearchStrategy[list[Sample]]:
    """Batches of rows with different numbers and lengths of steps, and heads."""
    row = st.builds(
        make_sample,
        st.lists(st.integers(1, 7), min_size=min_steps, max_size=max_steps),
        st.integers(1, 5),
        st.integers(0, 1 << 16),
        st.integers(0, longest_head),
    )
    return st.lists(row, min_size=1, max_size=max_rows)


def layout_of(model: CCMModel, rows: Sequence[Sample]) -> Any:
    """The layout of a batch under the model's own settings."""
    return build_layout(rows, model.config, model.rule, pad_id=PAD)


@torch.no_grad()
def parallel_logits(model: CCMModel, rows: Sequence[Sample]) -> list[Tensor]:
    """Per row, logits (query, V) of its query from one parallel pass over the batch."""
    logits = model(layout_of(model, rows)).logits
    return [logits[i, -len(row.query.ids) :] for i, row in enumerate(rows)]


def empty_memory(model: Any, rows: Sequence[Sample]) -> Any:
    """The memory of rows before their first steps."""
    if not any(row.head for row in rows):
        return model.empty_memory(len(rows))
    return model.empty_memory(len(rows), [model.head(row.head) for row in rows])


@torch.no_grad()
def compress_all(model: CCMModel, sample: Sample, memory: Memory | None = None) -> Memory:
    """The memory of a row, step by step."""
    memory = empty_memory(model, [sample]) if memory is None else memory
    for step in sample.steps:
        memory = model.compress(memory, torch.tensor([step.ids]))
    return memory


@torch.no_grad()
def online_logits(model: CCMModel, sample: Sample) -> Tensor:
    """Logits (query, V) of a row's query, read from the memory that its steps leave one by one."""
    return model.read(compress_all(model, sample), torch.tensor([sample.query.ids]))[0]


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """ids (B, T) and mask (B, T) of rows of different lengths; the padding holds an id that is no pad id."""
    width = max(map(len, rows))
    ids = torch.tensor([[5] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


@torch.no_grad()
def compress_batch(model: CCMModel, rows: Sequence[Sample], memory: Memory | None = None) -> Memory:
    """The memory of a batch whose rows have equally many steps, read together with left padding."""
    memory = empty_memory(model, rows) if memory is None else memory
    for steps in zip(*(row.steps for row in rows), strict=True):
        memory = model.compress(memory, *pad_left([step.ids for step in steps]))
    return memory


def greedy(model: CCMModel, memory: Memory, rows: Sequence[Sequence[int]], count: int, **options: Any) -> Tensor:
    """(B, count) greedy continuations of left-padded prompts that follow an open memory."""
    ids, mask = pad_left(rows)
    return model.generate(model.close(memory), ids, mask, max_new_tokens=count, do_sample=False, **options)


@torch.no_grad()
def greedy_by_parallel(model: CCMModel, sample: Sample, count: int) -> list[int]:
    """The same continuation of one row, by a whole parallel pass for every token."""
    ids = list(sample.query.ids)
    for _ in range(count):
        ids.append(int(parallel_logits(model, [replace(sample, query=Step(ids))])[0][-1].argmax()))
    return ids[len(sample.query.ids) :]


def assert_close(actual: Tensor, expected: Tensor, *, depth: int = LAYERS, dtype: torch.dtype = torch.float32) -> None:
    """Equal within :func:`tolerance` of the largest number; shapes, dtypes and NaN count."""
    most = expected.detach().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance(most, depth, dtype))


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], object]) -> None:
    """Save a file of ours again after a change of its tensors and manifest, with the digest that then belongs to it."""
    tensors, metadata = load_tensors(path)
    ((kind, text),) = metadata.items()
    manifest = json.loads(text)
    del manifest["digest"]
    change(tensors, manifest)
    write_file(path, kind, tensors, manifest)


def same(a: Memory, b: Memory) -> bool:
    """Whether two memories hold the same numbers."""
    return a.offset.equal(b.offset) and all(torch.equal(x, y) for x, y in zip(a.keys, b.keys, strict=True))
