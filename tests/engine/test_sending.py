"""Steps of the recursion ask the model's device for no value, so that a GPU is given work ahead."""

from __future__ import annotations

import pytest
import torch
from helpers import RULE_NAMES, make_sample, pad_left, tiny_model

from ccm.core.rules import rule_class
from ccm.core.sending import send, send_numbers
from ccm.engine.decoder import CCMModel


@pytest.mark.covers("rule", "sink padded")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", [name for name in RULE_NAMES if rule_class(name).compresses == "step"])
def test_a_step_is_compressed_without_a_value_from_the_device(
    rule: str, sink: bool, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device "meta" has no values: whatever asks for one fails."""
    model = tiny_model(rule, sink=sink)
    rows = [make_sample([5, 4], 3, seed=seed) for seed in (1, 2)]
    ids, mask = pad_left([rows[0].steps[1].ids, rows[1].steps[1].ids[: -2 if padded else None]])
    first, _ = pad_left([row.steps[0].ids for row in rows])  # of which transformers asks whether its mask is causal
    memory = model.compress(model.empty_memory(2), first)
    expected = model.compress(memory, ids, mask)
    origin = model.origin
    monkeypatch.setattr(CCMModel, "origin", property(lambda model: origin))  # a fingerprint of values
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # which "meta" does not have
    found = model.to("meta").compress(memory.to("meta"), ids, mask)
    assert found.keys[0].device.type == "meta"
    assert found.keys[0].shape == expected.keys[0].shape
    assert (found.steps, found.ends) == (expected.steps, expected.offset.tolist())
    if model.rule.reversible:  # what the records say is what is held
        assert tuple(sum(step.entries or 0 for step in row) for row in found.steps) == expected.entries


@pytest.mark.parametrize("values", [[1, 2], [[True], [False]]])
def test_what_is_sent_arrives_as_it_was(values: list) -> None:
    sent = send_numbers(values, torch.device("cpu"))
    assert sent.tolist() == values
    assert send(sent, torch.device("meta")).shape == sent.shape
