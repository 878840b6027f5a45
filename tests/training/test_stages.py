"""The two stages: what is trained on which model, and that what is written opens elsewhere with the same logits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, ccm_config, make_sample, parallel_logits
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_training import Tiny, compressing, make, records, with_lora
from transformers import AutoModelForCausalLM, AutoTokenizer

import ccm
from ccm.core.config import CCMConfig, LoRASettings, TurnFormat
from ccm.core.errors import AdapterError, ConfigError, UnsupportedModelError
from ccm.core.files import load_tensors
from ccm.data import open_data
from ccm.engine.adapter_files import read_stage1
from ccm.engine.layout import IGNORE, Step, build_layout
from ccm.models import shipped as shipping
from ccm.models.builtin import TURNS
from ccm.models.catalogue import MODELS
from ccm.training.batches import Batch
from ccm.training.loop import train
from ccm.training.run import read_checkpoint
from ccm.training.stages import FULL, BaseStage, make_stage, open_turns

IDS = torch.tensor([[1, 40, 500, 7, 2000, 33, 12, 9]])


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits.float()


def stock(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **options})


@pytest.fixture(scope="module")
def stage1(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage "base" makes in two steps."""
    recipe = tiny.recipe(tmp_path_factory.mktemp("stage1"), stage="base", max_steps=2, lr=0.1)
    return train(recipe)


def test_the_first_stage_makes_a_peft_adapter_that_opens_with_the_same_logits(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny.recipe(stage="base")
    stage = make(recipe)
    assert isinstance(stage, BaseStage)
    stage.save(tmp_path)
    opened = PeftModel.from_pretrained(stock(tiny.base), tmp_path)
    assert_close(logits(opened), logits(stage.model))
    assert (logits(opened) - logits(stock(tiny.base))).abs().max() > 0.1
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (4, 16)
    names = {target.rpartition(".")[2] for target in settings["target_modules"]}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_the_merged_first_stage_is_a_whole_model_with_the_same_logits(tiny: Tiny, tmp_path: Path) -> None:
    stage = make(tiny.recipe(stage="base", merge=True))
    assert isinstance(stage, BaseStage)
    before = logits(stage.model)
    stage.save(tmp_path)
    assert_close(logits(stock(tmp_path)), before)
    assert not (tmp_path / "adapter_config.json").exists()
    assert AutoTokenizer.from_pretrained(tmp_path).encode("Hello") == AutoTokenizer.from_pretrained(tiny.base).encode(
        "Hello"
    )


def test_a_training_goes_on_from_what_ships_for_a_short_name(tiny: Tiny, stage1: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shipping, "ADAPTERS", tmp_path)
    name = next(iter(MODELS))
    shutil.copytree(stage1, tmp_path / name / "base")
    first = make(tiny.recipe(base_adapter=str(stage1)))
    first.save(tmp_path / name / "concat")
    recipes = [
        tiny.recipe(base_adapter=name, init_adapter=name, seed=1),
        tiny.recipe(stage="base", init_adapter=name, seed=1),
    ]
    stage, again = (make_stage(recipe, open_turns(recipe)) for recipe in recipes)
    assert stage.base_id == first.base_id
    assert all(torch.equal(stage.trained[key], tensor) for key, tensor in first.trained.items())
    begun = read_stage1(stage1).tensors.values()
    assert all(any(torch.equal(tensor, other) for other in begun) for tensor in again.trained.values())


def test_the_loss_of_the_first_stage_is_that_of_the_stock_model_with_the_whole_context(tiny: Tiny) -> None:
    recipe = tiny.recipe(stage="base")
    stage = make_stage(recipe, open_turns(recipe))  # its LoRA is 0 yet
    samples = open_data(recipe.data, stage.turns, recipe.seed).pool(0, 4)
    expected = torch.tensor(0.0)
    for sample in samples:
        steps = [*sample.steps, sample.query]
        targets = torch.tensor([t for step in steps for t in step.targets])
        with torch.no_grad():
            found = stock(tiny.base)(torch.tensor([[token for step in steps for token in step.ids]])).logits[0]
        expected += torch.nn.functional.cross_entropy(found, targets, ignore_index=IGNORE, reduction="sum")
    assert_close(stage.sums(Batch(samples, [0] * 4, 2))["every"].detach(), expected)


def test_both_stages_end_to_end(tiny: Tiny, stage1: Path, tmp_path: Path) -> None:
    """base -> a PEFT folder -> compress on top of it -> an adapter with its stage 1 inside."""
    merged = PeftModel.from_pretrained(stock(tiny.base), stage1).merge_and_unload()
    difference = (logits(merged) - logits(stock(tiny.base))).abs().max()
    assert difference > 0.01
    out = train(tiny.recipe(tmp_path / "out", base_adapter=str(stage1), max_steps=2))
    assert (out / "base_adapter" / "adapter_model.safetensors").is_file()
    model, tokenizer = ccm.load(adapter=out)
    assert_close(logits(model.base), logits(merged))  # where no COMP token stands
    assert isinstance(ccm.Conversation(model, tokenizer).answer("Hello."), str)


def test_a_merged_first_stage_is_a_base_for_the_second_and_says_how_its_turns_are_written(
    tiny: Tiny, tmp_path: Path
) -> None:
    form = TurnFormat(separator=" <", reply_separator="> ")
    base = train(tiny.recipe(tmp_path / "base", stage="base", merge=True, max_steps=1, turns=form))
    out = train(tiny.recipe(tmp_path / "out", model=str(base), max_steps=1))
    model, _ = ccm.load(adapter=out)
    assert_close(logits(model.base), logits(stock(base)))
    assert model.config.turns == form
    assert ccm.load(base, rule="full")[0].config.turns == form
    (base / "ccm_turns.json").write_text('{"separatr": "x"}')
    with pytest.raises(ConfigError, match=r"ccm_turns.json has unknown keys .*Did you mean separator"):
        ccm.load(base, rule="full")


def test_what_is_written_opens_with_the_same_logits(tiny: Tiny, tmp_path: Path) -> None:
    stage = compressing(tiny.recipe(adapter=ccm_config("gate", sink=True), turns=TURNS))
    stage.save(tmp_path)
    model, _ = ccm.load(adapter=tmp_path)
    rows = [make_sample([5, 3, 4], 6)]
    assert_close(parallel_logits(model, rows)[0], parallel_logits(stage.model.eval(), rows)[0])
    assert model.config.turns == TURNS
    assert model.config.base_model == str(tiny.base)


def test_an_adapter_begins_with_what_fits_of_another(tiny: Tiny, tmp_path: Path) -> None:
    first = compressing(tiny.recipe(adapter=with_lora(ccm_config("gate", n_tok=4), r=0), seed=3))
    first.save(tmp_path / "first")
    had = {name: tensor.clone() for name, tensor in first.model.adapter_tensors().items()}
    for rule, n_tok in (("concat", 2), ("gate", 4), ("gate", 2), ("gate", 6)):
        recipe = tiny.recipe(adapter=ccm_config(rule, n_tok=n_tok), init_adapter=str(tmp_path / "first"))
        begun = make_stage(recipe, open_turns(recipe)).trained
        assert torch.equal(begun["comp_embeddings.weight"][:4], had["comp_embeddings.weight"][:n_tok])
        if rule == "gate":
            assert torch.equal(begun["rule.weight"][:, :, :4], had["rule.weight"][:, :, :n_tok])
            assert not begun["rule.weight"][:, :, 4:].any()
        assert not any(tensor.any() for name, tensor in begun.items() if "lora_B" in name)  # which begins anew


def test_an_adapter_does_not_begin_with_one_that_does_not_fit(tiny: Tiny, tmp_path: Path) -> None:
    compressing(tiny.recipe()).save(tmp_path / "mine")
    with pytest.raises(AdapterError, match=r"belongs to another base model \('..', fingerprint .* load it on"):
        make(tiny.recipe(init_adapter="builtin"))
    with pytest.raises(AdapterError, match="no folder nowhere"):
        make(tiny.recipe(init_adapter="nowhere"))
    with pytest.raises(AdapterError, match="builtin"):
        make(tiny.recipe(stage="base", init_adapter="builtin"))


def test_an_adapter_of_random_n_serves_every_n(tiny: Tiny, tmp_path: Path) -> None:
    out = train(tiny.recipe(tmp_path / "out", random_n_tok=True, adapter=ccm_config("concat", n_tok=3), max_steps=3))
    rows = [make_sample([5, 3, 4], 6)]
    answers = []
    for n in (1, 2, 3):
        model, _ = ccm.load(adapter=out, n_tok=n)
        memory = model.compress(model.empty_memory(), IDS)
        assert memory.width == n
        answers.append(parallel_logits(model, rows)[0])
    assert not torch.allclose(answers[0], answers[2], atol=1e-3)
    with pytest.raises(ConfigError, match="n_tok from 1 to 3; it cannot run with 4"):
        ccm.load(adapter=out, n_tok=4)
    assert ccm.load(adapter=out)[0].config.n_tok == 3


@pytest.mark.parametrize("rule", ["concat", "gate"])
def test_a_batch_is_laid_out_with_its_own_n(tiny: Tiny, rule: str) -> None:
    recipe = tiny.recipe(random_n_tok=True, adapter=ccm_config(rule, n_tok=3))
    stage = compressing(recipe)
    samples = open_data(recipe.data, stage.turns, recipe.seed).pool(0, 3)
    found = []
    for n in (1, 3):
        expected = stage.model(build_layout(samples, replace(stage.config, n_tok=n), stage.rule, 0)).loss
        found.append(stage.sums(Batch(samples, [0] * 3, n))["every"] / stage.objective.counts(samples)["every"])
        assert expected is not None
        assert_close(found[-1], expected)
    assert (found[0] - found[1]).abs() > 1e-3


@pytest.mark.parametrize("stage", ["base", "compress"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_is_trained_is_float32_on_a_base_in_half_precision(tiny: Tiny, stage: Any, dtype: str) -> None:
    recipe = tiny.recipe(stage=stage, dtype=dtype, adapter=ccm_config("gate"))
    made = make(recipe)
    assert made.base.dtype == getattr(torch, dtype)
    assert {tensor.dtype for tensor in made.trained.values()} == {torch.float32}
    loss = made.sums(Batch(open_data(recipe.data, made.turns, recipe.seed).pool(0, 2), [0, 0], 2))["every"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


def test_the_result_of_a_base_in_half_precision_is_float32(tiny: Tiny, tmp_path: Path) -> None:
    out = train(tiny.recipe(tmp_path / "out", dtype="bfloat16", max_steps=1))
    model, _ = ccm.load(adapter=out, dtype="bfloat16")
    assert {tensor.dtype for tensor in model.adapter_tensors().values()} == {torch.float32}


def test_the_first_stage_of_a_base_in_half_precision_is_written(tiny: Tiny, tmp_path: Path) -> None:
    out = train(tiny.recipe(tmp_path / "out", stage="base", dtype="bfloat16", max_steps=1))
    assert isinstance(PeftModel.from_pretrained(stock(tiny.base), out), PeftModel)


def test_a_base_that_carries_a_foreign_adapter_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """transformers loads an adapter that lies in the folder of a model without being asked."""
    base = stock(tiny.base)
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny.base).save_pretrained(tmp_path)
    foreign = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    foreign.save_pretrained(tmp_path)
    for stage in ("base", "compress"):
        recipe = tiny.recipe(tmp_path / "out", model=str(tmp_path), stage=stage)
        with pytest.raises(ConfigError, match=f"base model {tmp_path} carries a PEFT adapter; merge the adapter"):
            train(recipe)
        assert not (tmp_path / "out").exists()


def test_an_adapter_of_ours_is_no_base_adapter(tiny: Tiny, tmp_path: Path) -> None:
    compressing(tiny.recipe()).save(tmp_path)
    recipe = tiny.recipe(base_adapter=str(tmp_path))
    with pytest.raises(AdapterError, match="is an adapter of ccm, not a plain LoRA"):
        make_stage(recipe, open_turns(recipe))


def test_the_first_stage_takes_no_base_adapter(tiny: Tiny, stage1: Path) -> None:
    recipe = tiny.recipe(stage="base", base_adapter=str(stage1))
    with pytest.raises(ConfigError, match="makes the base_adapter; leave base_adapter out"):
        make_stage(recipe, open_turns(recipe))


def test_a_base_adapter_of_another_model_is_refused(tiny: Tiny, stage1: Path) -> None:
    recipe = tiny.recipe(model="builtin", base_adapter=str(stage1))
    with pytest.raises(AdapterError, match="does not fit"):
        make_stage(recipe, open_turns(recipe))


def test_an_absent_or_unsupported_base_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        make_stage(tiny.recipe(model=str(tmp_path / "nowhere")), open_turns(tiny.recipe()))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        make_stage(tiny.recipe(model=str(tmp_path)), open_turns(tiny.recipe()))


@pytest.mark.parametrize("rule", ["full", "none"])
def test_a_rule_that_compresses_nothing_cannot_be_trained(tiny: Tiny, tmp_path: Path, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        train(tiny.recipe(tmp_path / "out", adapter=ccm_config(rule)))


def test_turns_are_the_models_own_where_the_recipe_names_none(tiny: Tiny, tmp_path: Path) -> None:
    assert open_turns(tiny.recipe(model="builtin")).form == TURNS
    assert open_turns(tiny.recipe()).form == TurnFormat()
    assert open_turns(tiny.recipe(turns=TURNS)).form == TURNS
    tokenizer = AutoTokenizer.from_pretrained(tiny.base)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    assert open_turns(tiny.recipe(model=str(tmp_path))).form == TurnFormat("chat")


def test_samples_are_laid_out_with_full_context_in_the_first_stage(tiny: Tiny) -> None:
    recipe = tiny.recipe(stage="base", adapter=ccm_config("merge", n_tok=4))
    stage = make(recipe)
    assert stage.rule is FULL
    sample = open_data(recipe.data, stage.turns, recipe.seed).pool(0, 1)[0]
    layout = build_layout([sample], stage.config, stage.rule, 0)
    assert not layout.comp_columns.numel()
    assert layout.ids[0].tolist() == [token for step in (*sample.steps, sample.query) for token in step.ids]


def test_a_step_that_stands_twice_in_a_sample_counts_as_last_only_at_the_end(tiny: Tiny) -> None:
    """The same object: which targets are of the final output must not be told by identity alone."""
    stage = compressing(tiny.recipe(objective={"last": 1.0, "every": 1.0}))
    step = Step([5, 6, 7], [IGNORE, 7, 2])
    twice, copies = (
        replace(make_sample([4], 2), steps=[Step([8, 9]), context], query=step)
        for context in (step, Step([*step.ids], [*step.targets]))
    )
    same, expected = (stage.sums(Batch([sample], [0], 2))["last"] for sample in (twice, copies))
    assert_close(same, expected)


def test_config_of_the_result_is_what_was_asked_for(tiny: Tiny, tmp_path: Path) -> None:
    wanted = CCMConfig("merge", n_tok=3, sink=True, recurrent=True)
    compressing(tiny.recipe(adapter=wanted)).save(tmp_path)
    config = json.loads((tmp_path / "ccm_config.json").read_text())
    assert (config["rule"], config["n_tok"], config["sink"], config["recurrent"]) == ("merge", 3, True, True)
    assert config["base_fingerprint"]


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
def test_both_stages_train_on_a_quantized_base_and_their_adapters_fit_the_whole_one(tiny: Tiny, tmp_path: Path) -> None:
    out = train(tiny.recipe(tmp_path / "out", quantize="int8", eval_every=3))
    losses = [record["loss"] for record in records(out)]
    assert losses[-1] < losses[0]
    for quantize in ("int8", None):
        assert ccm.load(adapter=out, quantize=quantize, device="cpu")[0].config.rule == "concat"
    plain = train(tiny.recipe(tmp_path / "plain", stage="base", quantize="int8", max_steps=2))
    merged = PeftModel.from_pretrained(stock(tiny.base), plain).merge_and_unload()
    assert (logits(merged) - logits(stock(tiny.base))).abs().max() > 1e-4
    with pytest.raises(ConfigError, match="cannot be merged into a quantized base"):
        train(tiny.recipe(tmp_path / "second", quantize="int8", base_adapter=str(plain)))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_4_bits_are_not_trained_on_a_cpu(tiny: Tiny) -> None:
    with pytest.raises(ConfigError, match=r"quantize=4bit trains on CUDA only.*quantize=int8"):
        make(tiny.recipe(quantize="4bit"))


@pytest.mark.parametrize("stage", ["base", "compress"])
def test_what_is_written_may_be_in_half_precision_and_checkpoints_are_not(
    tiny: Tiny, tmp_path: Path, stage: str
) -> None:
    recipe = tiny.recipe(tmp_path / "out", stage=stage, saved_dtype="bfloat16", objective={"last": 1.0}, max_steps=2)
    out = train(recipe)
    name = "adapter_model.safetensors" if stage == "base" else "ccm_adapter.safetensors"
    saved = {n: t for n, t in load_tensors(out / name)[0].items() if t.is_floating_point()}
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    held = read_checkpoint(next((out / "checkpoints").iterdir())).tensors
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    model, _ = ccm.load(adapter=out)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} <= {torch.float32}


def test_the_first_stage_may_begin_with_what_another_one_made(tiny: Tiny, tmp_path: Path) -> None:
    first = train(tiny.recipe(tmp_path / "first", stage="base", max_steps=2))
    recipe = tiny.recipe(stage="base", init_adapter=str(first))
    stage = make_stage(recipe, open_turns(recipe))
    held = read_checkpoint(next((first / "checkpoints").iterdir())).tensors
    assert held.keys() == stage.trained.keys()
    assert all(torch.equal(stage.trained[name], tensor) for name, tensor in held.items())
    other = replace(tiny.recipe(stage="base").adapter, lora=LoRASettings(r=3))
    with pytest.raises(AdapterError, match="first"):
        make(tiny.recipe(stage="base", adapter=other, init_adapter=str(first)))
