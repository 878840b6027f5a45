"""Methods, and the models that they run on."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccm.evaluation import methods
from ccm.evaluation.methods import Method, Models, own_rules, read_configs
from ccm.evaluation.settings import Selection
from ccm.models.builtin import WEIGHTS


def test_an_adapter_is_loaded_with_its_base_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[object] = []
    load = methods.load_model
    monkeypatch.setattr(
        methods, "load_model", lambda base, adapter, **given: loaded.append(adapter) or load(base, adapter, **given)
    )
    models, concat, gate = Models(Selection()), str(WEIGHTS / "concat"), str(WEIGHTS / "gate")
    found = [models.load(Method(rule or "own", rule, concat))[0] for rule in ("full", "none", None)]
    assert [model.config.rule for model in found] == ["full", "none", "concat"]
    assert models.load(Method("own", None, gate))[0].config.rule == "gate"
    assert loaded == [concat]  # the gate runs on its weights
    assert models.load(Method("own", None, gate), recurrent=False)[0].config.recurrent is False


@pytest.mark.parametrize("strict", [False, True])
def test_relatives_of_a_base_are_refused_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, strict: bool) -> None:
    given: list[bool] = []
    load = methods.load_model
    monkeypatch.setattr(
        methods, "load_model", lambda *places, **more: given.append(more["strict"]) or load(*places, **more)
    )
    Models(Selection(strict=strict)).load(Method("concat", "concat", None))
    assert given == [strict]


def test_without_an_adapter_it_is_one_that_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Path] = []
    load = methods.load_model
    monkeypatch.setattr(
        methods, "load_model", lambda base, adapter, **given: loaded.append(adapter) or load(base, adapter, **given)
    )
    models = Models(Selection())
    assert [models.load(Method(rule, rule, None))[0].config.rule for rule in ("full", "none", "gate")] == [
        "full",
        "none",
        "gate",
    ]
    assert [path.name for path in loaded] == ["concat"]


def test_methods_are_grouped_so_that_each_adapter_is_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    load = methods.load_model
    monkeypatch.setattr(
        methods,
        "load_model",
        lambda base, adapter, **given: loaded.append(adapter.name) or load(base, adapter, **given),
    )
    models, named = Models(Selection()), [Method(rule, rule, None) for rule in ("concat", "gate", "full", "none")]
    grouped = models.grouped(named)
    assert [method.name for method in grouped] == ["concat", "full", "none", "gate"]
    assert [models.load(method)[0].config.rule for method in grouped] == ["concat", "full", "none", "gate"]
    assert loaded == ["concat"]


def test_an_adapter_under_a_rule_that_is_named_is_measured_once() -> None:
    configs = read_configs([str(WEIGHTS / "concat"), str(WEIGHTS / "gate")])
    names = [method.name for method in own_rules(configs, ["full", "concat", "gist-online"])]
    assert names == ["gate"]
    assert [method.name for method in own_rules(configs, ["full"])] == ["concat", "gate"]
