"""Seam 2: the trained parts, which are a LoRA that acts on COMP tokens only, and the COMP embeddings.

PEFT puts the LoRA on the stock model; only the linear layer is our own. A pre-hook on each attention module tells it
the rows of the COMP tokens. Gradient checkpointing runs these hooks again, so that the rows are right there too.
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
_active = threading.local()  # .comp: the CompRows of the attention module that this thread runs at the moment


class CompRows:
    """Picks the COMP rows from the input of projections; those with the same input share the result."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self._read: Tensor | None = None
        self._picked = rows

    def of(self, x: Tensor) -> Tensor:
        """The COMP rows (P, in) of ``x`` (..., in)."""
        if x is not self._read:
            self._read, self._picked = x, x.reshape(-1, x.shape[-1]).index_select(0, self.rows)
        return self._picked


class CompLinear(LoraLinear):
    """A PEFT LoRA layer that computes its update for COMP rows only, and adds it to them only."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``x`` (..., in) to (..., out). The update is computed in float32, or in float64 on a base of that dtype."""
        result = self.base_layer(x, *args, **kwargs)
        comp: CompRows | None = getattr(_active, "comp", None)
        if comp is None or self.disable_adapters:
            return result
        flat, picked = result.view(-1, result.shape[-1]), comp.of(x)
        for name in self.active_adapters:
            a, b = self.lora_A[name].weight, self.lora_B[name].weight  # calling the modules would take longer
            exact = torch.promote_types(picked.dtype, a.dtype)
            low = linear(self.lora_dropout[name](picked.to(exact)), a.to(exact)) * self.scaling[name]
            update = linear(low, b.to(exact)).to(flat.dtype)
            flat.index_add_(0, comp.rows, update)  # even without rows: distributed training needs the gradients
        return result

    def merge(self, *args: Any, **kwargs: Any) -> None:
        raise ConfigError("A conditional LoRA acts on COMP tokens only; it cannot be merged into the base weights.")


@dataclass(frozen=True)
class PlainLoRA:
    """A LoRA as PEFT or the authors save it.

    Attributes:
        settings: the contents of ``adapter_config.json``.
        tensors: the LoRA tensors by their names within the base model, without the name that PEFT gives an adapter.
        comp: (N, hidden) COMP embeddings; (2N, hidden) with SUM embeddings in merge adapters; None in stage-1 adapters.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    comp: Tensor | None

    @property
    def fingerprint(self) -> str:
        """16 hex digits from tensors and scale."""
        return fingerprint_tensors(self.tensors, {k: self.settings[k] for k in ("r", "lora_alpha")})


def check_plain(settings: Mapping[str, Any], where: str) -> None:
    """Refuse a LoRA that has more than A, B and one scale.

    Raises:
        AdapterError: with the settings that it uses.
    """
    unread = [k for k in _UNREAD if settings.get(k) not in (None, False, {}, "none")]
    if unread:
        raise AdapterError(f"{where} uses {', '.join(unread)}; only a plain LoRA can be read.")


def merge_stage1(base: PreTrainedModel, lora: PlainLoRA) -> PreTrainedModel:
    """Add a stage-1 LoRA to the weights of a base, and return the stock model.

    Raises:
        AdapterError: when the adapter is more than a plain LoRA, or its tensors do not fit the model.
        ConfigError: when the base is quantized, since the sum would be rounded again.
    """
    if is_quantized(base):
        raise ConfigError(
            "A stage-1 adapter cannot be merged into a quantized base. Merge it in full precision first, by "
            "`ccm adapters merge`, or by merge=true where it is trained, and quantize the result."
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
    if missing or unknown:  # PEFT would leave missing tensors random
        raise AdapterError(
            f"The stage-1 adapter does not fit {type(base).__name__}: missing {listed(missing)}, unknown "
            f"{listed(unknown)}."
        )
    return wrapped.merge_and_unload()


def inject_lora(base: PreTrainedModel, settings: LoRASettings) -> None:
    """Put a LoRA in float32 on every attention projection of a model, in place, and freeze the base weights.

    With rank 0 there is no LoRA; the hooks on the attention modules are set all the same.

    Raises:
        ConfigError: when the model has an adapter already.
        UnsupportedModelError: when a projection of any layer did not get the LoRA.
    """
    if any(isinstance(module, LoraLinear) for module in base.modules()):
        raise ConfigError("This base model already has an adapter; load the base again for another one.")
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
    custom = {nn.Linear: wanted, Conv1D: wanted}  # quantized linear layers too, instead of PEFT's classes for them
    config._register_custom_module(custom)
    inject_adapter_in_model(config, base)
    for attention in attentions:
        for name in PROJECTIONS[base.config.model_type]:
            if type(getattr(attention, name)) is not wanted:
                raise UnsupportedModelError(
                    f"{name} of layer {attention.layer_idx} of {type(base).__name__} is a "
                    f"{type(getattr(attention, name)).__name__}, not a {wanted.__name__}; the adapter would act on "
                    "a part of the model only."
                )
    for name, parameter in base.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


def _announce(module: nn.Module, args: tuple, kwargs: dict) -> None:
    """Tell the pass its hidden states, and the linear layers of this attention module their COMP rows."""
    if (current := kwargs.get("ccm")) is None:
        return
    current.hidden = args[0] if args else kwargs["hidden_states"]
    if current.rows is not None:
        _active.comp = CompRows(current.rows)


def _forget(module: nn.Module, args: tuple, output: object) -> None:
    """Forget the COMP rows, so that later calls do not see them."""
    _active.comp = None


class CompEmbedding(nn.Module):
    """The N COMP embeddings beside the base's table, in float32.

    Attributes:
        weight: (N, hidden).
    """

    def __init__(self, base: PreTrainedModel, n_tok: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial_embeddings(base, n_tok))

    def forward(self, text: Tensor, slots: Tensor) -> Tensor:
        """The embeddings (B, T, hidden) of text, with row k of the COMP embeddings where ``slots`` (B, T) is k >= 0."""
        return torch.where(slots[..., None] >= 0, self.weight[slots.clamp(min=0)].to(text.dtype), text)


class TableEmbedding(nn.Module):
    """The COMP embeddings as the last N rows of the base's own table (ablation). Only these rows get gradients.

    An optimizer gets the whole table. Its weight decay must be 0, or it shrinks the other rows.
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
    """(count, hidden) float32. As the authors do, row ``-k - 1`` is the mean of the base's embeddings ``k::count``.

    The embeddings are outputs of the module, not rows of its table, since some families scale them.
    """
    embed = base.get_input_embeddings()
    vocab, device = embed.weight.shape[0], embed.weight.device
    with torch.no_grad():
        means = [embed(torch.arange(k, vocab, count, device=device)).float().mean(0) for k in range(count)]
    return torch.stack(means[::-1])
