"""Keys that are moved equal keys that were read there, in every family and rope that can be; others are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ABSOLUTE, FAMILIES, VOCAB, assert_close, tiny_base
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ccm.core.errors import UnsupportedModelError
from ccm.engine.rope import Rope

TOKENS, MOVE = 9, 13
ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.5, 2.0, 3.0],
        "long_factor": [4.0, 5.0, 6.0, 7.0],
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def with_rope(**parameters: Any) -> PreTrainedModel:
    """A tiny Llama with another rope."""
    return tiny_base("llama", rope_parameters={"rope_theta": 10000.0, **parameters})


@torch.no_grad()
def keys_at(base: PreTrainedModel, start: int, ids: Tensor) -> list[Tensor]:
    """The keys of a text that begins at a position, per layer."""
    cache = DynamicCache()
    positions = torch.arange(start, start + ids.shape[1])[None]
    base(ids, position_ids=positions, past_key_values=cache, attention_mask=torch.ones_like(ids))
    return [layer.keys for layer in cache.layers]


def check(base: PreTrainedModel) -> None:
    """Moved keys are those of the text read elsewhere; turned back, they are what they were."""
    ids = torch.randint(3, VOCAB, (2, TOKENS), generator=torch.Generator().manual_seed(1))
    rope = Rope(base)
    there, back = (rope.by(torch.full((TOKENS,), delta)) for delta in (MOVE, -MOVE))
    first, second = keys_at(base, 2, ids), keys_at(base, 2 + MOVE, ids)
    for layer, (one, other) in enumerate(zip(first, second, strict=True)):
        assert_close(there(layer, one), other, depth=1)
        assert_close(back(layer, other), one, depth=1)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ABSOLUTE])
def test_moved_keys_are_those_of_the_text_read_there(family: str) -> None:
    check(tiny_base(family))


@pytest.mark.parametrize("family", ABSOLUTE)
def test_families_that_add_positions_to_the_embeddings_are_refused(family: str) -> None:
    with pytest.raises(UnsupportedModelError, match="no rotary positions"):
        Rope(tiny_base(family))


def test_exaone_without_a_window_knows_positions_in_every_layer() -> None:
    check(tiny_base("exaone4", sliding_window=None, layer_types=["full_attention"] * 3))


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_that_can_be_moved(rope: str) -> None:
    check(with_rope(**ROPES[rope]))


@pytest.mark.parametrize("family", ["smollm3", "cohere2", "exaone4", "llama4"])
def test_layers_without_positions_stay(family: str) -> None:
    turn, keys = Rope(tiny_base(family)).by(torch.tensor([1, 2, 3])), torch.randn(1, 2, 3, 8)
    assert [torch.equal(turn(layer, keys), keys) for layer in range(3)] == [False, True, False]


def test_every_key_moves_by_its_own_number() -> None:
    turn, keys = Rope(tiny_base()).by(torch.tensor([0, 5])), torch.randn(1, 4, 2, 8)
    moved = turn(0, keys)
    assert_close(moved[:, :, 0], keys[:, :, 0], depth=1)
    assert (moved[:, :, 1] - keys[:, :, 1]).abs().max() > 0.1


def test_half_precision_is_turned_in_float32() -> None:
    rope, keys = Rope(tiny_base()), torch.randn(1, 4, 2, 8, dtype=torch.bfloat16)
    turn = rope.by(torch.tensor([3, 40]))
    assert turn(0, keys).dtype == torch.bfloat16
    assert torch.equal(turn(0, keys), turn(0, keys.float()).to(torch.bfloat16))


def test_a_rope_that_changes_with_the_length_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="rope_type 'dynamic'"):
        Rope(with_rope(rope_type="dynamic", factor=2.0))


def test_a_model_without_rotary_positions_is_refused() -> None:
    base = tiny_base()
    del base.model.rotary_emb
    with pytest.raises(UnsupportedModelError, match="no rotary positions"):
        Rope(base)


def test_positions_that_do_not_add_up_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    monkeypatch.setattr(
        base.model.rotary_emb, "forward", lambda x, position_ids: (position_ids[..., None].float(),) * 2
    )
    with pytest.raises(UnsupportedModelError, match="do not add up"):
        Rope(base)
