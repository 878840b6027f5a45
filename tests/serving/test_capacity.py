"""Plans beside what memories, models and stores really take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import compress_all, make_sample, tiny_model
from serving_app import ask, client, service

from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError, PositionError
from ccm.engine.decoder import CCMModel
from ccm.models.shapes import ModelShape, plain_shape, shape_of
from ccm.serving.capacity import Limits, Machine, Plan, RulePlan, Workload, make_plan
from ccm.serving.settings import MIB, ServerSettings

LLAMA = plain_shape(32, 8, 128, 131_072, "bfloat16")  # Llama-3.1-8B


def plan_of(shape: ModelShape = LLAMA, config: CCMConfig | None = None, **changes: Any) -> Plan:
    """A plan; changes are of the workload."""
    return make_plan(shape, config or CCMConfig(n_tok=4), Workload(**changes), Machine(), ServerSettings())


def own(plan: Plan, rule: str | None = None) -> RulePlan:
    """What a rule takes, the planned one where None."""
    return next(one for one in plan.rules if one.rule == (rule or plan.rule))


def shape_in(folder: Path, model: CCMModel) -> ModelShape:
    """The shape of a model, from its config alone."""
    model.base.config.save_pretrained(folder)
    return shape_of(folder, "float64")


@pytest.mark.covers("rule head", "family")
@pytest.mark.parametrize("head", [0, 4])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist", "full", "none"])
@pytest.mark.parametrize("family", ["llama_gqa", "mistral_window"])
def test_a_memory_has_the_bytes_of_its_plan(rule: str, head: int, family: str, tmp_path: Path) -> None:
    model = tiny_model(rule, family=family, sink=True)
    memory = compress_all(model, make_sample([5] * 6, 3, head=head))
    planned = plan_of(shape_in(tmp_path, model), model.config, turns=6, turn_tokens=5, system_tokens=head)
    assert own(planned).nbytes == memory.nbytes
    assert own(planned).entries == memory.entries[0]
    full = len(memory.tokens) * (head + memory.tokens[0]) * planned.shape.entry_nbytes
    assert own(planned, "full").nbytes == full - head * memory.entry_nbytes


@pytest.mark.parametrize(
    ("rule", "positions"),
    [("concat", "skip"), ("concat", "base"), ("gate", "skip"), ("gist", "skip"), ("gist", "base"), ("full", "skip")],
)
def test_positions_end_at_the_turn_that_the_model_refuses(rule: str, positions: Any, tmp_path: Path) -> None:
    model = tiny_model(rule, positions=positions)
    planned = own(plan_of(shape_in(tmp_path, model), model.config, turns=50, turn_tokens=9, system_tokens=1))
    turns = planned.limits.positions
    assert turns is not None
    assert "positions" in planned.exceeded
    memory = compress_all(model, make_sample([9] * turns, 3, head=1))
    assert planned.nbytes == memory.nbytes
    with pytest.raises(PositionError):
        compress_all(model, make_sample([9], 3, head=1), memory)


@pytest.mark.covers(cases=1)
@pytest.mark.parametrize("rule", ["concat", "gate"])
def test_a_store_holds_what_is_planned(rule: str) -> None:
    """Within 4 %: turns differ in length, and headers and JSON by some bytes."""
    served, last = service(rule), None
    web = client(served)
    for number in range(12):
        answer = ask(web, f"I have {number} books.", last)
        last = answer["id"]
    model, full = served.backend.model, answer["ccm:memory"]["full_context_bytes"]
    shape = shape_of("builtin", "float32")
    planned = own(plan_of(shape, model.config, turns=12, turn_tokens=round(full / shape.entry_nbytes / 12)))
    assert sum(row["size"] for row in served.store.rows()) == pytest.approx(planned.stored_nbytes, rel=0.04)


def test_a_store_writes_memories_whole_where_positions_end() -> None:
    """As the results of serving say: 1,000 turns of the built-in model, of some 27 tokens, take 83 MB."""
    planned = own(plan_of(shape_of("builtin", "float32"), CCMConfig(n_tok=2), turns=1000, turn_tokens=27))
    assert planned.stored_nbytes == pytest.approx(83 * MIB, rel=0.1)


def test_the_entries_of_known_models() -> None:
    assert LLAMA.entry_nbytes == 128 * 2**10
    assert plain_shape(32, 32, 128, 2048, "float16").entry_nbytes == 512 * 2**10, "LLaMA-7B"
    planned = plan_of(turns=10, turn_tokens=100)
    assert own(planned).nbytes == 10 * 4 * 128 * 2**10
    assert own(planned).per_gb == 204
    assert own(planned, "full").nbytes == 1000 * 128 * 2**10


def test_all_rules_of_every_turn_stand_beside_full_context() -> None:
    names = [one.rule for one in plan_of().rules]
    assert set(names) == {"concat", "merge", "ema", "gate", "full"}
    assert names[-1] == "full"
    assert "gist" in [one.rule for one in plan_of(config=CCMConfig(rule="gist")).rules]


def test_layers_with_a_window_hold_all_here_and_no_more_than_it_in_other_engines(tmp_path: Path) -> None:
    model = tiny_model(family="gemma3")
    shape = shape_in(tmp_path, model)
    seen = [min(window or 60, 60) for window in shape.windows]
    assert min(seen) < 60 == max(seen)
    planned = plan_of(shape, model.config, turns=6, turn_tokens=10)
    layers = zip(seen, shape.layer_nbytes, strict=True)
    assert planned.windowed_nbytes == sum(count * nbytes for count, nbytes in layers)
    assert planned.windowed_nbytes < own(planned, "full").nbytes == 60 * shape.entry_nbytes
    assert plan_of().windowed_nbytes is None


def test_limits_are_those_of_the_machine_and_the_server() -> None:
    settings = ServerSettings(quota=64 * MIB, rate=60, batch=8)
    load = Workload(conversations=1_000_000, turns=20_000, turn_tokens=1, rate=2.0)
    planned = own(make_plan(LLAMA, CCMConfig(rule="gate", n_tok=4), load, Machine(1, 2, 3), settings))
    assert planned.limits == Limits(
        positions=131_068,
        steps=10_000,
        memory=2**30 // ((4 + 1 + 4) * LLAMA.entry_nbytes),
        store=2 * 2**30 // planned.stored_nbytes,
        quota=0,
        network=3e9 / 8 / (planned.read_nbytes + planned.written_nbytes),
        requests=1.0,
    )
    assert planned.exceeded == ("quota", "store", "steps", "requests")
    assert planned.first == "quota"


def test_without_a_limit_below_the_plan_the_nearest_is_named() -> None:
    planned = own(plan_of(conversations=10, turns=10, turn_tokens=10))
    assert planned.exceeded == ()
    assert planned.first == "requests"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"turns": 0}, "turns is 0; it must be from 1"),
        ({"rate": 0.0}, "rate is 0.0"),
        ({"conversations": 1.5}, "conversations is 1.5; it must be a whole number"),
        ({"turn_tokens": 200_000}, "turn_tokens=200000 are more than the 131072 positions"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan_of(**changes)
