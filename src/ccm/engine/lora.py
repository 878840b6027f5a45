"""Seam 2: what is trained. A LoRA that acts on COMP tokens alone, and the COMP embeddings.

PEFT builds the LoRA on the stock model; only its linear layer is ours. The rows that hold COMP tokens reach it from a
pre-hook on each attention module: those run again under gradient checkpointing, so the rows are right there too.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ccm.core.config import LoRASettings
from ccm.core.errors import AdapterError, ConfigError, UnsupportedModelError, listed
from ccm.engine.families import PROJECTIONS, attention_modules, projection_paths
from ccm.engine.fingerprint import fingerprint_tensors
from ccm.engine.quantization import is_quantized

_UNREAD = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "bias", "layers_to_transform")
_active = threading.local()  # .comp: the CompRows of the attention call under way, in this thread


class CompRows:
    """Picks the COMP rows of what an attention's projections read: once for those that read the same."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._read: Tensor | None = None
        self._picked = rows

    def of(self, x: Tensor) -> Tensor:
        """(P, in) of ``x`` (..., in)."""
        if x is not self._read:
            self._read, self._picked = x, x.reshape(-1, x.shape[-1]).index_select(0, self.rows)
        return self._picked


class CompLinear(LoraLinear):
    """A PEFT LoRA linear whose update is computed for COMP rows only, and added to them only."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x`` (..., in) to (..., out); the update is computed in float32, or in float64 on a base of that dtype."""
        result = self.base_layer(x, *args, **kwargs)
        comp: CompRows | None = getattr(_active, "comp", None)
        if comp is None or self.disable_adapters:
            return result
        flat, picked = result.view(-1, result.shape[-1]), comp.of(x)
        for name in self.active_adapters:
            a, b = self.lora_A[name].weight, self.lora_B[name].weight  # not the modules: their calls take longer
            exact = torch.promote_types(picked.dtype, a.dtype)
            low = linear(self.lora_dropout[name](picked.to(exact)), a.to(exact)) * self.scaling[name]
            update = linear(low, b.to(exact)).to(flat.dtype)
            flat.index_add_(0, comp.rows, update)  # also with no rows: distributed training needs it
        return result

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError("A conditional LoRA acts on COMP tokens alone; it cannot be merged into the base weights.")


@dataclass(frozen=True)
class PlainLoRA:
    """A LoRA as PEFT or the authors save it: settings, and tensors by PEFT's names without the adapter's name.

    Attributes:
        settings: of ``adapter_config.json``.
        tensors: LoRA tensors, named from the base model down.
        comp: the rows of COMP (and, in merge adapters, SUM) embeddings, (N or 2N, hidden); None in stage-1 adapters.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    comp: Tensor | None

    @property
    def fingerprint(self) -> str:
        """16 hex digits of tensors and scale."""
        return fingerprint_tensors(self.tensors, {k: self.settings[k] for k in ("r", "lora_alpha")})


def check_plain(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a LoRA that is more than A, B and one scale.

    Raises:
        AdapterError: naming what it uses.
    """
    unread = [k for k in _UNREAD if settings.get(k) not in (None, False, {}, "none")]
    if unread:
        raise AdapterError(f"{where} uses {', '.join(unread)}; only a plain LoRA can be read.")


def merge_stage1(base: PreTrainedModel, lora: PlainLoRA) -> PreTrainedModel:
    """Add a stage-1 LoRA to the base's weights; returns the stock model.

    Raises:
        AdapterError: when the adapter is more than a plain LoRA, lacks tensors, or has some for which the model has no
            place.
        ConfigError: when the base is quantized: a sum would be rounded to its few bits once more.
    """
    if is_quantized(base):
        raise ConfigError(
            "A stage-1 adapter cannot be merged into a quantized base. Merge it in full precision first, by "
            "`ccm adapters merge`, or by merge=true where it is trained, and quantize what that "
            "writes."
        )
    check_plain(lora.settings, "The stage-1 adapter")
    settings = {k: lora.settings[k] for k in ("r", "lora_alpha", "target_modules")}
    wrapped = get_peft_model(base, LoraConfig(**settings))
    named = {f"base_model.model.{name}": tensor for name, tensor in lora.tensors.items()}
    try:
        result = set_peft_model_state_dict(wrapped, named)
    except RuntimeError as error:
        raise AdapterError(f"The stage-1 adapter does not fit {type(base).__name__}: {error}") from error
    missing, unknown = [name for name in result.missing_keys if "lora_" in name], result.unexpected_keys
    if missing or unknown:  # what is missing would stay random
        raise AdapterError(
            f"The stage-1 adapter does not fit {type(base).__name__}: missing {listed(missing)}, unknown "
            f"{listed(unknown)}."
        )
    return wrapped.merge_and_unload()


def inject_lora(base: PreTrainedModel, settings: LoRASettings) -> None:
    """Put the LoRA on every attention projection of the model, in place, in float32; base weights are frozen.

    With rank 0 there is none, and only what stands in their input is told to the attention modules.

    Raises:
        ConfigError: when the model carries an adapter already.
        UnsupportedModelError: when any projection of any layer was not adapted.
    """
    if any(isinstance(module, LoraLinear) for module in base.modules()):
        raise ConfigError("This base model already carries an adapter; load a fresh one for another.")
    base.requires_grad_(False)
    attentions = attention_modules(base)
    for attention in attentions:
        attention.register_forward_pre_hook(_announce, with_kwargs=True)
        attention.register_forward_hook(_forget, always_call=True)
    if settings.r == 0:
        return
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=projection_paths(base),
    )
    wanted: type[nn.Module] = CompLinear if settings.conditional else LoraLinear
    custom = {nn.Linear: wanted, Conv1D: wanted}  # on quantized linears too, instead of PEFT's classes for them
    config._register_custom_module(custom)
    inject_adapter_in_model(config, base)
    for attention in attentions:
        for name in PROJECTIONS[base.config.model_type]:
            if type(getattr(attention, name)) is not wanted:
                raise UnsupportedModelError(
                    f"{name} of layer {attention.layer_idx} of {type(base).__name__} is a "
                    f"{type(getattr(attention, name)).__name__}, not a {wanted.__name__}; the adapter would act on "
                    "part of the model only."
                )
    for name, parameter in base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _announce(module: nn.Module, args: tuple, kwargs: dict) -> None:
    """Tell this attention module's linears, and the pass itself, what stands in its input."""
    if (current := kwargs.get("ccm")) is None:
        return
    current.hidden = args[0] if args else kwargs["hidden_states"]
    if current.rows is not None:
        _active.comp = CompRows(current.rows)


def _forget(module: nn.Module, args: tuple, output: object) -> None:
    """Nothing of a pass stays in view of what is called after it."""
    _active.comp = None


class CompEmbedding(nn.Module):
    """The N COMP embeddings, kept beside the base's table, in float32.

    Attributes:
        weight: (N, hidden).
    """

    def __init__(self, base: PreTrainedModel, n_tok: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_embeddings(base, n_tok))

    def forward(self, text: Tensor, slots: Tensor) -> Tensor:
        """Put the COMP rows where ``slots`` (B, T) >= 0 into the text's embeddings (B, T, hidden)."""
        return torch.where(slots[..., None] >= 0, self.weight[slots.clamp(min=0)].to(text.dtype), text)


class TableEmbedding(nn.Module):
    """The COMP embeddings as the last N rows of the base's own table (ablation): only those rows get gradients.

    An optimizer is given the whole table: its weight decay must be 0, or it shrinks the other rows.
    """

    def __init__(self, base: PreTrainedModel, n_tok: int) -> None:
        super().__init__()
        rows = initial_embeddings(base, n_tok)
        self.vocab = base.get_input_embeddings().weight.shape[0]
        base.resize_token_embeddings(self.vocab + n_tok, mean_resizing=False)
        self._table = [base.get_input_embeddings()]  # in a list: the table stays the base's, not ours
        table = self._table[0].weight.requires_grad_()
        table.data[self.vocab :] = rows.to(table.dtype)
        table.register_hook(lambda grad: torch.cat([torch.zeros_like(grad[: self.vocab]), grad[self.vocab :]]))

    @property
    def weight(self) -> Tensor:
        """(N, hidden), a view of the table."""
        return self._table[0].weight[self.vocab :]

    forward = CompEmbedding.forward


def initial_embeddings(base: PreTrainedModel, count: int) -> Tensor:
    """(count, hidden) float32: row ``-k - 1`` is the mean of the base's embedding outputs ``k::count``, as the authors.

    Of the outputs, not the table: some families scale inside the embedding.
    """
    embed = base.get_input_embeddings()
    vocab, device = embed.weight.shape[0], embed.weight.device
    with torch.no_grad():
        means = [embed(torch.arange(k, vocab, count, device=device)).float().mean(0) for k in range(count)]
    return torch.stack(means[::-1])
