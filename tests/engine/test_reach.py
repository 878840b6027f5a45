"""How far layers see and how they scale, in text positions: against plain loops and the stock models' own layers."""

from __future__ import annotations

import pytest
import torch
from helpers import WINDOW, assert_close, tiny_base

from ccm.engine.families import attention_modules
from ccm.engine.reach import Reach, reach_of, retuned


def test_a_window_ends_at_the_query_and_a_chunk_begins_at_a_multiple() -> None:
    query, key = torch.tensor([6, 7, 8])[:, None], torch.arange(9)
    assert [row.nonzero().flatten().min().item() for row in Reach(3).covers(query, key)] == [4, 5, 6]
    assert [row.nonzero().flatten().min().item() for row in Reach(4, chunked=True).covers(query, key)] == [4, 4, 8]


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", [None] * 3), ("gemma2", [None] * 3), ("llama4", [Reach(WINDOW, True), None, Reach(WINDOW, True)])],
)
def test_a_layer_tells_of_chunks_by_its_config(family: str, expected: list[Reach | None]) -> None:
    assert [reach_of(attention, None) for attention in attention_modules(tiny_base(family))] == expected
    assert reach_of(torch.nn.Module(), 5) == Reach(5)


def test_a_query_is_scaled_by_its_position_wherever_it_stands() -> None:
    """Stock, the scale of a token is that of its column: here, of three later ones."""
    layer = attention_modules(tiny_base("llama4"))[1]
    query, positions = torch.randn(2, 4, 3, 8), torch.tensor([[9, 10, 11], [30, 31, 32]])

    def stock(at: torch.Tensor) -> torch.Tensor:
        return (1 + layer.attn_scale * torch.log1p(((at + 1) // layer.floor_scale).float()))[..., None, :, None]

    columns = torch.tensor([4, 5, 6])
    retold = retuned(layer, query * stock(columns), torch.zeros(2, 2, 7, 8), positions)
    assert_close(retold, query * stock(positions), depth=1)
    assert (retold - query * stock(columns)).abs().max() > 0.1


@pytest.mark.parametrize(("family", "layer"), [("llama", 0), ("smollm3", 1), ("llama4", 0)])
def test_the_queries_of_other_layers_stay(family: str, layer: int) -> None:
    query = torch.randn(1, 4, 3, 8)
    assert retuned(attention_modules(tiny_base(family))[layer], query, query, torch.tensor([[90, 91, 92]])) is query
