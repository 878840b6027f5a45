"""Which step wrote which entry: the weights against the memory itself, and the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_close, make_sample, tiny_model

from ccm.core.errors import ConfigError
from ccm.evaluation.writes import draw_writes, write_weights

SAMPLE = make_sample([3, 5, 2, 4], 3)


@pytest.mark.parametrize(("rule", "expected"), [("merge", [0.25] * 4), ("ema", [0.125, 0.125, 0.25, 0.5])])
def test_constant_weights_are_those_of_the_rule(rule: str, expected: list[float]) -> None:
    weights = write_weights(tiny_model(rule), SAMPLE.steps)
    assert weights.shape == (4, 3, 4, 2, 4)  # steps to, layers, heads, slots, steps from
    assert_close(weights[-1], torch.tensor(expected).expand(3, 4, 2, 4), depth=1)


def test_gated_weights_are_those_by_which_the_memory_was_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gate", family="llama_gqa")
    weights = write_weights(model, SAMPLE.steps)
    assert weights.shape == (4, 3, 2, 2, 4)
    assert_close(weights.sum(-1), torch.ones(4, 3, 2, 2), depth=1)
    written: dict[int, torch.Tensor] = {}
    write = model.rule.write
    monkeypatch.setattr(model.rule, "write", lambda layer, *rest: written.setdefault(layer, write(layer, *rest)))
    memory = model.empty_memory()
    for t, step in enumerate(SAMPLE.steps):
        written.clear()
        with torch.no_grad():
            memory = model.compress(memory, torch.tensor([step.ids]))
        assert len(written) == 3
        for layer, weight in written.items():
            now = weight.expand(1, 2, 2, 1).reshape(2, 2).to(weights.dtype)  # heads, slots
            assert_close(weights[t, layer, :, :, t], now, depth=1)
            if t:  # the share of the memory that stays is what all earlier steps have in it
                earlier = (1 - now[..., None]) * weights[t - 1, layer, :, :, :t]
                assert_close(weights[t, layer, :, :, :t], earlier, depth=1)
    assert weights[-1].std(-1).max() > 0.05


def test_the_model_is_as_before() -> None:
    model = tiny_model("gate")
    rule = model.rule
    write_weights(model, SAMPLE.steps)
    assert model.rule is rule


def test_a_rule_that_mixes_nothing_has_no_weights_to_show() -> None:
    with pytest.raises(ConfigError, match="'concat' mixes no steps"):
        write_weights(tiny_model("concat"), SAMPLE.steps)


def test_the_picture_is_a_png_also_for_many_layers(tmp_path: Path) -> None:
    for layers in (1, 6):
        path = tmp_path / f"{layers}.png"
        draw_writes(torch.rand(3, layers, 2, 2, 3), ["one", "two", "three"], "title", path)
        assert path.read_bytes().startswith(b"\x89PNG")
