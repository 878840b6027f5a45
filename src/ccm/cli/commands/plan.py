"""``ccm plan``: how many conversations a machine holds, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from math import ceil

from rich.table import Table

from ccm.cli.console import plain_console
from ccm.cli.plan import ShapeOptions
from ccm.core.adapter_folders import base_of, find_adapter, read_config
from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError
from ccm.core.rules import RULES
from ccm.core.units import size
from ccm.models.builtin import NAME
from ccm.models.locate import base_name
from ccm.models.shapes import ModelShape, plain_shape, shape_of
from ccm.models.shipped import shipped_adapter
from ccm.serving.capacity import Machine, Plan, RulePlan, Workload, make_plan
from ccm.serving.settings import MIB, ServerSettings


def run(given: ShapeOptions, load: Workload, machine: Machine, settings: ServerSettings, *, as_json: bool) -> None:
    """Print a plan: three tables and what ends first, or one JSON object.

    Raises:
        ConfigError: when a model, rule or number is not allowed.
        AdapterError: when the adapter is absent or damaged.
        UnsupportedModelError: when models of this type are not supported.
    """
    name, shape, config = _subject(given)
    plan = make_plan(shape, config, load, machine, settings)
    if as_json:
        print(json.dumps({"model": name, **plan.to_dict()}))
        return
    console = plain_console()
    heads, dim = shape.sizes[0]
    console.print(
        f"{name}: {len(shape.sizes)} layers with {heads} K/V heads of {dim}, {shape.dtype}; an entry takes "
        f"{size(shape.entry_nbytes)}.\n{load.conversations:,} conversations of {load.turns:,} turns of "
        f"{load.turn_tokens:,} tokens, {plan.n_tok} COMP tokens after each; a system message of "
        f"{load.system_tokens:,} tokens."
    )
    for title, rows in (
        (f"Keys and values after {load.turns:,} turns", _memories(plan)),
        ("In the store, and to and from it", _storage(plan)),
        ("Where it ends", _limits(plan, settings)),
    ):
        console.print(f"\n{title}")
        console.print(_table(rows))
    console.print()
    for line in _remarks(plan, settings):
        console.print(line)


def _subject(given: ShapeOptions) -> tuple[str, ModelShape, CCMConfig]:
    """The name and the shape of the model, and the settings of the adapter.

    Raises:
        ConfigError, AdapterError, UnsupportedModelError: as :func:`run`.
    """
    folder, numbers = None, (given.layers, given.kv_heads, given.head_size)
    told = any(number is not None for number in (*numbers, given.positions))
    if given.adapter is not None:
        folder = find_adapter(given.adapter)
    elif not told:
        folder = shipped_adapter(given.model or NAME, given.rule)
    config = CCMConfig() if folder is None else read_config(folder)
    if given.rule is not None and given.rule != config.rule:
        config = replace(config, rule=given.rule, rule_options={})
    if given.n_tok is not None:
        config = replace(config, n_tok=given.n_tok, min_n_tok=None, max_n_tok=None)
    if told:
        if given.model is not None or given.layers is None or given.kv_heads is None or given.head_size is None:
            raise ConfigError(
                "The sizes of a model are layers=N, kv_heads=N and head_size=N together, with positions=N where they "
                "are limited, and without model=MODEL."
            )
        return (
            "A model",
            plain_shape(given.layers, given.kv_heads, given.head_size, given.positions, given.dtype),
            config,
        )
    base = given.model or (NAME if given.adapter is None or folder is None else base_of(folder, config))
    return base_name(base), shape_of(base, given.dtype), config


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first row is its head; all columns but the first are of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _memories(plan: Plan) -> list[Sequence[str]]:
    rows: list[Sequence[str]] = [("rule", "entries", "K/V", "of full", "in a GB", "answering", "at a time")]
    full = plan.rules[-1].nbytes
    for one in plan.rules:
        share = f"{one.nbytes / full:.2%}"
        held = "" if one.per_gb is None else f"{one.per_gb:,}"
        counts = (f"{one.entries:,}", size(one.nbytes), share, held)
        rows.append((_called(one, plan), *counts, size(one.answering_nbytes), f"{one.limits.memory:,}"))
    return rows


def _storage(plan: Plan) -> list[Sequence[str]]:
    load = plan.workload
    rows: list[Sequence[str]] = [("rule", "a conversation", "all", "read a turn", "written", "a second")]
    for one in plan.rules:
        traffic = load.rate * (one.read_nbytes + one.written_nbytes)
        counts = (
            one.stored_nbytes,
            load.conversations * one.stored_nbytes,
            one.read_nbytes,
            one.written_nbytes,
            traffic,
        )
        rows.append((_called(one, plan), *map(size, counts)))
    return rows


def _limits(plan: Plan, settings: ServerSettings) -> list[Sequence[str]]:
    """A row for each limit: what is planned, and what is possible under the rule that is planned and full context."""
    machine, shown = plan.machine, _shown(plan)
    names = {
        "positions": "turns: positions of the model",
        "steps": "turns: most steps of the server",
        "memory": f"at a time: {machine.memory:g} GB for K/V",
        "store": f"conversations: {machine.store:g} GB of store",
        "quota": f"conversations: {size(settings.quota)} of a key",
        "network": f"turns a second: {machine.network:g} Gbit/s",
        "requests": "turns a second: one key",
    }
    rows: list[Sequence[str]] = [("", "planned", *(_called(one, plan) for one in shown))]
    planned, possible = asdict(plan.planned), [asdict(one.limits) for one in shown]
    for name, said in names.items():
        rows.append((said, *(_number(one[name]) for one in (planned, *possible))))
    return rows


def _remarks(plan: Plan, settings: ServerSettings) -> Iterator[str]:
    """What the columns mean, which limits are below the plan, and what to do about them."""
    yield (
        "* marks the rule that is planned. Answering: K/V on the accelerator at the end of a turn, all of them read "
        f"for its last token. At a time: how many of these {plan.machine.memory:g} GB hold."
    )
    if plan.windowed_nbytes is not None:
        yield (
            "Some layers of this model see no more than a window of the text. Here they keep all of it; full context "
            f"takes {size(plan.windowed_nbytes)} in an engine that drops what they no longer see."
        )
    for one in _shown(plan):
        yield ""
        if one.exceeded:
            yield f"Under {one.rule}, these limits are below the plan, the nearest first:"
        else:
            yield f"Under {one.rule}, no limit is below the plan; the nearest:"
        for name in one.exceeded or (one.first,):
            yield f"- {_advice(name, one, plan, settings)}"


def _advice(name: str, one: RulePlan, plan: Plan, settings: ServerSettings) -> str:
    """What happens at a limit, and what to do about it."""
    limits, load, machine = one.limits, plan.workload, plan.machine
    stored = load.conversations * one.stored_nbytes
    rule, kept = RULES[one.rule], f"{limits.quota:,} conversations; of more, those used longest ago go"
    lost = "what they said is forgotten" if rule.reversible else "what they said stays in the mixture"
    auto = f"; with truncation: auto, the oldest turns make way, {lost}, and no memory grows any more"
    return {
        "positions": f"The model has positions for {_number(limits.positions)} turns. The server refuses the next one"
        f"{'' if rule.compresses == 'context' else auto}.",
        "steps": f"The server takes {limits.steps:,} turns of a conversation.",
        "memory": f"{machine.memory:g} GB hold the K/V of {limits.memory:,} conversations at a time: take a smaller "
        "--batch, or more accelerators.",
        "store": f"{machine.store:g} GB of store hold {limits.store:,} conversations; {load.conversations:,} take "
        f"{size(stored)}.",
        "quota": f"A key may keep {size(settings.quota)}: {kept if limits.quota else 'less than one conversation'}. "
        f"One key for all needs --quota {ceil(stored / MIB)}.",
        "network": f"{machine.network:g} Gbit/s carry {_number(limits.network)} turns a second.",
        "requests": f"A key may ask {_number(limits.requests)} times a second: one key for all needs --rate "
        f"{ceil(load.rate * 60)} of ccm serve.",
    }[name]


def _number(count: float | None) -> str:
    """A count, with a decimal where it is small and no whole number."""
    if count is None:
        return "no end"
    return f"{count:,.0f}" if count >= 10 or count == int(count) else f"{count:.1f}"


def _shown(plan: Plan) -> list[RulePlan]:
    """The rule that is planned, and full context beside it."""
    return [*dict.fromkeys((_own(plan), plan.rules[-1]))]


def _own(plan: Plan) -> RulePlan:
    return next(one for one in plan.rules if one.rule == plan.rule)


def _called(one: RulePlan, plan: Plan) -> str:
    return f"{one.rule} *" if one.rule == plan.rule else one.rule
