"""The last layer, computed where it is read, gives what it gives as a whole: logits and gradients."""

from __future__ import annotations

import pytest
import torch
from helpers import KERNELS, RULE_NAMES, assert_close, ccm_config, layout_of, make_sample, tiny_model
from torch import Tensor

from ccm.core.rules import make_rule
from ccm.engine.decoder import CCMModel
from ccm.engine.families import last_layer
from ccm.engine.last import MOST, last_pass
from ccm.engine.layout import IGNORE, Layout, Sample, Step, build_layout


def asked(lengths: list[int], query: int, targets: int, head: int = 0) -> Sample:
    """A sample whose query's last tokens have targets."""
    sample = make_sample(lengths, query, seed=query, head=head)
    ids = sample.query.ids
    return Sample(sample.steps, Step(ids, [IGNORE] * (query - targets) + [*ids[-targets:]]), sample.head)


ROWS = [asked([7, 5, 6, 7, 5, 6], 4, 2, head=3), asked([3, 7], 5, 1)]


def run(model: CCMModel, layout: Layout) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    output = model(layout)
    output.loss.backward()
    tensors = model.adapter_tensors().items()
    return output.logits.detach(), {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in tensors}


def assert_same(model: CCMModel, layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass is the same with the last layer as a whole, and narrower only without."""
    widths: list[int] = []
    handle = last_layer(model.base).register_forward_pre_hook(
        lambda layer, args, kwargs: widths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
        with_kwargs=True,
    )
    logits, gradients = run(model, layout)
    monkeypatch.setattr("ccm.engine.last.MOST", 0.0)
    whole, wanted = run(model, layout)
    handle.remove()
    assert widths[0] <= MOST * layout.ids.shape[1]
    assert widths[-1] == layout.ids.shape[1]
    assert_close(logits, whole)
    for name, gradient in wanted.items():
        assert_close(gradients[name], gradient)


@pytest.mark.covers("rule attn", cases=8)
@pytest.mark.parametrize("rule", ["concat", "merge"])
@pytest.mark.parametrize(("family", "attn"), KERNELS)
def test_every_family_gives_the_same(family: str, attn: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(rule, family=family, attn=attn, sink=True).train()
    assert_same(model, layout_of(model, ROWS), monkeypatch)


@pytest.mark.covers("rule", "recurrent")
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist"])
def test_every_rule_that_hides_text_gives_the_same(rule: str, recurrent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(rule, recurrent=recurrent).train()
    assert_same(model, layout_of(model, ROWS), monkeypatch)


def test_gradient_checkpointing_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("merge").train()
    model.base.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(model, layout_of(model, ROWS), monkeypatch)


def test_targets_within_the_context_keep_their_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("concat").train()
    row = asked([7, 5, 6, 7, 5, 6], 4, 2)
    learned = Step(row.steps[2].ids, row.steps[2].ids)
    assert_same(model, layout_of(model, [Sample([*row.steps[:2], learned, *row.steps[3:]], row.query)]), monkeypatch)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_last_pass_sees_what_the_whole_one_sees(rule: str) -> None:
    model = tiny_model(rule, sink=True)
    layout = layout_of(model, ROWS)
    narrowed, columns = layout.narrowed()
    for field in ("ids", "slots", "blocks", "positions", "targets"):
        same = getattr(layout, field).gather(1, columns) == getattr(narrowed, field)
        assert same[narrowed.blocks >= 0].all()
    assert (narrowed.targets != IGNORE).sum() == (layout.targets != IGNORE).sum()
    assert narrowed.comp_columns.shape == layout.comp_columns.shape
    for row, (wide, narrow) in enumerate(zip(layout.comp_columns, narrowed.comp_columns, strict=True)):
        there = layout.slots[row, wide] >= 0
        assert columns[row, narrow][there].equal(wide[there])


def test_the_columns_by_hand() -> None:
    """`h a C | b C | q y`, under a head: the text of the steps is read by their own blocks alone."""
    rows = [Sample([Step([5]), Step([6])], Step([7, 8], [IGNORE, 9]), head=[4])]
    layout = build_layout(rows, ccm_config(n_tok=1), make_rule("concat"), pad_id=0)
    narrowed, columns = layout.narrowed()
    assert columns.tolist() == [[0, 2, 4, 5, 6]]
    assert narrowed.comp_columns.tolist() == [[1, 2]]
    assert narrowed.blocks.tolist() == [[0, 0, 1, 2, 2]]


def test_a_layer_that_is_read_as_a_whole_runs_as_a_whole() -> None:
    rule = make_rule("concat")
    ids = list(range(3, 9))
    learned = Sample([Step(ids, ids)] * 3, Step(ids, ids))
    assert last_pass(build_layout([learned], ccm_config(), rule, pad_id=0), rule, flex=False) is None
    full = make_rule("full")
    assert last_pass(build_layout(ROWS, ccm_config("full"), full, pad_id=0), full, flex=False) is None
