"""AdaptedModel: a stock model with an adapter, the tensors that are trained, and their files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from ccm.core.adapter_folders import find_adapter
from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError, InputError, UnsupportedModelError
from ccm.core.provenance import called
from ccm.core.rules import Rule, make_rule
from ccm.engine.adapter_files import (
    BaseFacts,
    SavedAdapter,
    check_base,
    check_fit,
    copy_tensors,
    read_adapter,
    with_rule,
    write_adapter,
)
from ccm.engine.attention import EAGER, SDPA
from ccm.engine.families import attention_modules, entry_sizes, max_positions
from ccm.engine.fingerprint import effective_settings, fingerprint_base, fingerprint_tensors, pack_signs, sample_signs
from ccm.engine.key_values import BaseMemory
from ccm.engine.lora import CompEmbedding, PlainLoRA, TableEmbedding, inject_lora, merge_stage1
from ccm.engine.memory_files import Origin
from ccm.engine.quantization import Quantization
from ccm.engine.seams import try_seams
from ccm.engine.stack import check_seams

check_seams()


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy (P,) in nats, in float32, of targets (P,) under logits (P, V) of any dtype."""
    return cross_entropy(logits.float(), targets, reduction="none")


@dataclass(frozen=True)
class ParallelOutput:
    """The result of a parallel pass.

    Attributes:
        logits: (P, V) at the P tokens with a target, row by row; (B, T, V) if the layout has no targets.
        targets: (P,) int64, these targets; None if the layout has none.
    """

    logits: Tensor
    targets: Tensor | None

    @property
    def loss(self) -> Tensor | None:
        """The mean cross-entropy over all targets of the batch, in nats; None if the layout has none."""
        return None if self.targets is None else token_losses(self.logits, self.targets).mean()


class AdaptedModel(nn.Module):
    """The base of :class:`ccm.engine.decoder.CCMModel` and :class:`ccm.engine.t5.seq2seq.CCMEncoderDecoder`.

    Args:
        base: a model of a supported family. It is changed in place: it gets our attention functions and the LoRA, and
            its weights are frozen.
        config: the settings.
        stage1: a plain LoRA to merge into the base's weights first.

    Raises:
        UnsupportedModelError: when the model is not supported, or needs the other class.
        ConfigError: when the config has an unknown rule or option, or the base of a stage-1 LoRA is quantized.
        StackError: when a seam does not work with the installed libraries.
    """

    encoder_decoder: ClassVar[bool]
    build_layout: ClassVar[Callable[..., Any]]  # samples -> the argument of forward

    def __init__(self, base: PreTrainedModel, config: CCMConfig, *, stage1: PlainLoRA | None = None) -> None:
        super().__init__()
        attentions: list[Any] = attention_modules(base)
        if base.config.is_encoder_decoder != self.encoder_decoder:
            kind = "an encoder-decoder" if base.config.is_encoder_decoder else "a decoder alone"
            raise UnsupportedModelError(f"{type(base).__name__} is {kind}; ccm.load finds the class for it.")
        try_seams(self.encoder_decoder)
        self.config, self.stage1 = config, stage1
        signs = sample_signs(base)
        self.base_id = fingerprint_base(base, stage1.fingerprint if stage1 else "", signs)
        self.base_signs = pack_signs(signs)
        self.base_settings = effective_settings(base.config.get_text_config())
        if stage1:
            base = merge_stage1(base, stage1)
        self.rule = _built_rule(config, base)
        self.vocab_size = base.get_input_embeddings().weight.shape[0]
        softcap = getattr(base.config, "attn_logit_softcapping", None)  # of Gemma 2; sdpa would silently ignore it
        kernel = _OURS.get(base.config._attn_implementation, SDPA) if softcap is None else EAGER
        base.set_attn_implementation(kernel)
        if {getattr(attention.config, "_attn_implementation", None) for attention in attentions} != {kernel}:
            raise UnsupportedModelError(f"{type(base).__name__} does not accept a registered attention function.")
        if getattr(base.config, "output_router_logits", False):
            base.config.output_router_logits = False  # their loss is useless: routers are frozen, and misread our masks
        inject_lora(base, config.lora)
        embedding = CompEmbedding if config.embeddings == "separate" else TableEmbedding
        self.comp_embeddings = embedding(base, self._embeddings(config.n_tok_range[1]))
        self.base = base
        linears = ((n, m) for n, m in base.named_modules() if "lora_" in n and isinstance(m, nn.Linear))
        self._lora = {f"{name.removesuffix('.default')}.weight": linear for name, linear in linears}
        self._called = called(base.name_or_path)
        self._origin: tuple[tuple[int, ...], Origin] | None = None
        self.rule.to(base.device)
        self.comp_embeddings.to(base.device)

    def _embeddings(self, most: int) -> int:
        """The number of embeddings that are trained for up to ``most`` COMP tokens a step."""
        return most

    def under(self, rule: str | None = None, **changes: Any) -> Self:
        """The same base and adapter under another rule of memory, or another N; all weights are shared.

        Args:
            rule: see :func:`ccm.engine.adapter_files.with_rule`.
            changes: other settings, such as ``n_tok`` and ``recurrent``.

        Raises:
            ConfigError: when the adapter cannot run as asked.
        """
        config, other = with_rule(self.config, rule, **changes), type(self).__new__(type(self))
        vars(other).update(vars(self), _modules={**self._modules}, config=config, _origin=None)
        if (config.rule, config.rule_options) != (self.config.rule, self.config.rule_options):
            other.rule = _built_rule(config, self.base).to(self.device).train(self.training)
            if config.rule == self.config.rule:  # with other options
                other.rule.load_state_dict(self.rule.state_dict())
        return other

    def shares_base(self, config: CCMConfig) -> bool:
        """Whether an adapter with these settings can run beside this one, on the same weights (:meth:`with_adapter`).

        It can where it was trained on the very base and stage-1 adapter, or on those of the adapter here, of which this
        base may be a relative; with a LoRA on COMP tokens of the same form.
        """
        separate, own = self.config.embeddings == config.embeddings == "separate", self.config.lora
        bases = {self.base_id, self.config.base_fingerprint or self.base_id}
        return config.base_fingerprint in bases and separate and own.conditional and own == config.lora

    def with_adapter(self, adapter: str | Path, rule: str | None = None, **changes: Any) -> Self:
        """A model with another adapter of the same base. Both share the frozen weights; each trains its own.

        Args:
            adapter: folder or Hub id.
            rule: another rule to run under, with other settings as ``changes`` (see :meth:`under`).

        Raises:
            AdapterError: when the adapter is absent or damaged.
            ConfigError: when it cannot run as asked, or cannot share the base (see :meth:`shares_base`).
        """
        saved = read_adapter(find_adapter(adapter))
        if not self.shares_base(saved.config):
            raise ConfigError(
                f"{adapter} cannot share the weights of this model: it was trained on another base or stage-1 adapter, "
                "or has a LoRA of another form. Load it by itself."
            )
        config = with_rule(saved.config, rule, **changes)
        frozen = [tensor for name, tensor in self.base.named_parameters() if "lora_" not in name]
        frozen += [*self.base.buffers(), *(self.stage1.tensors.values() if self.stage1 else ())]
        other = deepcopy(self, {id(tensor): tensor for tensor in frozen})
        other.config, other._origin = config, None
        other.rule = _built_rule(config, self.base).to(self.device)
        other.comp_embeddings = CompEmbedding(self.base, other._embeddings(config.n_tok_range[1])).to(self.device)
        other.load_adapter(saved.tensors_for(config.rule), str(adapter))
        return other.eval()

    # Files -----------------------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        adapter: str | Path,
        base: str | Path | PreTrainedModel | None = None,
        *,
        rule: str | None = None,
        rule_options: Mapping[str, Any] | None = None,
        n_tok: int | None = None,
        recurrent: bool | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str = "auto",
        quantize: Quantization | None = None,
        revision: str | None = None,
        base_revision: str | None = None,
        strict: bool = False,
        **options: Any,
    ) -> Self:
        """Load a base model and put an adapter on it.

        Args:
            adapter: folder or Hub id.
            base: the base model, or its folder or Hub id; the one that the adapter names if None.
            rule: another rule to run under (see :func:`ccm.engine.adapter_files.with_rule`).
            rule_options: other options of the rule; the options of another rule are its defaults.
            n_tok: another N that the adapter was trained with; the adapter's own, too, is checked.
            recurrent: another value of the flag.
            device: the device of a base that is loaded here; if None, a CUDA device if there is one.
            dtype: the dtype of that base; "auto" is the checkpoint's, but float32 for half precision on a CPU.
            quantize: how to store that base's weights in fewer bits (:mod:`ccm.engine.quantization`).
            revision: revision of the adapter on the Hub.
            base_revision: revision of the base on the Hub.
            strict: refuse a quantized or fine-tuned relative of the base that the adapter was trained on.
            options: options of ``AutoModelForCausalLM.from_pretrained``; Hub options hold for the adapter too.

        Raises:
            AdapterError: when the adapter is absent, damaged, or of another base model.
            ConfigError: when the adapter cannot run as asked, or the base or the device is not available.
            UnsupportedModelError: when the base is not supported.
        """
        from ccm.models.load import find_parts  # the one upward import: users of transformers look for this method

        place = {"device": device, "dtype": dtype, "quantize": quantize, **options}
        saved, stock = find_parts(adapter, base, revision=revision, base_revision=base_revision, **place)
        changes = {"n_tok": n_tok, "recurrent": recurrent, "rule_options": rule_options}
        changes = {name: value for name, value in changes.items() if value is not None}
        return cls.on(stock, saved, str(adapter), rule=rule, strict=strict, **changes)

    @classmethod
    def on(
        cls,
        base: PreTrainedModel,
        saved: SavedAdapter,
        where: str,
        *,
        rule: str | None = None,
        strict: bool = False,
        **changes: Any,
    ) -> Self:
        """Put a saved adapter on a base.

        Args:
            base: the stock model; it is changed in place.
            saved: the adapter.
            where: names the adapter in messages.
            rule: another rule to run under, with other settings as ``changes`` (see :meth:`under`).
            strict: refuse a quantized or fine-tuned relative of the base that the adapter was trained on.

        Raises:
            AdapterError: when the adapter is of another base model.
            ConfigError: when it cannot run as asked.
        """
        config = with_rule(saved.config, rule, **changes)
        check_fit(saved.tensors, base, where)
        model = cls(base, config, stage1=saved.stage1)
        check_base(saved, model.base_facts, where, strict=strict)
        model.load_adapter(saved.tensors_for(config.rule), where)
        return model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the adapter into a folder: settings, trained tensors and stage-1 adapter, but not the base model.

        Raises:
            AdapterError: when ``folder`` is no path, or cannot be written.
        """
        config = replace(self.config, base_fingerprint=self.base_id, base_vocab_size=self.vocab_size)
        tensors = self.adapter_tensors()
        write_adapter(SavedAdapter(config, tensors, self.stage1, self.base_signs, self.base_settings), folder)

    def load_adapter(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Copy an adapter's tensors into the model; ``where`` names the adapter in messages.

        Raises:
            AdapterError: see :func:`ccm.engine.adapter_files.copy_tensors`.
        """
        copy_tensors(tensors, self.adapter_tensors(), where)

    def begin_with(self, adapter: str | Path) -> None:
        """Copy the tensors that another adapter of this base shares with the model; if sizes differ, the common part.

        Everything else stays. So an adapter can start its training from one with another rule, N, rank or stage-1
        adapter, or no LoRA.

        Raises:
            AdapterError: when the adapter is absent, damaged, or of another base model.
        """
        saved, own = read_adapter(find_adapter(adapter)), self.adapter_tensors()
        check_base(saved, self.base_facts, str(adapter))
        check_fit(saved.tensors, self.base, str(adapter))
        begun = {name: tensor.detach().clone() for name, tensor in own.items()}
        for name in begun.keys() & saved.tensors.keys():
            both = tuple(slice(min(sizes)) for sizes in zip(begun[name].shape, saved.tensors[name].shape, strict=True))
            begun[name][both] = saved.tensors[name][both].to(begun[name])
        self.load_adapter(begun, str(adapter))

    @property
    def base_facts(self) -> BaseFacts:
        """The facts that tell the base from others."""
        name = self.base.name_or_path or type(self.base).__name__
        return BaseFacts(name, self.base_id, self.vocab_size, self.base_signs, self.base_settings)

    @property
    def device(self) -> torch.device:
        """The device of the base model."""
        return self.base.device

    @property
    def part_sizes(self) -> dict[str, int]:
        """The sizes of memories, by the letters of :class:`ccm.engine.key_values.KeyValues`: L layers, K and D of each
        layer, H hidden, V vocabulary."""
        table = {"L": len(entry_sizes(self.base.config)), "V": self.vocab_size}
        table["H"] = self.base.config.get_text_config().hidden_size
        for layer, (heads, dim) in enumerate(entry_sizes(self.base.config)):
            table |= {f"K{layer}": heads, f"D{layer}": dim}
        return table

    @property
    def max_positions(self) -> int:
        """The number of text positions that the base model was made for."""
        return max_positions(self.base.config)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """All trained tensors by name: LoRA, COMP embeddings, the rule's own parameters."""
        lora = {name: linear.weight for name, linear in self._lora.items()}
        rule = {f"rule.{name}": parameter for name, parameter in self.rule.named_parameters()}
        return lora | rule | {"comp_embeddings.weight": self.comp_embeddings.weight}

    @property
    def origin(self) -> Origin:
        """The origin of the memories that this model makes. It follows the training of the adapter, except for changes
        through the ``.data`` of a tensor."""
        tensors = self.adapter_tensors()
        versions = tuple(tensor._version for tensor in tensors.values())
        if self._origin is None or self._origin[0] != versions:
            config = replace(self.config, base_model="", base_fingerprint="", base_vocab_size=None)  # hints, not facts
            self._origin = (
                versions,
                Origin(config, self.base_id, fingerprint_tensors(tensors, _said(config)), self._called),
            )
        return self._origin[1]

    def check_ids(self, ids: Tensor) -> None:
        """Refuse ids (B, T) that the model does not have; there must be at least one.

        Raises:
            InputError: with the lowest and the highest id.
        """
        lowest, highest = torch.stack(ids.aminmax()).tolist()
        if lowest < 0 or highest >= self.vocab_size:
            raise InputError(
                f"The ids reach from {lowest} to {highest}; the model has ids from 0 to {self.vocab_size - 1}. Is the "
                "tokenizer that of the base model?"
            )

    def check_text(self, memory: BaseMemory, ids: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int]]:
        """Refuse a text (B, T) that cannot follow a memory; ``mask`` (B, T) is False at padding, or None.

        Returns:
            The mask (B, T) bool, and the number of tokens in each row.

        Raises:
            InputError: when the memory is of another model, the shapes do not fit, a row is empty, or an id is unknown.
        """
        if memory.origin != self.origin:
            raise InputError("This memory was made with another model, adapter or rule; only that one can read it.")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        if ids.ndim != 2 or ids.shape[0] != memory.batch or mask.shape != ids.shape:
            raise InputError(
                f"The ids have shape {tuple(ids.shape)} and their mask {tuple(mask.shape)}; for a memory of "
                f"{memory.batch} conversations both must be ({memory.batch}, T)."
            )
        lengths = mask.sum(1).tolist()
        if not all(lengths):
            raise InputError("A step has no tokens; every conversation of the batch needs at least one.")
        self.check_ids(ids)
        return mask, lengths

    def _embed(self, ids: Tensor, slots: Tensor) -> Tensor:
        return self.comp_embeddings(self.base.get_input_embeddings()(ids), slots)


def _built_rule(config: CCMConfig, base: PreTrainedModel) -> Rule:
    """The rule of a config, with its parameters for a base."""
    rule, sizes = make_rule(config.rule, dict(config.rule_options)), entry_sizes(base.config)
    hidden = base.config.get_text_config().hidden_size
    rule.build(layers=len(sizes), kv_heads=sizes[0][0], hidden=hidden, n_tok=config.n_tok_range[1])
    return rule


_OURS = {"sdpa": SDPA, "eager": EAGER, SDPA: SDPA, EAGER: EAGER}


def _said(config: CCMConfig) -> dict[str, Any]:
    """The settings that are not None, so that a new field of the settings does not change old fingerprints."""
    return {name: value for name, value in config.to_dict().items() if value is not None}
