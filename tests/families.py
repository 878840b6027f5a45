"""What is checked of every family of models; as a program, `python tests/families.py` writes docs/families.md of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from helpers import (
    FAMILIES,
    TOLERANCE,
    VOCAB,
    WINDOW,
    WINDOWED,
    compress_all,
    compress_batch,
    greedy,
    greedy_by_parallel,
    make_sample,
    online_logits,
    pad_left,
    parallel_logits,
    tiny_base,
    tiny_model,
)
from torch import Tensor
from transformers import PreTrainedModel

from ccm.core.errors import UnsupportedModelError
from ccm.engine.attention import EAGER
from ccm.engine.families import PROJECTIONS
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
# Steps, query and whole context all run beyond the window.
ROWS = [make_sample([3, 9, 2], 7, seed=1), make_sample([6, 1, 8], 2, seed=2)]
SEEN = 1e-3  # a change of logits that is no rounding
RULES = ("concat", "merge", "gate")  # of the table; the tests run all of them
EXAMPLES = {
    "llama": "meta-llama/Llama-3.1-8B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "qwen2": "Qwen/Qwen2.5-7B-Instruct",
    "qwen3": "Qwen/Qwen3-8B",
    "gemma3_text": "google/gemma-3-1b-it",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "olmo2": "allenai/OLMo-2-1124-7B-Instruct",
    "gpt_neox": "EleutherAI/pythia-1.4b",
    "mixtral": "mistralai/Mixtral-8x7B-Instruct-v0.1",
    "qwen3_moe": "Qwen/Qwen3-30B-A3B",
    "gemma2": "google/gemma-2-2b-it",
    "cohere": "CohereLabs/c4ai-command-r-v01",
    "cohere2": "CohereLabs/c4ai-command-r7b-12-2024",
    "glm4": "zai-org/GLM-4-9B-0414",
    "exaone4": "LGAI-EXAONE/EXAONE-4.0-32B",
    "granite": "ibm-granite/granite-3.3-2b-instruct",
    "starcoder2": "bigcode/starcoder2-3b",
    "gpt2": "openai-community/gpt2",
    "llama4_text": "meta-llama/Llama-4-Scout-17B-16E-Instruct",
}

TEXT = """# Families

Which types of models are supported, and what was checked for each. `python tests/families.py` writes this page from the
checks, and the tests demand that it is what they give.

| type | for example | adapted | parallel = online | eager = sdpa | limited layers | generation | streams |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

The checks run on tiny random models of each architecture, in float64; the checkpoints are examples of a type and were
not run. Equal is: logits of size 1 to 10 differ by less than {tolerance:.0g}.

- **type**: `model_type` in the model's `config.json`. Llama 4 is published with a vision part, as `llama4`; that part
  is left out.
- **adapted**: the projections of every layer that get the conditional LoRA.
- **parallel = online**: the rules concat, merge and gate, for steps of different lengths, alone and in a padded batch.
- **limited layers**: whether there are layers with a sliding window, or that see only a chunk of the text, beside those
  that see all of it. Yes: the memory of every single layer is seen from the end of a text of ten windows or chunks.
- **generation**: `generate` from a batch of memories gives the tokens of whole parallel passes.
- **streams**: [endless text](stream.md) by compression; whole passes equal single tokens. Rotary positions may be of
  the types default, linear, llama3, yarn and longrope, be partial or interleaved, or be absent from some layers.

Gemma 2 always runs with eager attention: sdpa has no softcap. Streams are refused, with a clear error, of GPT-2, which
adds positions to the embeddings, so that keys cannot be moved (its conversations work), and of any model with a rope of
the type `dynamic`.

Encoder-decoders (`t5`: T5, Flan-T5, with transformers 5.20 or newer) have checks of their own
(`tests/engine/t5/test_seq2seq.py`): the rules concat, merge, ema, gist and pos_control in the encoder, parallel =
online, eager = sdpa, generation; equal to the authors' numbers (`make conformance`). Refused there: recurrence, the
gate, a sink, streams, chats and the demo.

Mixture-of-experts models keep their routers as they are: these are frozen, and no loss of theirs is computed.
"""


@cache
@torch.no_grad()
def parallel_online(family: str, rule: str, attn: str | None = None, **settings: bool | int | str) -> float:
    """The largest difference of the logits of all rows: in one parallel pass, and online, alone and as a batch."""
    model = tiny_model(rule, family=family, attn=attn, **settings)
    ids, mask = pad_left([row.query.ids for row in ROWS])
    batched = model.read(compress_batch(model, ROWS), ids, mask)
    expected = parallel_logits(model, ROWS)
    alone = [online_logits(model, row) for row in ROWS]
    return max(largest(alone, expected), largest([batched[i, mask[i]] for i in range(len(ROWS))], expected))


@cache
def eager_sdpa(family: str) -> float:
    """The largest difference of the logits under both kernels."""
    return largest(
        *(parallel_logits(tiny_model("merge", family=family, attn=attn), ROWS) for attn in ("sdpa", "eager"))
    )


def takes_eager(family: str) -> bool:
    """Whether a model that was loaded without a wish runs with eager attention."""
    return tiny_model(family=family).base.config._attn_implementation == EAGER


@cache
@torch.no_grad()
def seen_beyond(family: str, attn: str | None = None) -> float:
    """How much the end of a long text changes at least with the memory of one layer, where all layers are limited."""
    model = tiny_model("concat", base=narrow_base(family, attn))
    memory, text = compress_all(model, make_sample([3, 2], 1)), torch.tensor([make_sample([], 40, seed=3).query.ids])
    last = model.read(memory, text, last=True)
    changes = []
    for layer, values in enumerate(memory.values):
        other = (*memory.values[:layer], -values, *memory.values[layer + 1 :])
        changes.append((model.read(replace(memory, values=other), text, last=True) - last).abs().max().item())
    return min(changes)


def narrow_base(family: str, attn: str | None = None) -> PreTrainedModel:
    """A tiny model without layers that see all text: through these, the others would get what they do not see."""
    types = getattr(FAMILIES[family](), "layer_types", None) or ()
    limited = [kind for kind in types if kind != "full_attention"][:1]
    return tiny_base(family, attn=attn, **({"layer_types": limited * len(types)} if limited else {}))


@cache
def generates(family: str, rule: str) -> bool:
    """Whether greedy generation from a batch of memories equals a whole parallel pass for every token."""
    model, count = tiny_model(rule, family=family), WINDOW + 3
    expected = [greedy_by_parallel(model, row, count) for row in ROWS]
    return greedy(model, compress_batch(model, ROWS), [row.query.ids for row in ROWS], count).tolist() == expected


@cache
def streamed(family: str, evict: str) -> float:
    """The largest difference of a stream's logits, read in whole passes and token by token, beyond all windows."""
    model, settings = tiny_model(family=family, n_tok=2), StreamSettings(12, 5, 4, 1, evict=evict)
    ids = torch.randint(0, VOCAB, (1, 26), generator=torch.Generator().manual_seed(0))
    whole, single = StreamingMemory(model, settings).feed(ids), StreamingMemory(model, settings)
    return largest([whole], [torch.cat([single.feed(token) for token in ids.split(1, dim=1)], dim=1)])


def largest(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of tensors of equal shapes; NaN where one is."""
    differences = [(a - b).abs().max() for a, b in zip(actual, expected, strict=True) if a.shape == b.shape]
    assert len(differences) == len(expected)
    return torch.stack(differences).max().item()


def page() -> str:
    """The text of docs/families.md: a row for each type of model, whose cells hold for all its tiny models."""
    return TEXT.format(rows="\n".join(row(kind) for kind in PROJECTIONS if kind != "t5"), tolerance=TOLERANCE)


def row(kind: str) -> str:
    """The checks of one type of model."""
    tiny = [family for family in FAMILIES if FAMILIES[family]().model_type == kind]
    limited = [family for family in tiny if family in WINDOWED]
    cells = (
        f"`{kind}`",
        f"`{EXAMPLES[kind]}`",
        ", ".join(f"`{name}`" for name in PROJECTIONS[kind]),
        cell(lambda: all(parallel_online(family, rule) < TOLERANCE for family in tiny for rule in RULES)),
        "eager only" if all(map(takes_eager, tiny)) else cell(lambda: all(eager_sdpa(f) < TOLERANCE for f in tiny)),
        f"{kinds(limited[0])}: {cell(lambda: all(seen_beyond(family) > SEEN for family in limited))}"
        if limited
        else "-",
        cell(lambda: all(generates(family, rule) for family in tiny for rule in ("concat", "merge"))),
        cell(lambda: all(streamed(family, "compress") < TOLERANCE for family in tiny)),
    )
    return f"| {' | '.join(cells)} |"


def cell(check: Callable[[], bool]) -> str:
    """What a check gives."""
    try:
        return "yes" if check() else "no"
    except UnsupportedModelError:
        return "refused"


def kinds(family: str) -> str:
    """Which kinds of layers a tiny model has, the limited ones first."""
    types = getattr(FAMILIES[family](), "layer_types", None) or ["sliding_attention"]
    return ", ".join(sorted({kind.removesuffix("_attention") for kind in types}, key=lambda kind: kind == "full"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
