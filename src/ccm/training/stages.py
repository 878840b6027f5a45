"""The two stages: what is trained, on which model, and what is written in the end. The loop asks no more of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ccm.adapter import LoraLinear
from ccm.base import PROJECTIONS, load_base
from ccm.builtin import NAME
from ccm.builtin import TURNS as BUILTIN_TURNS
from ccm.builtin import WEIGHTS as BUILTIN
from ccm.checkpoint import read_stage1
from ccm.config import CCMConfig, TurnFormat
from ccm.data import DataSet
from ccm.errors import ConfigError
from ccm.head import head_reads, pick
from ccm.layout import IGNORE, Layout, build_layout
from ccm.loading import load_tokenizer
from ccm.model import CCMModel
from ccm.rules import Rule, make_rule
from ccm.training.batches import Batch
from ccm.training.objectives import Objective
from ccm.training.recipe import Recipe
from ccm.turns import Turns, make_turns

FULL = make_rule("full")


class Stage(Protocol):
    """What is trained.

    Attributes:
        module: what is called.
        base: the stock model in it.
        rule: by which samples are laid out, with ``config``.
        config: of the memory.
        trained: the tensors that the optimizer changes, by name.
        tokenizer: of the model.
        objective: what is made small.
    """

    module: nn.Module
    base: PreTrainedModel
    rule: Rule
    config: CCMConfig
    trained: Mapping[str, Tensor]
    tokenizer: PreTrainedTokenizerBase
    objective: Objective

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of the objective over a batch, summed over its target tokens."""
        ...

    def measure(self, data: DataSet) -> dict[str, float]:
        """What the data set measures of the model, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained, for use."""
        ...


def make_stage(recipe: Recipe, turns: Turns) -> Stage:
    """The stage of a recipe, on its base model; what it makes talks in those turns.

    Raises:
        ConfigError: when the model cannot be had, or carries an adapter of others.
        AdapterError: when the stage-1 adapter is absent or does not fit.
    """
    return {"base": BaseStage, "compress": CompressStage}[recipe.stage](recipe, turns)


def base_source(recipe: Recipe) -> str:
    """Where the base model of a recipe is."""
    return str(BUILTIN / "base") if recipe.model == NAME else recipe.model


def open_turns(recipe: Recipe) -> Turns:
    """How the conversations of a recipe become tokens: as it says, or as suits the model.

    Raises:
        ConfigError: when the model's tokenizer cannot be had, or lacks what the format needs.
    """
    tokenizer = load_tokenizer(base_source(recipe))
    form = BUILTIN_TURNS if recipe.model == NAME else TurnFormat("chat" if tokenizer.chat_template else "separators")
    return make_turns(tokenizer, recipe.turns or form)


class CompressStage:
    """A compression adapter on a frozen base, in the parallel pass."""

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        self.base, self.tokenizer = _load(recipe), turns.tokenizer
        most = recipe.adapter.n_tok
        span = {"min_n_tok": 1, "max_n_tok": most} if recipe.random_n_tok else {}
        self.config = replace(recipe.adapter, turns=turns.form, base_model=base_source(recipe), **span)
        stage1 = read_stage1(Path(recipe.base_adapter)) if recipe.base_adapter else None
        self.model = CCMModel(self.base, self.config, stage1=stage1)
        self.base, self.rule = self.model.base, self.model.rule
        self.module: nn.Module = self.model
        self.trained = self.model.adapter_tensors()
        self.objective = Objective.of(recipe.objective, recurrent=self.config.recurrent)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        teacher = None
        if self.objective.needs_teacher:  # the same frozen model: where no COMP token stands, it is the base's own
            with torch.no_grad():
                teacher = self.module(_layout(batch, self, FULL)).logits
        layout = _layout(batch, self, self.rule)
        return _sums(batch, self, layout, self.module(layout).logits, teacher)

    def measure(self, data: DataSet) -> dict[str, float]:
        return data.measure(self.model)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class BaseStage:
    """A plain LoRA on the base, with full context: stage 1. Written as a PEFT adapter, or merged into the model."""

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        self.base, self.tokenizer = _load(recipe), turns.tokenizer
        self.config, self.rule = CCMConfig(rule="full", turns=turns.form), FULL
        if recipe.base_adapter:
            raise ConfigError("base_adapter is what this stage makes; leave it out, or train with --stage compress.")
        settings = recipe.adapter.lora
        self.model = get_peft_model(
            self.base,
            LoraConfig(
                r=settings.r,
                lora_alpha=settings.alpha,
                lora_dropout=settings.dropout,
                target_modules=[*PROJECTIONS[self.base.config.model_type]],
                task_type="CAUSAL_LM",
            ),
        )
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        self.module: nn.Module = FullContext(self.model, self.base)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.objective = Objective.of({k: v for k, v in recipe.objective.items() if k != "distill"} or {"last": 1.0},
                                      recurrent=True)
        self._merge = recipe.merge

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        layout = _layout(batch, self, FULL)
        return _sums(batch, self, layout, self.module(layout), None)

    def measure(self, data: DataSet) -> dict[str, float]:
        return {}

    def save(self, folder: Path) -> None:
        if self._merge:
            self.model.merge_and_unload().save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder)


class FullContext(nn.Module):
    """A stock model, that it may be called with a layout: logits (P, V) at the tokens with a target."""

    def __init__(self, model: nn.Module, base: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        base.get_output_embeddings().register_forward_pre_hook(pick)

    def forward(self, layout: Layout) -> Tensor:
        with head_reads((layout.targets.flatten() != IGNORE).nonzero().flatten()):
            return self.model(
                input_ids=layout.ids,
                attention_mask=(layout.blocks >= 0).long(),
                position_ids=layout.positions,
                use_cache=False,
            ).logits[0]


def _load(recipe: Recipe) -> PreTrainedModel:
    source = base_source(recipe)
    dtype: Any = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
    base = load_base(source, device=recipe.device, dtype=dtype)
    if any(isinstance(module, LoraLinear) for module in base.modules()):
        raise ConfigError(
            f"The base model {source} carries an adapter of its own; merge it into the weights first, or give the "
            "model without it and the adapter as base_adapter."
        )
    base.requires_grad_(False)
    if recipe.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return base


def _layout(batch: Batch, stage: Stage, rule: Rule) -> Layout:
    tokenizer = stage.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    config = replace(stage.config, n_tok=batch.n_tok)
    layout = build_layout([stage.objective.targeted(s) for s in batch.samples], config, rule, pad)
    layout = replace(layout, positions=layout.positions + torch.tensor(batch.starts)[:, None])
    return layout.to(next(stage.module.parameters()).device)


def _sums(batch: Batch, stage: Stage, layout: Layout, logits: Tensor, teacher: Tensor | None) -> dict[str, Tensor]:
    targets = layout.targets[layout.targets != IGNORE]
    last: list[bool] = []
    for sample in map(stage.objective.targeted, batch.samples):
        for step in (*sample.steps, sample.query):
            last += [step is sample.query] * sum(target != IGNORE for target in step.targets)
    return stage.objective.losses(logits, targets, torch.tensor(last, device=logits.device), teacher)
