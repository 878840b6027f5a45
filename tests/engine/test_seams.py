"""Libraries whose names are as they were, but that do other things, are refused before a memory is silently lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ccm_config, tiny_base
from peft.tuners.lora.layer import Linear as LoraLinear
from tiny_t5 import needs_t5, tiny_t5
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ccm.core.errors import StackError
from ccm.engine.attention import SDPA
from ccm.engine.decoder import CCMModel
from ccm.engine.last import LastPass
from ccm.engine.lora import CompLinear
from ccm.engine.seams import try_seams
from ccm.engine.t5.seq2seq import CCMEncoderDecoder

KINDS = [pytest.param(False, id="decoder"), pytest.param(True, id="t5")]


@pytest.fixture(autouse=True)
def _untried() -> Any:
    try_seams.cache_clear()
    yield
    try_seams.cache_clear()


def build(encoder_decoder: bool) -> None:
    """The first model of its kind."""
    if encoder_decoder:
        needs_t5()
        CCMEncoderDecoder(tiny_t5(), ccm_config(recurrent=False))
    else:
        CCMModel(tiny_base(), ccm_config())


def top_alone(patch: pytest.MonkeyPatch) -> None:
    """As transformers 5.15 to 5.19 have it: an encoder, whose config is its own, is left with the attention it had."""

    def set_attention(self: PreTrainedModel, name: str) -> None:
        self.config._attn_implementation_internal = name

    patch.setattr(PreTrainedModel, "set_attn_implementation", set_attention)


def nothing_told(patch: pytest.MonkeyPatch) -> None:
    """Attention is called without what rides on the model's call."""
    ours = AttentionInterface()[SDPA]

    def untold(*args: Any, ccm: Any = None, **kwargs: Any) -> Any:
        return ours(*args, **kwargs)

    patch.setitem(AttentionInterface._global_mapping, SDPA, untold)


def without_masks(patch: pytest.MonkeyPatch) -> None:
    """A registered attention function has no mask of padding."""
    patch.setitem(AttentionMaskInterface._global_mapping, SDPA, lambda *args, **kwargs: None)


def everywhere(patch: pytest.MonkeyPatch) -> None:
    """The LoRA is an ordinary one."""
    patch.setattr(CompLinear, "forward", LoraLinear.forward)


def nowhere(patch: pytest.MonkeyPatch) -> None:
    """The rows of COMP tokens do not reach the LoRA."""
    patch.setattr(CompLinear, "forward", lambda self, x: self.base_layer(x))


def cache_renamed(patch: pytest.MonkeyPatch) -> None:
    """As transformers 5.24 had it for those who knew the former name alone: other arguments are swallowed."""
    patch.setattr("ccm.engine.seams.given_cache", lambda model, held: {"kept": held})


def positions_kept(patch: pytest.MonkeyPatch) -> None:
    """The last layer finds positions by the number of the column, whatever it is given."""
    narrow = LastPass.narrow

    def kept(self: LastPass, given: Any) -> Any:
        return (
            tuple(x[:, : len(narrow(self, x)[0])] for x in given) if isinstance(given, tuple) else narrow(self, given)
        )

    patch.setattr(LastPass, "narrow", kept)


FAULTS = [
    (positions_kept, False, "last layer of a model of the type llama does not compute a part alone"),
    (cache_renamed, False, "A model of the type llama does not read the cache that it is given"),
    (top_alone, True, "mask of a memory does not reach the layers of a model of the type t5"),
    (nothing_told, False, "mask of a memory does not reach the layers of a model of the type llama"),
    (nothing_told, True, "mask of a memory does not reach the layers of a model of the type t5"),
    (without_masks, False, "type llama reads padding"),
    (without_masks, True, "type t5 reads padding"),
    (everywhere, False, "LoRA acts on text, not on COMP tokens alone, in a model of the type llama"),
    (everywhere, True, "LoRA acts on text, not on COMP tokens alone, in a model of the type t5"),
    (nowhere, False, "LoRA does not act on COMP tokens in a model of the type llama"),
    (nowhere, True, "LoRA does not act on COMP tokens in a model of the type t5"),
]


@pytest.mark.parametrize(("fault", "encoder_decoder", "message"), FAULTS)
def test_a_seam_that_does_not_hold_is_refused_with_the_versions(
    fault: Callable[[pytest.MonkeyPatch], None], encoder_decoder: bool, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    with pytest.raises(StackError, match=f"{message}.*; installed: torch.*Install tested versions") as refused:
        build(encoder_decoder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("encoder_decoder", KINDS)
def test_seams_that_hold_are_tried_once_and_leave_nothing_behind(encoder_decoder: bool) -> None:
    """Whatever a user has set: the random state, the default device and dtype."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build(encoder_decoder)
    build(encoder_decoder)
    assert try_seams.cache_info().misses == 1
    try_seams.cache_clear()
    torch.manual_seed(5)
    kept = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            try_seams(encoder_decoder)
    finally:
        torch.set_default_dtype(kept)
    assert torch.equal(torch.rand(1), expected)
    assert torch.is_grad_enabled()
