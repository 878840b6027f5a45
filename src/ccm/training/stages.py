"""The two training stages. A stage holds the model and its trained tensors, computes losses, and writes the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
from ccm.engine.families import PROJECTIONS, projection_paths
from ccm.engine.fingerprint import fingerprint_base
from ccm.engine.head import head_reads, pick
from ccm.engine.layout import IGNORE, Layout
from ccm.engine.t5.encoder import EncoderLayout
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.models.base import load_base
from ccm.models.load import TURNS, load_tokenizer, model_class, turn_format
from ccm.models.shipped import first_stage, starting_adapter
from ccm.training.batches import Batch
from ccm.training.objectives import Objective, count_targets
from ccm.training.recipe import Recipe

FULL = make_rule("full")


class Stage(ABC):
    """A model under training. Subclasses make the model, call it, and write the result.

    Attributes:
        base: the stock model.
        base_id: the fingerprint of the base before the training.
        module: the module that computes the logits.
        trained: the parameters that the optimizer changes, by name.
        config: the settings of the memory.
        rule: the rule that samples are laid out by.
        objective: the losses that the training minimizes.
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
        self.base, self.base_id, self.module = base, base_id, module
        self.config, self.rule, self.turns = config, rule, turns
        self.trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._saved_dtype = getattr(torch, recipe.saved_dtype)
        self.objective = Objective.of(recipe.objective, remembered=config.recurrent and rule.compresses != "context")

    def sums(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss of the objective on a batch as a scalar tensor, summed over its target tokens."""
        samples = [self.objective.targeted(sample) for sample in batch.samples]
        batch = replace(batch, samples=samples)
        teacher = None
        if self.objective.needs_teacher:  # the adapter acts at COMP tokens only: without them, this is the frozen base
            with torch.no_grad():
                teacher = self.logits(self._layout(batch, FULL))
        layout = self._layout(batch, self.rule)
        targets = layout.targets[layout.targets != IGNORE]
        last = []
        for sample in samples:
            last += [False] * sum(map(count_targets, sample.steps)) + [True] * count_targets(sample.query)
        return self.objective.losses(self.logits(layout), targets, torch.tensor(last, device=targets.device), teacher)

    def _layout(self, batch: Batch, rule: Rule) -> Any:
        tokenizer, config = self.turns.tokenizer, replace(self.config, n_tok=batch.n_tok)
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        layout = self.build_layout(batch.samples, config, rule, pad)
        layout = replace(layout, positions=layout.positions + torch.tensor(batch.starts)[:, None])
        return layout.to(self.base.device)

    @property
    def build_layout(self) -> Callable[..., Any]:
        """The function that lays samples out as the tensors of a pass, for the model's architecture."""
        return model_class(self.base).build_layout

    @abstractmethod
    def logits(self, layout: Any) -> Tensor:
        """The logits (P, V) at the P tokens of a layout that have a target."""

    def measure(self, data: DataSet) -> dict[str, float]:
        """The figures that the data set measures of the model, by name."""
        return {}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors of a checkpoint into the trained parameters of the same names."""
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[name])

    def save(self, folder: Path) -> None:
        """Round the trained parameters to the recipe's ``saved_dtype``, then write the result."""
        for tensor in self.trained.values():
            tensor.data = tensor.data.to(self._saved_dtype)
        self._write(folder)

    @abstractmethod
    def _write(self, folder: Path) -> None: ...


class CompressStage(Stage):
    """Trains a compression adapter on a frozen base in the parallel pass; ``base`` replaces the base of the recipe."""

    def __init__(self, recipe: Recipe, turns: Turns, base: PreTrainedModel | None = None) -> None:
        config = replace(recipe.adapter, turns=turns.form, base_model=_place(recipe))
        if recipe.random_n_tok:
            config = replace(config, min_n_tok=1, max_n_tok=config.n_tok)
        stage1 = read_stage1(first_stage(recipe.base_adapter)) if recipe.base_adapter else None
        stock = _load(recipe, base)
        if config.embeddings == "table" and stock.dtype != torch.float32:
            raise ConfigError(
                f"adapter.embeddings=table trains rows of the base in float32, but the base is in {stock.dtype}; set "
                "dtype=float32 or adapter.embeddings=separate."
            )
        if recipe.flex and stock.config.is_encoder_decoder:
            raise ConfigError(
                "flex=true works for decoders only, since encoder-decoders attend with a bias. Leave flex out."
            )
        self.model: Any = model_class(stock)(stock, config, stage1=stage1)
        self.model.flex = recipe.flex
        if recipe.init_adapter:
            self.model.begin_with(starting_adapter(recipe.init_adapter, config.rule))
        super().__init__(self.model.base, self.model.base_id, self.model, config, self.model.rule, recipe, turns)

    def logits(self, layout: Any) -> Tensor:
        return self.module(layout).logits

    def measure(self, data: DataSet) -> dict[str, float]:
        return data.measure(self.model)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class BaseStage(Stage):
    """Trains a plain LoRA on the base with full context (stage 1); writes it alone, or merged into the base."""

    def __init__(self, recipe: Recipe, turns: Turns) -> None:
        if recipe.base_adapter:
            raise ConfigError(
                "The stage 'base' makes the base_adapter; leave base_adapter out, or train with stage=compress."
            )
        base, lora = _load(recipe), recipe.adapter.lora
        base_id, encoder_decoder = fingerprint_base(base), base.config.is_encoder_decoder
        settings = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=[*PROJECTIONS["t5"]] if encoder_decoder else projection_paths(base),
            task_type="SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
        )
        module = FullEncoder(base) if encoder_decoder else FullContext(base)
        self.model, self._merge = get_peft_model(base, settings), recipe.merge
        self.model.peft_config["default"].base_model_name_or_path = _place(recipe)
        super().__init__(base, base_id, module, CCMConfig(rule="full", turns=turns.form), FULL, recipe, turns)
        if recipe.init_adapter:
            begun = read_stage1(first_stage(recipe.init_adapter)).tensors
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
    """A stock model that takes a layout and returns the logits (P, V) at the P tokens that have a target."""

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
    """As :class:`FullContext`, for an encoder-decoder."""

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        config = CCMConfig(rule="full", recurrent=False, lora=LoRASettings(r=0))
        self.model = CCMEncoderDecoder(base, config).requires_grad_(False)

    def forward(self, layout: EncoderLayout) -> Tensor:
        return self.model(layout).logits


def make_stage(recipe: Recipe, turns: Turns) -> Stage:
    """Make the stage of a recipe on its base model.

    Args:
        recipe: the recipe.
        turns: how conversations become tokens; the result keeps their format.

    Raises:
        ConfigError: if the base model cannot be loaded, or already carries a PEFT adapter.
        AdapterError: if the stage-1 adapter is absent or does not fit the base.
    """
    return {"base": BaseStage, "compress": CompressStage}[recipe.stage](recipe, turns)


def open_turns(recipe: Recipe) -> Turns:
    """How conversations become tokens: in the format of the recipe, or else in the format of its model.

    Raises:
        ConfigError: if the model's tokenizer cannot be loaded, or lacks tokens that the format needs.
    """
    tokenizer = load_tokenizer(recipe.model)
    return make_turns(tokenizer, recipe.turns or turn_format(recipe.model, tokenizer))


def _place(recipe: Recipe) -> str:
    """The base as a Hub id or an absolute path, which holds wherever the result is read from."""
    folder = Path(recipe.model)
    return str(folder.resolve()) if folder.is_dir() else recipe.model


def _load(recipe: Recipe, base: PreTrainedModel | None = None) -> PreTrainedModel:
    if base is None:
        dtype: Any = recipe.dtype if recipe.dtype == "auto" else getattr(torch, recipe.dtype)
        base = load_base(recipe.model, device=recipe.device, dtype=dtype, quantize=recipe.quantize)
    if recipe.quantize == "4bit" and base.device.type == "cpu":
        raise ConfigError(
            "quantize=4bit trains on CUDA only: on a CPU, the layers of bitsandbytes return no gradients after a pass "
            "without gradients. Use quantize=int8 there."
        )
    if any(isinstance(module, BaseTunerLayer) for module in base.modules()):
        raise ConfigError(
            f"The base model {recipe.model} carries a PEFT adapter; merge the adapter into the weights first, or give "
            "the model without the adapter, and the adapter as base_adapter."
        )
    base.requires_grad_(False)
    if recipe.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return base
