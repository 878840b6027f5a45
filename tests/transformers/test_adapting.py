"""Stock models under an adapter."""

from __future__ import annotations

import gc
import weakref

import torch
from transformers import AutoModelForCausalLM

from ccm.models.builtin import WEIGHTS
from ccm.transformers.adapting import under_adapter


def test_a_stock_model_reads_text_as_before_and_is_let_go_with_its_adapter() -> None:
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS / "base", dtype=torch.float64)
    ids, parts = torch.tensor([[5, 6, 7]]), len([*base.modules()])
    with torch.no_grad():
        before = base(ids).logits
        model = under_adapter(base, None)
        assert base(ids).logits.equal(before)
    assert model.config.rule == "concat"
    assert under_adapter(base, None) is model
    assert len([*base.modules()]) == len([*model.base.modules()]) > parts
    gone = weakref.ref(base)
    del base, model
    gc.collect()
    assert gone() is None
