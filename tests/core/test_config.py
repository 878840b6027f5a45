"""Settings: every check, and that what is written is what comes back."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import tiny_model

from ccm.chat.window import window_settings
from ccm.core import errors
from ccm.core.config import CCMConfig, LoRASettings, TurnFormat, bounded, check_fields
from ccm.core.errors import CCMError, ConfigError, InputError, unknown_name
from ccm.streams.evictions import StreamSettings
from ccm.streams.stream import StreamingMemory

EVERYTHING = CCMConfig(
    rule="ema",
    rule_options={"weight": 0.3},
    n_tok=4,
    min_n_tok=1,
    max_n_tok=6,
    recurrent=False,
    sink=True,
    positions="base",
    embeddings="table",
    lora=LoRASettings(r=16, alpha=32, dropout=0.1, conditional=False),
    turns=TurnFormat(template="chat", separator="\n", reply_separator="\u00e9", preamble="System: "),
    base_model="somewhere",
    base_fingerprint="0123",
    base_vocab_size=100,
)


def test_no_field_of_the_example_has_its_default() -> None:
    for one, other in ((EVERYTHING, CCMConfig()), (EVERYTHING.lora, LoRASettings()), (EVERYTHING.turns, TurnFormat())):
        assert all(getattr(one, f.name) != getattr(other, f.name) for f in dataclasses.fields(one))


@pytest.mark.parametrize("config", [CCMConfig(), EVERYTHING], ids=["defaults", "everything"])
def test_settings_survive_json(config: CCMConfig) -> None:
    assert CCMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_absent_settings_take_their_defaults() -> None:
    assert CCMConfig.from_dict({"n_tok": 3, "lora": {"r": 2}}) == CCMConfig(n_tok=3, lora=LoRASettings(r=2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wizard": 1}, r"ccm_config.json has unknown keys \['wizard'\]. Known are .*n_tok"),
        ({"lora": {"rank": 1}}, r"lora has unknown keys \['rank'\]. Known are .*, r\."),
        ({"turns": {"rank": 1}}, r"turns has unknown keys \['rank'\]. Known are .*separator"),
    ],
)
def test_unknown_keys_are_refused_with_the_known_ones(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CCMConfig.from_dict(values)


@pytest.mark.parametrize("n_tok", [0, -1, 2.0, "2", True, None])
def test_a_number_of_comp_tokens_that_is_none_is_refused(n_tok: Any) -> None:
    with pytest.raises(ConfigError, match=rf"n_tok is {n_tok!r}; it must be (a whole number|at least 1)"):
        CCMConfig(n_tok=n_tok)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [({}, (2, 2)), ({"min_n_tok": 1}, (1, 2)), ({"max_n_tok": 4}, (2, 4)), ({"min_n_tok": 1, "max_n_tok": 4}, (1, 4))],
)
def test_the_range_of_n_reaches_from_n_to_n_where_no_bound_is_given(
    bounds: dict[str, int], expected: tuple[int, int]
) -> None:
    assert CCMConfig(n_tok=2, **bounds).n_tok_range == expected


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"min_n_tok": 3}, "n_tok is 2, min_n_tok 3"),
        ({"min_n_tok": 3, "max_n_tok": 4}, "n_tok is 2, min_n_tok 3, max_n_tok 4"),
        ({"max_n_tok": 1}, "n_tok is 2, min_n_tok 2, max_n_tok 1"),
        ({"min_n_tok": 1, "max_n_tok": 1}, "n_tok is 2, min_n_tok 1, max_n_tok 1"),
        ({"min_n_tok": 0}, "min_n_tok 0"),
        ({"min_n_tok": -1, "max_n_tok": 4}, "min_n_tok -1"),
    ],
)
def test_a_range_that_leaves_n_out_or_begins_below_1_is_refused(bounds: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CCMConfig(n_tok=2, **bounds)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CCMConfig(positions="absolute"), "positions is 'absolute'; allowed: skip, base"),
        (lambda: CCMConfig(embeddings="none"), "embeddings is 'none'; allowed: separate, table"),
        (lambda: TurnFormat(template="jinja"), "turns.template is 'jinja'; allowed: separators, chat"),
        (lambda: LoRASettings(r=-1), "lora.r is -1; .*at least 0"),
        (lambda: LoRASettings(dropout=1.0), r"lora.dropout is 1.0; .*\[0, 1\)"),
        (lambda: LoRASettings(dropout=-0.1), "lora.dropout is -0.1"),
        (lambda: LoRASettings(alpha=float("nan")), "lora.alpha is nan; .*finite"),
    ],
)
def test_values_that_are_not_allowed_are_refused_with_those_that_are(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name", ["lora", "turns", "rule_options"])
@pytest.mark.parametrize("value", [None, 3])
def test_a_table_of_settings_must_be_a_table(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        CCMConfig.from_dict({name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rule": ["concat"]}, r"rule is \['concat'\]; it must be a text"),
        ({"base_model": 3}, "base_model is 3; it must be a text"),
        ({"sink": "no"}, "sink is 'no'; it must be true or false"),
        ({"recurrent": None}, "recurrent is None; it must be true or false"),
        ({"sink": 1}, "sink is 1; it must be true or false"),
        ({"positions": ["skip"]}, r"positions is \['skip'\]; allowed: skip, base"),
        ({"min_n_tok": 1.0}, "min_n_tok is 1.0; it must be a whole number or null"),
        ({"max_n_tok": True}, "max_n_tok is True; it must be a whole number or null"),
        ({"lora": {"r": 16.0}}, "lora.r is 16.0; it must be a whole number"),
        ({"lora": {"r": True}}, "lora.r is True; it must be a whole number"),
        ({"lora": {"alpha": "16"}}, "lora.alpha is '16'; it must be a number"),
        ({"lora": {"dropout": None}}, "lora.dropout is None; it must be a number"),
        ({"turns": {"separator": None}}, "turns.separator is None; it must be a text"),
    ],
)
def test_a_value_of_another_type_is_refused_with_the_one_it_must_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CCMConfig.from_dict(values)


@dataclasses.dataclass
class Bounded:
    count: int = bounded(3, 1)
    share: float | None = bounded(0.5, 0, 1)
    free: int = 0


@pytest.mark.parametrize("values", [{}, {"count": 1}, {"share": 0}, {"share": 1}, {"share": None}, {"free": -5}])
def test_values_within_their_bounds_are_allowed(values: dict[str, Any]) -> None:
    check_fields(Bounded(**values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "x.count is 0; it must be at least 1."),
        ({"share": 1.5}, "x.share is 1.5; it must be from 0 to 1."),
        ({"share": float("nan")}, "x.share is nan; it must be from 0 to 1."),
        ({"count": "many"}, "x.count is 'many'; it must be a whole number."),
    ],
)
def test_values_beyond_their_bounds_are_refused_with_them(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_fields(Bounded(**values), "x.")


def test_an_unknown_name_is_told_with_the_likeliest_and_all_others() -> None:
    error = unknown_name("rule", "concad", ["concat", "merge"])
    assert str(error) == "There is no rule 'concad'. Did you mean concat? There are: concat, merge."


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CCMConfig().n_tok = 3


def test_every_error_has_one_root_and_is_a_standard_one() -> None:
    own = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, CCMError) and e is not CCMError]
    assert len(own) >= 6
    assert all(issubclass(error, (ValueError, LookupError, OSError, RuntimeError, ImportError)) for error in own)


COUNTS = [1.0, 1.5, "1", None, True, float("nan")]


def counting_calls() -> dict[str, Callable[[Any], object]]:
    """Whatever takes a count."""
    model = tiny_model()
    memory = model.compress(model.empty_memory(), torch.tensor([[5, 6, 7]]))
    stream = StreamingMemory(model, StreamSettings(16, 4, 4))
    stream.feed(torch.tensor([[5, 6]]))
    return {
        "batch": model.empty_memory,
        "steps": memory.rollback,
        "row": memory.__getitem__,
        "count": stream.generate,
        "rows": lambda value: stream.rows([value]),
        "window": lambda value: window_settings(value, model),
    }


@pytest.mark.parametrize("value", COUNTS)
def test_a_count_that_is_no_whole_number_is_refused_by_its_value(value: object) -> None:
    for call in counting_calls().values():
        with pytest.raises(InputError, match=re.escape(f"is {value!r}; it must be a whole number")):
            call(value)


def test_whole_numbers_of_other_libraries_are_counts() -> None:
    calls = counting_calls()
    for name in ("batch", "steps", "count"):
        calls[name](np.int64(1))
