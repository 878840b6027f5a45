"""The two stages: what is trained, on which model, and what is written in the end. The loop asks no more of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from ccm.chat.turns import Turns, make_turns
from ccm.core.config import CCMConfig, LoRASettings
from ccm.core.errors import ConfigError
from ccm.core.files import save_json
from ccm.core.rules import Rule, make_rule
from ccm.data import DataSet
from ccm.engine.adapter_files import copy_tensors, read_stage1
from ccm.engine.families import PROJECTIONS, max_positions, projection_paths
from ccm.engine.fingerprint import fingerprint_base
from ccm.engine.head import head_reads, pick
from ccm.engine.layout import IGNORE, Layout
from ccm.engine.t5.encoder import EncoderLayout
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.models.base import load_base
from ccm.models.builtin import NAME, START
from ccm.models.load import TURNS, load_tokenizer, model_class, turn_format
from ccm.training.batches import Batch
from ccm.training.objectives import Objective
from ccm.training.recipe import Recipe

FULL = make_rule("full")


class Stage(ABC):
    """What is trained. Subclasses make the model, call it, and write the result.

    Attributes:
        base: the stock model.
        base_id: its fingerprint before anything is trained.
        module: what is called.
        trained: the parameters that the optimizer changes, by name.
        config: of the memory.
        rule: by which samples are laid out.
        objective: what is made small.
        turns: how conversations become tokens.
    """

    def __init__(
        self,
        base: PreTrainedModel,
        base_id: str,
        module: nn.Module,
        config: CCMConfig,
        rule: Rule,
        recipe: Recipe,
        turns: Turns,
    ) -> None:
        self.base, self.base_id, self.module, self.config, self.rule, self.turns = (
            base,
            base_id,
            module,
            config,
            rule,
            turns,
        )
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._saved_dtype = getattr(torch, recipe.saved_dtype)
        self.objective = Objective.of(recipe.objective, remembered=config.recurrent and rule.compresses != "context")

    @property
    def max_positions(self) -> int:
        """Text positions that the model was made for."""
        return max_positions(self.base)

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of the objective over a batch, summed over its target tokens."""
        samples = [self.objective.targeted(sample) for sample in batch.samples]
        batch = replace(batch, samples=samples)
        teacher = None
        if self.objective.needs_teacher:  # the same frozen model: where no COMP token stands, it is the base's own
            with torch.no_grad():
                teacher = self.logits(self._layout(batch, FULL))
        layout = self._layout(batch, self.rule)
        targets = layout.targets[layout.targets != IGNORE]
        last = [
            number == len(sample.steps)
            for sample in samples
            for number, step in enumerate((*sample.steps, sample.query))
            for target in step.targets
            if target != IGNORE
        ]
        return self.objective.losses(self.logits(layout), targets, torch.tensor(last, device=targets.device), teacher)

    def _layout(self, batch: Batch, rule: Rule) -> Any:
        tokenizer, config = self.turns.tokenizer, replace(self.config, n_tok=batch.n_tok)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        layout = self.build_layout(batch.samples, config, rule, pad)
        layout = replace(layout, positions=layout.positions + torch.tensor(batch.starts)[:, None])
        return layout.to(self.base.device)

    @property
    def build_layout(self) -> Callable[..., Any]:
        """How samples become the tensors of a pass: as the model's kind wants them."""
        return model_class(self.base).build_layout

    @abstractmethod
    def logits(self, layout: Any) -> Tensor:
        """(P, V) at the P tokens that have a target."""

    def measure(self, data: DataSet) -> dict[str, float]:
        """What the data set measures of the model, by name."""
        return {}

    def save(self, folder: Path) -> None:
        """Write what was trained, for use; it is rounded first, to what it is to be saved in."""
        for tensor in self.trained.values():
            tensor.data = tensor.data.to(self._saved_dtype)
        self._write(folder)

    @abstractmethod
    def _write(self, folder: Path) -> None: ...


class CompressStage(Stage):
    """A compression adapter on a frozen base, the recipe's or another that is given, in the parallel pass."""

    def __init__(self, recipe: Recipe, turns: Turns, base: PreTrainedModel | None = None) -> None:
        config = replace(recipe.adapter, turns=turns.form, base_model=_place(recipe))
        if recipe.random_n_tok:
            config = replace(config, min_n_tok=1, max_n_tok=config.n_tok)
        stage1 = read_stage1(Path(recipe.base_adapter)) if recipe.base_adapter else None
        stock = _load(recipe, base)
        if config.embeddings == "table" and stock.dtype != torch.float32:
            raise ConfigError(
                f"adapter.embeddings=table trains rows of the base, which is in {stock.dtype}; what is trained must be "
                "float32: set dtype=float32, or leave adapter.embeddings=separate."
            )
        if recipe.flex and stock.config.is_encoder_decoder:
            raise ConfigError("flex=true is of decoders alone; encoder-decoders attend with a bias. Leave it out.")
        self.model: Any = model_class(stock)(stock, config, stage1=stage1)
        self.model.flex = recipe.flex
        if recipe.init_adapter:
            self.model.begin_with(START if recipe.init_adapter == NAME else recipe.init_adapter)
        super().__init__(self.model.base, self.model.base_id, self.model, config, self.model.rule, recipe, turns)

    def logits(self, layout: Any) -> Tensor:
        return self.module(layout).logits

    def measure(self, data: DataSet) -> dict[str, float]:
        return data.measure(self.model)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class BaseStage(Stage):
    """A plain LoRA on the base, with full context: stage 1. Written as a PEFT adapter, or merged into the model."""

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        if recipe.base_adapter:
            raise ConfigError("base_adapter is what this stage makes; leave it out, or train with stage=compress.")
        base, lora = _load(recipe), recipe.adapter.lora
        base_id = fingerprint_base(base)
        settings = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=[*PROJECTIONS["t5"]] if base.config.is_encoder_decoder else projection_paths(base),
            task_type="SEQ_2_SEQ_LM" if base.config.is_encoder_decoder else "CAUSAL_LM",
        )
        module = full_context(base)
        self.model, self._merge = get_peft_model(base, settings), recipe.merge
        self.model.peft_config["default"].base_model_name_or_path = _place(recipe)
        super().__init__(base, base_id, module, CCMConfig(rule="full", turns=turns.form), FULL, recipe, turns)
        if recipe.init_adapter:
            begun = read_stage1(Path(recipe.init_adapter)).tensors
            own = {name.partition(".")[2].replace(".default.", "."): tensor for name, tensor in self.trained.items()}
            copy_tensors(begun, own, recipe.init_adapter)

    def logits(self, layout: Any) -> Tensor:
        return self.module(layout)

    def _write(self, folder: Path) -> None:
        if self._merge:
            self.model.merge_and_unload().save_pretrained(folder)
            self.turns.tokenizer.save_pretrained(folder)
        else:
            self.model.save_pretrained(folder)
        save_json(folder / TURNS, asdict(self.turns.form))


class FullContext(nn.Module):
    """A stock model that is called with a layout; gives logits (P, V) at the tokens that have a target."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.model = base
        base.get_output_embeddings().register_forward_pre_hook(pick)

    def forward(self, layout: Layout) -> Tensor:
        with head_reads((layout.targets.flatten() != IGNORE).nonzero().flatten()):
            return self.model(
                input_ids=layout.ids,
                attention_mask=(layout.blocks >= 0).long(),
                position_ids=layout.positions,
                use_cache=False,
            ).logits[0]


class FullEncoder(nn.Module):
    """As :class:`FullContext`, of an encoder-decoder."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        config = CCMConfig(rule="full", recurrent=False, lora=LoRASettings(r=0))
        self.model = CCMEncoderDecoder(base, config).requires_grad_(False)

    def forward(self, layout: EncoderLayout) -> Tensor:
        return self.model(layout).logits


def full_context(base: PreTrainedModel) -> nn.Module:
    """A stock model, to be called with a layout under the rule "full"."""
    return FullEncoder(base) if base.config.is_encoder_decoder else FullContext(base)


def make_stage(recipe: Recipe, turns: Turns) -> Stage:
    """The stage of a recipe, on its base model; what it makes talks in those turns.

    Raises:
        ConfigError: when the model cannot be had, or carries an adapter of others.
        AdapterError: when the stage-1 adapter is absent or does not fit.
    """
    return {"base": BaseStage, "compress": CompressStage}[recipe.stage](recipe, turns)


def open_turns(recipe: Recipe) -> Turns:
    """How the conversations of a recipe become tokens: as it says, or as suits the model.

    Raises:
        ConfigError: when the model's tokenizer cannot be had, or lacks what the format needs.
    """
    tokenizer = load_tokenizer(recipe.model)
    return make_turns(tokenizer, recipe.turns or turn_format(recipe.model, tokenizer))


def _place(recipe: Recipe) -> str:
    """Where the base is, wherever what is trained on it will be read."""
    folder = Path(recipe.model)
    return str(folder.resolve()) if folder.is_dir() else recipe.model


def _load(recipe: Recipe, base: PreTrainedModel | None = None) -> PreTrainedModel:
    if base is None:
        dtype: Any = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
        base = load_base(recipe.model, device=recipe.device, dtype=dtype, quantize=recipe.quantize)
    if recipe.quantize == "4bit" and base.device.type == "cpu":
        raise ConfigError(
            "quantize=4bit trains on CUDA only: on a CPU, bitsandbytes' layers give no gradients any more once they "
            "were used without. Use quantize=int8 there."
        )
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ConfigError(
            f"The base model {recipe.model} carries an adapter of its own; merge it into the weights first, or give "
            "the model without it and the adapter as base_adapter."
        )
    base.requires_grad_(False)
    if recipe.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return base
