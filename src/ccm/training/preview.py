"""A preview of a training: one sample as the model sees it, and the memory that the training needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transformers import PretrainedConfig

from ccm.engine.families import entry_sizes
from ccm.engine.layout import Sample
from ccm.engine.quantization import stored_bytes
from ccm.training.batches import Batch
from ccm.training.recipe import Recipe
from ccm.training.stages import Stage

LIBRARIES = 430_000_000  # bytes of a process that has loaded no model yet
FREE = 0.75  # the share of what a pass keeps that glibc's heap holds besides: 160 steps of a model of 135 M parameters


def picture(sample: Sample, stage: Stage) -> str:
    """Show the blocks of a sample, one per line, with their COMP tokens; below a block, the text that is learned in it.

    block 0 | <s>My name is Anna.<|assistant|>Hello. [COMP 1][COMP 2]
    block 1 | <|user|>What is my name?<|assistant|>Your name is Anna.
            > Your name is Anna.</s>
    """
    layout = stage.build_layout([stage.objective.targeted(sample)], stage.config, stage.rule, 0)

    def line(ids: list[int]) -> str:
        return stage.turns.tokenizer.decode(ids).replace("\n", "\\n")

    lines = []
    for block, text, marks, learned in layout.shown():
        lines.append(f"block {block:<2} | {line(text)} {''.join(marks)}".rstrip())
        if learned:
            lines.append(f"         > {line(learned)}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Estimate:
    """An estimate of the memory that one process needs, in bytes.

    Attributes:
        weights: the weights of the model.
        trained: gradients and optimizer moments.
        activations: the activations that one pass keeps for its backward pass.
        logits: the logits at the targets, with their gradients.
        heap: on a CPU, what Python with its libraries holds, and what the heap keeps free between the tensors of a
            pass; 0 elsewhere.
    """

    weights: int
    trained: int
    activations: int
    logits: int
    heap: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.trained + self.activations + self.logits + self.heap


def estimate(recipe: Recipe, stage: Stage, batches: Iterable[Batch]) -> Estimate:
    """Estimate the memory of a training from the model's sizes and from the largest pass of some batches.

    Per token, a layer keeps the inputs of both norms and of all projections; queries, keys and values; the output of
    the attention; and three rows within the MLP. With gradient checkpointing, a layer keeps one row per token, and only
    one layer at a time keeps all of its activations.
    """
    config = stage.base.config.get_text_config()
    width = stage.base.dtype.itemsize
    heads, dim = entry_sizes(stage.base.config)[0]
    attention = 2 * config.num_attention_heads * dim + 2 * heads * dim
    row = config.hidden_size
    layer = (4 * row + attention + 4 * mlp_width(config)) * width
    layers = config.num_hidden_layers
    kept = layer * layers if not recipe.gradient_checkpointing else row * width * layers + layer
    passes = [part for batch in batches for part in batch.passes(recipe.pass_tokens, 1)]
    tokens = max(part.tokens for part in passes)
    targets = max(max(stage.objective.counts(part.samples).values()) for part in passes)
    trained = sum(tensor.numel() for tensor in stage.trained.values())
    activations = tokens * kept
    logit = 28 if stage.objective.needs_teacher else 12  # bytes: logits, log-softmax, gradients; the teacher
    logits = targets * config.vocab_size * logit
    heap = LIBRARIES + int(FREE * (activations + logits)) if stage.base.device.type == "cpu" else 0
    weights = sum(map(stored_bytes, stage.module.parameters()))
    return Estimate(weights, 12 * trained, activations, logits, heap)


def mlp_width(config: PretrainedConfig) -> int:
    """The width of the MLP, which families name differently; four times the hidden size if the config names none."""
    named = (getattr(config, name, None) for name in ("intermediate_size", "d_ff", "n_inner"))
    return next(filter(None, named), None) or 4 * config.hidden_size
