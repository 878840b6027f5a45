"""A look at a training before it begins: one sample as the model sees it, and what it will need."""

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


def picture(sample: Sample, stage: Stage) -> str:
    """A sample's blocks, one a line, COMP slots made visible; below a block, what is learned in it.

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
    """About how many bytes a process needs.

    Attributes:
        weights: of the model.
        trained: gradients and optimizer moments.
        activations: kept for the backward pass, of one pass.
        logits: at the targets, with their gradients.
    """

    weights: int
    trained: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.logits


def estimate(recipe: Recipe, stage: Stage, batches: Iterable[Batch]) -> Estimate:
    """What a training needs, from its sizes and the largest pass of some of its batches.

    Activations of a layer and token: the inputs of both norms and of all projections, queries, keys and values, the
    attention's output, and three rows within the MLP. Gradient checkpointing keeps one row a layer, and one layer.
    """
    config = stage.base.config.get_text_config()
    width = stage.base.dtype.itemsize
    heads, dim = entry_sizes(stage.base)[0]
    attention = 2 * config.num_attention_heads * dim + 2 * heads * dim
    row = config.hidden_size
    layer = (4 * row + attention + 4 * mlp_width(config)) * width
    layers = config.num_hidden_layers
    kept = layer * layers if not recipe.gradient_checkpointing else row * width * layers + layer
    passes = [part for batch in batches for part in batch.passes(recipe.pass_tokens, 1)]
    tokens = max(part.tokens for part in passes)
    targets = max(max(stage.objective.counts(part.samples).values()) for part in passes)
    trained = sum(tensor.numel() for tensor in stage.trained.values())
    logit = 28 if stage.objective.needs_teacher else 12  # bytes: logits, their log-softmax and gradients; the teacher's
    return Estimate(
        weights=sum(map(stored_bytes, stage.module.parameters())),
        trained=12 * trained,
        activations=tokens * kept,
        logits=targets * config.vocab_size * logit,
    )


def mlp_width(config: PretrainedConfig) -> int:
    """Width within an MLP, by whatever name a family has it; where it has none, four times the hidden size."""
    named = (getattr(config, name, None) for name in ("intermediate_size", "d_ff", "n_inner"))
    return next(filter(None, named), None) or 4 * config.hidden_size
