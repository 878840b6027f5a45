"""Recipes: defaults, files and what is laid over them, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccm.core.config import CCMConfig, LoRASettings, TurnFormat
from ccm.core.errors import ConfigError
from ccm.data.settings import DataSettings
from ccm.training.recipe import Recipe, load_recipe, write_recipe
from ccm.training.recipe_files import FOLDER

PACKAGED = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    """A recipe file."""
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_the_authors() -> None:
    recipe = Recipe()
    assert (recipe.lr, recipe.lr_end, recipe.warmup, recipe.weight_decay) == (3e-4, 0.0, 0.03, 0.0)
    assert (recipe.batch_size, dict(recipe.objective)) == (128, {"last": 1.0})
    lora = recipe.adapter.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.conditional) == (8, 16.0, 0.05, True)
    assert recipe.stage == "compress"


@pytest.mark.parametrize("stage", ["base", "compress"])
@pytest.mark.parametrize("name", PACKAGED)
def test_every_recipe_of_the_package_loads_for_both_stages(name: str, stage: Any) -> None:
    recipe = load_recipe(name, stage=stage)
    assert recipe.stage == stage
    assert recipe.max_steps > 0


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("max_stps", "max_steps"),
        ("data.pth", "path"),
        ("adapter.ntok", "n_tok"),
        ("adapter.lora.alhpa", "alpha"),
        ("turns.seperator", "separator"),
    ],
)
def test_an_unknown_key_is_refused_with_the_likeliest_one(tmp_path: Path, key: str, meant: str) -> None:
    *parents, last = key.split(".")
    values: Any = {last: 1}
    for parent in reversed(parents):
        values = {parent: values}
    for source, changes in (("custom", [f"{key}=1"]), (written(tmp_path, yaml.safe_dump(values)), [])):
        with pytest.raises(ConfigError, match=rf"unknown keys \['{last}'\]. Did you mean {meant}\?"):
            load_recipe(source, changes)


def test_an_unknown_key_in_the_section_of_the_stage_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "base:\n  max_stps: 3\n")
    with pytest.raises(ConfigError, match="Did you mean max_steps"):
        load_recipe(path, stage="base")


def test_values_are_set_by_keys_with_dots(tmp_path: Path) -> None:
    path = written(tmp_path, "lr: 0.1\nadapter: {n_tok: 2, lora: {r: 4}}\n")
    recipe = load_recipe(
        path,
        [
            "adapter.lora.alpha=32",
            "adapter.rule=merge",
            "data.path=chats.jsonl",
            "lr=3e-4",
            "betas=[0.8, 0.95]",
            "tensorboard=false",
            "base_adapter=null",
            "turns.template=chat",
            "objective.every=0.5",
            "objective.distill=1e0",
        ],
    )
    assert recipe.lr == 3e-4
    assert recipe.betas == (0.8, 0.95)
    assert (recipe.adapter.lora.r, recipe.adapter.lora.alpha) == (4, 32)  # what was not named stays
    assert (recipe.adapter.rule, recipe.adapter.n_tok) == ("merge", 2)
    assert recipe.data.path == "chats.jsonl"
    assert recipe.tensorboard is False
    assert recipe.base_adapter is None
    assert recipe.turns == TurnFormat("chat")
    assert recipe.objective == {"every": 0.5, "distill": 1.0}


def test_the_last_of_several_values_wins_and_an_objective_is_replaced_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "objective: {every: 1.0, distill: 2.0}\n")
    recipe = load_recipe(path, ["max_steps=5", "objective.last=1", "max_steps=7"])
    assert recipe.max_steps == 7
    assert recipe.objective == {"last": 1}


@pytest.mark.parametrize(("value", "steps"), [("1e3", 1000), ("2E1", 20), ("2.5e1", 25)])
def test_a_whole_number_may_be_written_by_its_exponent(value: str, steps: int) -> None:
    recipe = load_recipe("custom", [f"max_steps={value}", f"lr={value}"])
    assert (recipe.max_steps, recipe.lr) == (steps, steps)
    with pytest.raises(ConfigError, match="max_steps is 0.15; it must be a whole number"):
        load_recipe("custom", ["max_steps=1.5e-1"])


def test_how_an_empty_text_is_written_is_told() -> None:
    with pytest.raises(ConfigError, match="turns.separator is None; it must be a text. An empty one is '', its quotes"):
        load_recipe("custom", ["turns.separator="])
    recipe = load_recipe("custom", ["turns.separator=''"])
    assert recipe.turns is not None
    assert recipe.turns.separator == ""


@pytest.mark.parametrize("value", ["3e-4", "[3e-4]"])
def test_numbers_without_a_point_are_numbers_in_lists_too(value: str) -> None:
    key = "betas" if "[" in value else "lr"
    value = value.replace("]", ", 0.9]")
    assert getattr(load_recipe("custom", [f"{key}={value}"]), key) in (3e-4, (3e-4, 0.9))


def test_numbers_without_a_point_are_numbers_in_a_file_too(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "lr: 3e-4\n")).lr == 3e-4


def test_the_section_of_the_stage_is_laid_over_the_rest(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "max_steps: 10\nlr: 0.1\nadapter: {n_tok: 4}\n"
        "base: {max_steps: 20, adapter: {lora: {r: 3}}}\ncompress: {max_steps: 30, lr: 0.3}\n",
    )
    compress, base = load_recipe(path), load_recipe(path, stage="base")
    assert (compress.stage, compress.max_steps, compress.lr, compress.adapter.n_tok) == ("compress", 30, 0.3, 4)
    assert (base.stage, base.max_steps, base.lr, base.adapter.n_tok, base.adapter.lora.r) == ("base", 20, 0.1, 4, 3)
    assert load_recipe(path, ["stage=base"]) == base
    assert load_recipe(path, ["max_steps=1"], "base").max_steps == 1  # over the section, too


def test_a_file_says_its_stage(tmp_path: Path) -> None:
    path = written(tmp_path, "stage: base\nbase: {max_steps: 20}\n")
    assert load_recipe(path).max_steps == 20
    assert load_recipe(path, stage="compress").stage == "compress"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("max_steps=0", "max_steps is 0"),
        ("max_steps=many", "max_steps is 'many'; it must be a whole number"),
        ("max_steps=2.5", "max_steps is 2.5"),
        ("max_steps=true", "max_steps is True"),
        ("max_steps=", "max_steps is None"),
        ("batch_size=-1", "batch_size is -1"),
        ("pass_tokens=0", "pass_tokens is 0"),
        ("pool=0", "pool is 0"),
        ("log_every=0", "log_every is 0"),
        ("keep=0", "keep is 0"),
        ("save_every=-1", "save_every is -1"),
        ("eval_every=-1", "eval_every is -1"),
        ("max_offset=-3", "max_offset is -3"),
        ("lr=0", "lr is 0"),
        ("lr=-1e-4", "lr is -0.0001"),
        ("lr=.nan", "lr is nan"),
        ("lr=.inf", "lr is inf"),
        ("lr_end=-1", "lr_end is -1"),
        ("warmup=-0.1", "warmup is -0.1"),
        ("weight_decay=-1", "weight_decay is -1"),
        ("max_grad_norm=0", "max_grad_norm is 0"),
        ("betas=[0.9]", r"betas is \(0.9,\)"),
        ("betas=[0.9,1.0]", r"betas is \(0.9, 1.0\)"),
        ("betas=0.9", "betas is 0.9"),
        ("objective={}", r"objective is \{\}"),
        ("objective.last=-1", r"objective is \{'last': -1\}"),
        ("objective.last=much", r"objective is \{'last': 'much'\}"),
        ("objective.evry=1", r"objective names \['evry'\]; the objectives are last, every, distill"),
        ("objective.last=0", "objective gives no loss a weight above 0"),
        ("objective=last", "objective is 'last'; it must be a table"),
        ("stage=both", "stage is 'both'; allowed: base, compress"),
        ("dtype=float8", "dtype is 'float8'; allowed: auto, float32, bfloat16, float16"),
        ("output_dir=7", "output_dir is 7"),
        ("turns.template=xml", "turns.template is 'xml'; allowed: separators, chat"),
        ("data=chats.jsonl", "data holds 'chats.jsonl'; it must be a table"),
        ("data.max_steps=0", "data.max_steps is 0"),
        ("data.max_step_tokens=0", "data.max_step_tokens is 0"),
        ("data.chunk_tokens=0", "data.chunk_tokens is 0"),
        ("data.eval_samples=-1", "data.eval_samples is -1"),
        ("data.random_steps=often", "data.random_steps is 'often'; it must be true or false"),
        ("adapter.n_tok=0", "n_tok is 0"),
        ("adapter.positions=none", "positions is 'none'; allowed: skip, base"),
        ("adapter.lora.r=-1", "lora.r is -1"),
        ("adapter.lora.dropout=1", "lora.dropout is 1"),
        ("adapter.turns.template=chat", "adapter.turns; set turns instead"),
        ("max_steps", "The change 'max_steps': write key=value"),
        ("=3", "The change '=3': write key=value"),
        ("betas=[0.9", "the value is not YAML"),
        ("warmup=3", "warmup is 3"),
        ("stage=base adapter.lora.r=0", "adapter.lora.r is 0"),
        ("adapter=concat", "adapter holds 'concat'"),
        ("adapter=2", "adapter holds 2"),
        ("adapter.max_n_tok=8", "sets adapter.min_n_tok and adapter.max_n_tok itself"),
        (
            "adapter.rule=gist",
            "'every' needs a memory after every step, but the rule 'gist' .* Use objective={last: 1}",
        ),
        ("stage=base merge=true shard=true", "merge=true writes the whole model, but shard=true spreads"),
        ("quantize=4bit shard=true", "quantize=4bit works with neither shard=true nor merge=true"),
        ("stage=base merge=true quantize=int8", "quantize=int8 works with neither shard=true nor merge=true"),
        ("stage=base flex=true", "flex=true works in the stage 'compress' only"),
        ("flex=often", "flex is 'often'; it must be true or false or null"),
        ("quantize=int3", "quantize is 'int3'; allowed: int8, 8bit, 4bit or null"),
        ("base.max_steps=3", "The change of base: leave the stage's name out"),
    ],
)
def test_a_bad_value_is_refused_by_key_and_value(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("custom", change.split(" "))


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compress"):
        load_recipe(written(tmp_path, "compress: 5\n"))


def test_the_section_of_the_other_stage_is_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"section base .* unknown keys \['max_stps'\]. Did you mean max_steps\?"):
        load_recipe(written(tmp_path, "base:\n  max_stps: 3\n"), stage="compress")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": {"every": 1.0}, "adapter": CCMConfig(recurrent=False)}, "'every' needs a recurrent memory"),
        ({"stage": "base", "objective": {"distill": 1.0}}, "The stage 'base' trains with full context"),
        (
            {"weight_decay": 0.1, "adapter": CCMConfig(embeddings="table")},
            "adapter.embeddings=table needs weight_decay=0",
        ),
        (
            {"objective": {"distill": 1.0}, "adapter": CCMConfig(lora=LoRASettings(conditional=False))},
            "'distill' needs adapter.lora.conditional=true",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Recipe(**settings)


def test_a_value_given_to_a_table_and_then_within_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="an earlier change gave data a value, so it cannot hold path"):
        load_recipe("custom", ["data=3", "data.path=x"])


@pytest.mark.parametrize(
    ("text", "said"), [("- a\n- b\n", "no table of settings"), ("a: [1\n", "cannot be read"), ("", "no table")]
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe(written(tmp_path, text))


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"lr: \xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(path)


def test_an_unknown_recipe_is_refused_with_the_likeliest_and_all_there_are() -> None:
    with pytest.raises(
        ConfigError, match=rf"no recipe 'custum'.* Did you mean custom\? There are: {', '.join(PACKAGED)}"
    ):
        load_recipe("custum")


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(
            stage="base",
            turns=TurnFormat(separator="\n\U0001f642 ", preamble="Be kind: always.\n"),
            data=DataSettings("builtin", path="a b.txt", options={"long": 0.5}),
            objective={"last": 0.25, "every": 1},
            lr=1e-5,
            betas=(0.8, 0.99),
            merge=True,
        ),
        Recipe(adapter=CCMConfig("ema", {"weight": 0.3}, n_tok=4, sink=True, lora=LoRASettings(r=2)), dtype="bfloat16"),
    ],
)
def test_a_recipe_written_as_yaml_is_the_same_when_read(tmp_path: Path, recipe: Recipe) -> None:
    assert load_recipe(written(tmp_path, write_recipe(recipe))) == recipe


def test_a_written_recipe_takes_changes_as_any_other(tmp_path: Path) -> None:
    path = written(tmp_path, write_recipe(Recipe(max_steps=5)))
    assert load_recipe(path, ["max_steps=6"]) == replace(Recipe(), max_steps=6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("objective={1: 1, foo: 2}", r"objective names \['1', 'foo'\]"),
        ("stage=[1]", "stage is "),
        ("seed=99999999999999999999999", "it must be from 0 to 9223372036854775807"),
        ("seed=-1", "it must be from 0 to 9223372036854775807"),
    ],
)
def test_settings_without_meaning_are_refused_in_words(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_recipe("custom", [change])


def test_a_recipe_that_holds_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data: &a {options: *a}\n")
    with pytest.raises(ConfigError, match="one of its tables contains itself"):
        load_recipe(tmp_path / "own.yaml")
