"""Recipes: all settings of a training as a dataclass, read from YAML files and ``key=value`` changes.

A recipe file is a table of the keys of :class:`Recipe`. Its sections ``base:`` and ``compress:`` hold the settings that
differ between the two stages; the section of the stage that runs overrides the rest of the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from ccm.core.config import CCMConfig, TurnFormat, bounded, build_settings, check_fields
from ccm.core.errors import ConfigError, did_you_mean, reason
from ccm.core.rules import rule_class
from ccm.data.settings import DataSettings
from ccm.engine.quantization import Quantization
from ccm.training.recipe_files import find_recipe

StageName = Literal["base", "compress"]
OBJECTIVES = ("last", "every", "distill")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Recipe:
    """The settings of one training. The defaults are those of the paper, where it states them.

    The paper is "Compressed Context Memory for Online Language Model Interaction" (ICLR 2024).

    Attributes:
        stage: "base" trains a LoRA for all tokens with full context; "compress" trains a compression adapter.
        model: the base model: a folder, a Hub id, or "builtin".
        base_adapter: a plain LoRA (the result of the stage "base") to merge into the base before training; the short
            name of a model is the first stage that ships for it.
        init_adapter: the adapter to start from. In the stage "compress", a compression adapter, whose tensors are used
            as far as they fit, and which may have another first stage; the short name of a model is the adapter that
            ships for it, "builtin" the one that the built-in base was trained with. In the stage "base", a plain LoRA
            of the same rank. None starts from new tensors.
        output_dir: the folder of the run and its result.
        data: the settings of the data set.
        adapter: the settings of the memory and its LoRA; the stage "base" uses the LoRA only. The format of its turns
            is set by ``turns``.
        turns: how conversations become tokens. None uses the model's chat template if it has one.
        random_n_tok: whether every batch draws its N from 1 to ``adapter.n_tok``, so that one adapter serves every N.
        objective: the weights of the losses "last" (the final output), "every" (each step's answer, given the memory)
            and "distill" (the base's own distribution on the answers, with full context).
        max_steps: the number of optimizer steps.
        batch_size: samples per step, over all processes and passes.
        pass_tokens: the most tokens, with padding, that a process reads in one pass. A step makes as many passes as its
            batch needs.
        pool: the number of batches that are drawn together and sorted by length, which keeps padding small.
        lr: the peak learning rate.
        lr_end: the final learning rate, as a share of ``lr``.
        warmup: the share of the steps during which the learning rate rises.
        weight_decay: the weight decay of AdamW.
        betas: the two betas of AdamW.
        max_grad_norm: gradients of a larger norm are scaled down to this norm.
        max_offset: the first token of each sample gets a random position from 0 to this number; for bases that were
            trained on short contexts.
        merge: whether the stage "base" writes a whole model with the LoRA merged, instead of a PEFT adapter.
        dtype: the dtype of the base model. Trained tensors are always float32.
        quantize: how to store the base's weights in fewer bits (:mod:`ccm.engine.quantization`).
        mixed_precision: whether to multiply matrices in bfloat16. Weights, memory, losses and evaluations stay in
            float32, and so does attention in the stage "compress". This is faster only on processors with bfloat16
            instructions; "auto" measures the speed before training.
        saved_dtype: the dtype of the result; bfloat16 halves its size. Checkpoints are float32.
        device: a device such as "cpu" or "cuda". None uses a CUDA device if there is one.
        flex: whether to use flex_attention, which needs CUDA. None uses it where it is faster (:mod:`ccm.engine.flex`).
        gradient_checkpointing: whether to recompute activations within layers: less memory, a third more time.
        shard: whether to spread the frozen base over all processes (FSDP2). If not, every process holds a copy.
        seed: the seed of all random draws.
        log_every: steps between two records of the log.
        eval_every: steps between two evaluations; 0 evaluates after the last step only.
        save_every: steps between two checkpoints; 0 saves one after the last step only.
        keep: the number of checkpoints to keep.
        tensorboard: whether to log to TensorBoard.
        wandb: whether to log to Weights & Biases.
    """

    stage: StageName = "compress"
    model: str = "builtin"
    base_adapter: str | None = None
    init_adapter: str | None = None
    output_dir: str | None = None
    data: DataSettings = field(default_factory=DataSettings)
    adapter: CCMConfig = field(default_factory=CCMConfig)
    turns: TurnFormat | None = None
    random_n_tok: bool = False
    objective: Mapping[str, float] = field(default_factory=lambda: {"last": 1.0})
    max_steps: int = bounded(1000, 1)
    batch_size: int = bounded(128, 1)
    pass_tokens: int = bounded(8192, 1)
    pool: int = bounded(16, 1)
    lr: float = 3e-4
    lr_end: float = bounded(0.0, 0)
    warmup: float = bounded(0.03, 0, 1)
    weight_decay: float = bounded(0.0, 0)
    betas: tuple = (0.9, 0.999)
    max_grad_norm: float = 1.0
    max_offset: int = bounded(0, 0)
    merge: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Quantization | None = None
    mixed_precision: bool | Literal["auto"] = False
    saved_dtype: Literal["float32", "bfloat16"] = "float32"
    device: str | None = None
    flex: bool | None = None
    gradient_checkpointing: bool = False
    shard: bool = False
    seed: int = bounded(0, 0, 2**63 - 1)
    log_every: int = bounded(10, 1)
    eval_every: int = bounded(0, 0)
    save_every: int = bounded(100, 0)
    keep: int = bounded(2, 1)
    tensorboard: bool = True
    wandb: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas) if isinstance(self.betas, list) else self.betas)
        check_fields(self)
        for name in ("lr", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be a number above 0.")
        if len(self.betas) != 2 or not all(isinstance(b, float | int) and 0 <= b < 1 for b in self.betas):
            raise ConfigError(f"betas is {self.betas!r}; it must be two numbers from 0 to below 1.")
        self._check_together()

    def _check_together(self) -> None:
        weights = dict(self.objective)
        if not weights or not all(isinstance(w, float | int) and 0 <= w < math.inf for w in weights.values()):
            raise ConfigError(
                f"objective is {weights!r}; give at least one of {', '.join(OBJECTIVES)} a weight above 0."
            )
        if unknown := sorted(map(str, weights.keys() - set(OBJECTIVES))):
            raise ConfigError(f"objective names {unknown}; the objectives are {', '.join(OBJECTIVES)}.")
        if not any(weights.values()):
            raise ConfigError("objective gives no loss a weight above 0, so nothing would be trained; raise a weight.")
        if self.stage == "compress" and rule_class(self.adapter.rule).compresses == "never":
            raise ConfigError(
                f"adapter.rule is {self.adapter.rule!r}, which compresses nothing and needs no adapter; choose another "
                "rule, or train with stage=base."
            )
        if self.adapter.min_n_tok is not None or self.adapter.max_n_tok is not None:
            raise ConfigError(
                "The training sets adapter.min_n_tok and adapter.max_n_tok itself: set adapter.n_tok to the largest N, "
                "and random_n_tok=true to train every N up to it."
            )
        if weights.get("every") and self.stage == "compress" and rule_class(self.adapter.rule).compresses == "context":
            raise ConfigError(
                f"The objective 'every' needs a memory after every step, but the rule {self.adapter.rule!r} compresses "
                "the whole context at once. Use objective={last: 1}."
            )
        if weights.get("every") and self.stage == "compress" and not self.adapter.recurrent:
            raise ConfigError(
                "The objective 'every' needs a recurrent memory: otherwise a step does not see the memory when it "
                "answers. Use 'last', or set adapter.recurrent=true."
            )
        if self.stage == "base" and weights.keys() - {"last", "every"}:
            raise ConfigError("The stage 'base' trains with full context; its objective can be 'last' or 'every'.")
        if self.stage == "base" and self.flex:
            raise ConfigError(
                "flex=true works in the stage 'compress' only; the stage 'base' uses the base's own attention."
            )
        if self.stage == "base" and self.merge and self.shard:
            raise ConfigError(
                "merge=true writes the whole model, but shard=true spreads the model over processes. Leave merge out "
                "and merge the adapter afterwards, or train without shard."
            )
        if self.quantize and (self.shard or (self.stage == "base" and self.merge)):
            raise ConfigError(
                f"quantize={self.quantize} works with neither shard=true nor merge=true: quantized weights cannot be "
                "spread over processes, and merging would round them again. Leave one of these settings out."
            )
        if self.stage == "base" and self.adapter.lora.r == 0:
            raise ConfigError("adapter.lora.r is 0, but the stage 'base' trains only a LoRA; set a rank of at least 1.")
        if self.adapter.embeddings == "table" and self.weight_decay:
            raise ConfigError(
                "adapter.embeddings=table needs weight_decay=0: weight decay would shrink the base's own rows."
            )
        if weights.get("distill") and not self.adapter.lora.conditional:
            raise ConfigError(
                "The objective 'distill' needs adapter.lora.conditional=true: a LoRA for all tokens would change the "
                "teacher together with the student."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML."""
        adapter = {k: v for k, v in self.adapter.to_dict().items() if k != "turns" and not k.startswith("base_")}
        return {**asdict(self), "adapter": adapter, "betas": list(self.betas)}


def load_recipe(source: str | Path, changes: Iterable[str] = (), stage: StageName | None = None) -> Recipe:
    """Load a recipe of the package or a YAML file.

    Args:
        source: the name of a recipe of the package, or a path.
        changes: ``key=value`` pairs that override the file. A dot in a key leads into a nested table, as in
            ``data.path``; values are YAML.
        stage: the stage to run. None runs the stage of the file.

    Raises:
        ConfigError: if there is no such recipe, the file holds no table, or a key or value is invalid.
    """
    values = read_table(find_recipe(source))
    sections = {name: values.pop(name, None) or {} for name in ("base", "compress")}
    for name, section in sections.items():
        if not isinstance(section, dict):
            raise ConfigError(f"The section {name} of the recipe {source} holds {section!r}; it must be a table.")
        if unknown := sorted(map(str, section.keys() - {f.name for f in fields(Recipe)})):
            meant = did_you_mean(unknown, (f.name for f in fields(Recipe)))
            raise ConfigError(f"The section {name} of the recipe {source} has unknown keys {unknown}.{meant}")
    given: dict[str, Any] = {}
    for change in changes:
        _set(given, change)
    if named := sorted(given.keys() & sections.keys()):
        raise ConfigError(
            f"The change of {named[0]}: leave the stage's name out; changes apply to the stage that runs."
        )
    chosen = str(stage or given.get("stage") or values.get("stage", "compress"))
    values = _over(_over(values, sections.get(chosen, {})), given)
    adapter = values.get("adapter") or {}
    if isinstance(adapter, Mapping) and "turns" in adapter:
        raise ConfigError(f"The recipe {source} sets adapter.turns; set turns instead, such as turns.template=chat.")
    return build_settings(Recipe, {**values, "adapter": adapter, "stage": chosen}, f"The recipe {source}")


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def read_table(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a table.

    Raises:
        ConfigError: if the file cannot be read, or holds no table.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The recipe {path} cannot be read: {reason(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"The recipe {path} holds no table of settings.")
    try:
        return _numbers(values)
    except RecursionError:
        raise ConfigError(f"The recipe {path} cannot be read: one of its tables contains itself.") from None


def _set(table: dict[str, Any], change: str) -> None:
    key, found, value = change.partition("=")
    if not found or not key:
        raise ConfigError(f"The change {change!r}: write key=value, such as max_steps=200 or data.path=chats.jsonl.")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"The change {change!r}: an earlier change gave {parent} a value, so it cannot hold {last}."
            )
    try:
        table[last] = _numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"The change {change!r}: the value is not YAML: {error}") from error


def _numbers(value: Any) -> Any:
    """Turn texts such as "3e-4" into numbers, in nested values too: YAML takes an exponent without a point for text."""
    if isinstance(value, dict):
        return {key: _numbers(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_numbers(held) for held in value]
    if not isinstance(value, str) or not _EXPONENT.fullmatch(value):
        return value
    return int(number) if (number := float(value)).is_integer() else number


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Override ``below`` by ``above``, table by table; an objective is replaced as a whole."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "objective"
        merged[key] = _over(merged[key], value) if nested else value
    return merged
