"""Recipes: every setting of a training, typed; from YAML files in ``ccm/recipes`` or anywhere, and ``--set key=value``.

A recipe file is a table of the keys of :class:`Recipe`. Its sections ``base:`` and ``compress:`` hold what differs
between the two stages; the section of the stage that runs is laid over the rest.
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

Stage = Literal["base", "compress"]
FOLDER = Path(__file__).with_name("recipes")
OBJECTIVES = ("last", "every", "distill")
_DATA = (".jsonl", ".txt", ".csv", ".parquet", ".gz")  # endings of files that are no recipes
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


@dataclass(frozen=True)
class Recipe:
    """One training. The defaults are the authors' (Compressed Context Memory, ICLR 2024), where they state one.

    Attributes:
        stage: "base" trains the model itself with full context, "compress" an adapter on top of it.
        model: the base model: folder, Hub id, or "builtin".
        base_adapter: a plain LoRA to merge into the base first: what the stage "base" made.
        init_adapter: a compression adapter to begin with, as far as its tensors fit; "builtin" is what the built-in
            base was trained with. In the stage "base", a plain LoRA of the same rank. None begins anew.
        output_dir: where the run and its result go.
        data: what is trained on.
        adapter: the memory and its LoRA; of the stage "base", the LoRA alone. Its turn format is ``turns``.
        turns: how conversations become tokens; where None, by the model's chat template if it has one.
        random_n_tok: whether every batch draws its N from 1 to ``adapter.n_tok``, so that one adapter serves them all.
        objective: weights of the losses "last" (the final output), "every" (each step's answer, given its memory) and
            "distill" (the model's own full-context distribution on the answers).
        max_steps: optimizer steps.
        batch_size: samples a step, over all processes and passes.
        pass_tokens: most tokens, padding included, that a process takes in one pass; a step makes as many passes as
            its batch needs.
        pool: batches that are drawn together and sorted by length, so that little is padded.
        lr: peak learning rate.
        lr_end: share of it that the cosine ends with.
        warmup: share of the steps in which the rate rises from 0.
        weight_decay: of AdamW.
        betas: of AdamW.
        max_grad_norm: gradients are scaled down to this norm.
        max_offset: every sample's first token has a random position from 0 to this; for short base contexts.
        merge: stage "base": write a whole model with the LoRA merged, instead of a PEFT adapter.
        dtype: of the base model; what is trained is float32 in any case.
        quantize: how the base's weights are stored in fewer bits (:mod:`ccm.engine.quantization`).
        mixed_precision: multiply matrices in bfloat16, and leave weights, memory, losses and evaluation in float32, and
            attention in the stage "compress": faster on processors that have instructions for it, slow on others;
            "auto" measures which this one is, at the start.
        saved_dtype: of what is written in the end; bfloat16 halves the files. Checkpoints are float32.
        device: such as "cpu" or "cuda"; a CUDA device if there is one where None.
        flex: whether to attend by flex_attention, on CUDA; where it wins, if None (:mod:`ccm.engine.flex`).
        gradient_checkpointing: keep no activations within layers: less memory, a third more time.
        shard: spread the frozen base over all processes (FSDP2); otherwise each holds it whole (DDP).
        seed: of everything.
        log_every: steps between two records of the log.
        eval_every: steps between two evaluations; 0 for none but the last.
        save_every: steps between two checkpoints; 0 for none but the last.
        keep: checkpoints that stay.
        tensorboard: whether to write TensorBoard logs.
        wandb: whether to write to Weights & Biases.
    """

    stage: Stage = "compress"
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
    warmup: float = bounded(0.03, 0, 1)  # a share of the steps
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
            raise ConfigError("objective gives no loss a weight above 0; nothing would be learned.")
        if self.stage == "compress" and rule_class(self.adapter.rule).compresses == "never":
            raise ConfigError(f"adapter.rule is {self.adapter.rule!r}, which compresses nothing: no adapter is needed.")
        if self.adapter.min_n_tok is not None or self.adapter.max_n_tok is not None:
            raise ConfigError(
                "adapter.min_n_tok and adapter.max_n_tok follow from the training: set adapter.n_tok to the largest N, "
                "and random_n_tok=true to train every N up to it."
            )
        if weights.get("every") and self.stage == "compress" and rule_class(self.adapter.rule).compresses == "context":
            raise ConfigError(
                f"The objective 'every' needs a memory after every step, but the rule {self.adapter.rule!r} compresses "
                "the whole context at once. Use objective={last: 1}."
            )
        if weights.get("every") and self.stage == "compress" and not self.adapter.recurrent:
            raise ConfigError(
                "The objective 'every' needs recurrent memory: without it a step does not see the memory that its "
                "answer is given. Use 'last', or set adapter.recurrent=true."
            )
        if self.stage == "base" and weights.keys() - {"last", "every"}:
            raise ConfigError("The stage 'base' trains with full context: objective can be 'last' or 'every' there.")
        if self.stage == "base" and self.flex:
            raise ConfigError("flex=true is of the stage 'compress'; the stage 'base' attends as the base does.")
        if self.stage == "base" and self.merge and self.shard:
            raise ConfigError(
                "merge=true writes the whole model, which shard=true spreads over processes; leave merge out and merge "
                "the adapter afterwards, or train without shard."
            )
        if self.quantize and (self.shard or (self.stage == "base" and self.merge)):
            raise ConfigError(
                f"quantize={self.quantize} goes with neither shard=true nor merge=true: quantized weights are not "
                "spread over processes, and a sum with them would be rounded once more. Leave one of them out."
            )
        if self.stage == "base" and self.adapter.lora.r == 0:
            raise ConfigError("adapter.lora.r is 0: the stage 'base' trains nothing but a LoRA; give it a rank.")
        if self.adapter.embeddings == "table" and self.weight_decay:
            raise ConfigError("adapter.embeddings=table needs weight_decay=0: it would shrink the base's own rows.")
        if weights.get("distill") and not self.adapter.lora.conditional:
            raise ConfigError(
                "The objective 'distill' needs adapter.lora.conditional=true: an update of all tokens changes the "
                "teacher with the student."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for YAML."""
        adapter = {k: v for k, v in self.adapter.to_dict().items() if k != "turns" and not k.startswith("base_")}
        return {**asdict(self), "adapter": adapter, "betas": list(self.betas)}


def load_recipe(source: str | Path, changes: Iterable[str] = (), stage: Stage | None = None) -> Recipe:
    """A recipe by its name in the package, or from a YAML file.

    Args:
        source: name or path.
        changes: ``key=value`` pairs laid over the file, as ``--set`` takes them: keys with dots for what is nested,
            values as in YAML.
        stage: another than the file's own.

    Raises:
        ConfigError: when there is no such recipe, it is no table, or it holds a key or value that is not known.
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
            f"The change {named[0]}...: leave the stage's name out; what is set holds for the stage that runs."
        )
    chosen = str(stage or given.get("stage") or values.get("stage", "compress"))
    values = _over(_over(values, sections.get(chosen, {})), given)
    adapter = values.get("adapter") or {}
    if isinstance(adapter, Mapping) and "turns" in adapter:
        raise ConfigError(f"The recipe {source} sets adapter.turns; it is set as turns, such as turns.template=chat.")
    return build_settings(Recipe, {**values, "adapter": adapter, "stage": chosen}, f"The recipe {source}")


def find_recipe(source: str | Path) -> Path:
    """The file of a recipe.

    Raises:
        ConfigError: with the names of those that there are, the likeliest first; and when the file's ending is of data.
    """
    if Path(source).suffix.lower() in _DATA:
        raise ConfigError(f"{source} is no recipe. Name data as data.path=FILE, of a recipe such as custom.")
    if Path(source).is_file():
        return Path(source)
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    if str(source) in names:
        return FOLDER / f"{source}.yaml"
    meant = did_you_mean([str(source)], names)
    raise ConfigError(
        f"There is no recipe {source}, as a file or in the package.{meant} There are: {', '.join(names)}."
    )


def write_recipe(recipe: Recipe) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True)


def read_table(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table.

    Raises:
        ConfigError: when it cannot be read, or holds none.
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
        raise ConfigError(f"The recipe {path} cannot be read: a table of it holds itself.") from None


def _set(table: dict[str, Any], change: str) -> None:
    key, found, value = change.partition("=")
    if not found or not key:
        raise ConfigError(f"The change {change!r}: write key=value, such as max_steps=200 or data.path=chats.jsonl.")
    *parents, last = key.strip().split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ConfigError(f"The change {change!r}: {parent} was given a value before; it cannot hold {last}.")
    try:
        table[last] = _numbers(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"The change {change!r}: the value is not YAML: {error}") from error


def _numbers(value: Any) -> Any:
    """The value with 3e-4 as a number, wherever it stands: YAML reads it, without a point, as text. 1e3 is whole."""
    if isinstance(value, dict):
        return {key: _numbers(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_numbers(held) for held in value]
    if not isinstance(value, str) or not _EXPONENT.fullmatch(value):
        return value
    return int(number) if (number := float(value)).is_integer() else number


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` laid over ``below``, table by table; an objective is replaced whole."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "objective"
        merged[key] = _over(merged[key], value) if nested else value
    return merged
