"""Adapters on disk: what comes back, what is refused, and that nothing of a file is ever executed."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import Malicious, authors_folder
from helpers import (
    FAMILIES,
    NO_PATHS,
    PAD,
    assert_close,
    ccm_config,
    compress_all,
    make_sample,
    online_logits,
    randomize_adapter,
    tiny_base,
    tiny_model,
)
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Llama4Config,
    Llama4ForConditionalGeneration,
    PretrainedConfig,
)

from ccm.core import adapter_folders
from ccm.core.adapter_folders import find_adapter
from ccm.core.config import CCMConfig, LoRASettings, TurnFormat
from ccm.core.errors import AdapterError, ConfigError, UnsupportedModelError
from ccm.engine import adapter_files as checkpoint
from ccm.engine.adapter_files import SavedAdapter, read_adapter, read_plain_lora, read_stage1, with_rule, write_adapter
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import build_layout
from ccm.models import builtin
from ccm.models import load as loading
from ccm.models.base import check_device, load_base

SAMPLE = make_sample([3, 5], 4)
CONFIG, WEIGHTS = "ccm_config.json", "ccm_adapter.safetensors"
SPAN = {"n_tok": 3, "min_n_tok": 1, "max_n_tok": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved concat adapter of the tiny Llama."""
    tiny_model().save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.covers(cases=8)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_comes_back_with_equal_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model("merge", family=family, n_tok=3, sink=family == "llama", positions="base")
    model.save_pretrained(tmp_path)
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base(family))
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))
    assert loaded.config == replace(model.config, base_fingerprint=model.base_id, base_vocab_size=model.vocab_size)
    assert not loaded.training


@pytest.mark.parametrize(
    "settings",
    [
        {"rule": "ema", "rule_options": {"weight": 0.25}},
        {"embeddings": "table"},
        {"recurrent": False, "turns": TurnFormat(separator="\n\u00e9:", preamble="Hi. ")},
    ],
)
def test_every_setting_comes_back(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**settings)
    model.save_pretrained(tmp_path)
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base())
    assert replace(loaded.config, base_fingerprint="", base_vocab_size=None) == model.config
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))


def test_nothing_but_the_adapter_is_written(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [WEIGHTS, CONFIG]
    assert set(load_file(folder / WEIGHTS)) == {*tiny_model().adapter_tensors(), "base_signs"}


def test_the_base_may_be_a_path(folder: Path, tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "base")
    loaded = CCMModel.from_pretrained(folder, tmp_path / "base", dtype=torch.float64)
    assert_close(online_logits(loaded, SAMPLE), online_logits(tiny_model(), SAMPLE))


@pytest.mark.parametrize("relative", [True, False])
def test_the_base_may_be_named_by_the_adapter(tmp_path: Path, relative: bool) -> None:
    tiny_base().save_pretrained(tmp_path / "base")
    model = tiny_model(base_model="../base" if relative else str(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = CCMModel.from_pretrained(tmp_path / "adapter", dtype=torch.float64)
    assert_close(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))


def test_an_adapter_that_names_no_base_asks_for_one(folder: Path) -> None:
    with pytest.raises(AdapterError, match="does not name its base"):
        CCMModel.from_pretrained(folder)


def test_a_base_that_does_not_exist_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises((AdapterError, ConfigError), match="nowhere"):
        CCMModel.from_pretrained(folder, tmp_path / "nowhere")


def test_an_unsupported_base_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(UnsupportedModelError, match=r"'bloom'.*llama"):
        load_base(tmp_path)


def test_the_text_part_of_a_model_that_also_sees_is_loaded(tmp_path: Path) -> None:
    sees = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    sees |= {"image_size": 28, "vision_output_dim": 8, "projector_input_dim": 8, "projector_output_dim": 8}
    text = tiny_base("llama4")
    whole = Llama4ForConditionalGeneration(Llama4Config(vision_config=sees, text_config=text.config.to_dict()))
    whole.language_model.load_state_dict(text.state_dict())
    whole.save_pretrained(tmp_path)
    loaded, ids = load_base(tmp_path, dtype=torch.float64), torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert_close(CCMModel(loaded, ccm_config()).base(ids).logits, text(ids).logits)


@pytest.mark.parametrize("model_type", ["frobnicate", None])
def test_a_type_that_transformers_does_not_know_is_refused_with_those_we_do(tmp_path: Path, model_type: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedModelError, match=rf"{model_type!r}.*llama"):
        load_base(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "pickled", "cut pickle", "other sizes", "no sizes"])
def test_damaged_files_of_a_base_are_refused_in_one_line(tmp_path: Path, damage: str) -> None:
    tiny_base().save_pretrained(tmp_path)
    weights, settings = tmp_path / "model.safetensors", tmp_path / "config.json"
    mark = tmp_path / "executed"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif "pickle" in damage:
        weights.unlink()
        torch.save({"weight": Malicious(mark)}, tmp_path / "pytorch_model.bin")
        if damage == "cut pickle":
            (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:100])
    else:
        size = 64 if damage == "other sizes" else "wide"
        settings.write_text(json.dumps({**json.loads(settings.read_text()), "hidden_size": size}))
    with pytest.raises(ConfigError, match=rf"{tmp_path}.*damaged") as refusal:
        load_base(tmp_path)
    assert "weights_only" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not mark.exists()


def test_the_error_of_a_base_comes_before_that_of_its_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="The base model .*nowhere"):
        loading.load(tmp_path / "nowhere", rule="full")


def test_options_of_the_hub_reach_the_adapters_download(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"token": "secret", "revision": "main", "cache_dir": "there"}

    def download(source: str, **given: Any) -> str:
        assert given == asked
        raise OSError("not there")

    monkeypatch.setattr(adapter_folders, "snapshot_download", download)
    with pytest.raises(AdapterError, match="nobody/adapter.*not there"):
        CCMModel.from_pretrained("nobody/adapter", **asked)


def test_settings_hold_without_an_adapter_too() -> None:
    base = f"{builtin.WEIGHTS}/../weights/base"
    model, _ = loading.load(base, rule="full", n_tok=77, recurrent=False, device="cpu")
    assert (model.config.n_tok, model.config.recurrent) == (77, False)
    with pytest.raises(ConfigError, match="n_tok is 0"):
        loading.load(base, rule="full", n_tok=0)


def test_options_of_the_hub_reach_the_config_and_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def spy(owner: type, name: str) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **given: (seen.setdefault(name, given), real(*args, **given))[1])

    spy(PretrainedConfig, "get_config_dict")
    spy(AutoTokenizer, "from_pretrained")
    asked = {"token": "secret", "revision": "main", "local_files_only": True}
    loading.load(f"{builtin.WEIGHTS}/../weights/base", rule="full", device="cpu", **asked)
    assert all(asked.items() <= seen[name].items() for name in ("get_config_dict", "from_pretrained"))
    seen.clear()
    place = builtin.WEIGHTS
    loading.load(f"{place}/base", adapter=f"{place}/concat", device="cpu", revision="a", base_revision="b")
    assert {given["revision"] for given in seen.values()} == {"b"}


def test_a_base_has_its_own_revision_and_attention(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    seen: dict[str, Any] = {}

    def found(source: str | Path, **given: Any) -> Path:
        seen["adapter"] = given["revision"]
        return folder

    def config(*args: Any, **given: Any) -> Any:
        seen["base"] = given["revision"]
        raise OSError("There is no network here.")

    monkeypatch.setattr(loading, "find_adapter", found)
    monkeypatch.setattr(PretrainedConfig, "get_config_dict", config)
    with pytest.raises(ConfigError, match="org/model cannot be loaded: There is no network"):
        loading.load("org/model", adapter="org/adapter", revision="a", base_revision="b")
    assert seen == {"adapter": "a", "base": "b"}
    with pytest.raises(ConfigError):
        loading.load("org/model", rule="full", base_revision="c")
    assert seen["base"] == "c"


def test_the_attention_that_is_asked_for_is_used() -> None:
    model, _ = loading.load(f"{builtin.WEIGHTS}/base", rule="full", device_map="cpu", attn_implementation="eager")
    assert model.base.config._attn_implementation == "ccm_eager"


@pytest.mark.parametrize("kernel", ["flash_attention_2", "flex_attention", "none"])
def test_attention_that_does_not_take_our_masks_is_refused(kernel: str) -> None:
    """It would be replaced without a word."""
    with pytest.raises(ConfigError, match=f"attn_implementation is '{kernel}'; allowed: sdpa, eager"):
        loading.load("builtin", attn_implementation=kernel)


def test_another_base_is_refused_with_what_both_have(folder: Path) -> None:
    mine = json.loads((folder / CONFIG).read_text())["base_fingerprint"]
    with pytest.raises(AdapterError, match=f"(?s){mine}.*load it on the model it was trained on"):
        CCMModel.from_pretrained(folder, tiny_base(seed=9))
    with pytest.raises(AdapterError, match=r"num_key_value_heads 4\), but .* has 2; load it on"):
        CCMModel.from_pretrained(folder, tiny_base("llama_gqa"))


def test_a_base_of_another_vocabulary_is_refused_with_both_sizes(folder: Path) -> None:
    grown = tiny_base()
    grown.resize_token_embeddings(grown.config.vocab_size + 3, mean_resizing=False)
    sizes = tiny_base().config.vocab_size, grown.config.vocab_size
    with pytest.raises(AdapterError, match=r"vocabulary size {}\), but .* has {}; load it on".format(*sizes)):
        CCMModel.from_pretrained(folder, grown)


def test_a_half_precision_base_on_a_cpu_becomes_float32_unless_asked(folder: Path, tmp_path: Path) -> None:
    tiny_base(dtype=torch.float16).save_pretrained(tmp_path / "base")
    assert CCMModel.from_pretrained(folder, tmp_path / "base").base.dtype == torch.float32
    assert CCMModel.from_pretrained(folder, tmp_path / "base", dtype=torch.bfloat16).base.dtype == torch.bfloat16
    assert load_base(tmp_path / "base", dtype=torch.float16).dtype == torch.float16


def test_a_dtype_may_be_one_of_torch_and_the_old_name_of_the_option_is_refused() -> None:
    """transformers would leave the old name aside where there is the new one."""
    for dtype in (torch.bfloat16, torch.float64, "float64"):
        assert f"torch.{dtype}".endswith(str(loading.load("builtin", dtype=dtype)[0].base.dtype))
    with pytest.raises(ConfigError, match="no dtype torch.int8; allowed: auto, float64, float32"):
        loading.load("builtin", dtype=torch.int8)
    with pytest.raises(ConfigError, match="torch_dtype is called dtype"):
        loading.load("builtin", torch_dtype=torch.bfloat16)


@pytest.mark.parametrize(
    "text",
    [
        b"{oops",
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"max_new_tokens": "x"}',
        b'{"cache_implementation": 7}',
    ],
)
def test_settings_of_generation_that_are_damaged_are_refused_by_the_file(tmp_path: Path, text: bytes) -> None:
    tiny_base().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"generation_config.json, .* is damaged .*Download it again, or delete it"):
        load_base(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    load_base(tmp_path)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The base model .* cannot be loaded: there is no config.json"):
        loading.load(tmp_path, rule="full")
    for absent in ("/nowhere", "./nowhere/x/y", "../nowhere", "~/nowhere"):
        with pytest.raises(
            ConfigError, match=f"The base model {absent} cannot be loaded: it is neither a folder nor a valid Hub id"
        ):
            loading.load(absent, rule="full")


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    for device in ("cuda:77", "toaster", "meta", "disk"):
        with pytest.raises(ConfigError, match=rf"{device}.*cpu"):
            check_device(device)
        with pytest.raises(ConfigError, match=rf"{device}.*cpu"):
            load_base("builtin", device_map=device)
    for spread in (77, torch.device("cuda:77"), {"": "cuda:77"}, {"model": 77, "lm_head": "cpu"}):
        with pytest.raises(ConfigError, match=r"There is no device .*77.* here; this machine has cpu"):
            load_base("builtin", device_map=spread)
    assert load_base("builtin", device_map={"": torch.device("cpu")}).device.type == "cpu"
    assert check_device(None).type == "cpu"


def test_another_number_of_comp_tokens_is_refused_with_both(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"n_tok 2.*with 3"):
        CCMModel.from_pretrained(folder, tiny_base(), n_tok=3)
    assert CCMModel.from_pretrained(folder, tiny_base(), n_tok=2).config.n_tok == 2


@pytest.mark.covers("rule", "n_tok")
@pytest.mark.parametrize("n_tok", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist"])
def test_an_adapter_for_several_n_runs_with_each_as_it_was_trained(rule: str, n_tok: int, tmp_path: Path) -> None:
    model = tiny_model(rule, **SPAN)
    model.save_pretrained(tmp_path)
    layout = build_layout([SAMPLE], replace(model.config, n_tok=n_tok), model.rule, pad_id=PAD)
    with torch.no_grad():
        trained = model(layout).logits[0, -len(SAMPLE.query.ids) :]
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base(), n_tok=n_tok)
    assert loaded.config.n_tok == n_tok
    assert_close(online_logits(loaded, SAMPLE), trained)
    entries = n_tok * (len(SAMPLE.steps) if rule == "concat" else 1)
    assert loaded.close(compress_all(loaded, SAMPLE)).entries == (entries,)


@pytest.mark.parametrize("n_tok", [1, 4])
def test_an_adapter_saved_with_another_n_keeps_its_range_and_all_embeddings(n_tok: int, tmp_path: Path) -> None:
    model = tiny_model("gate", **SPAN)
    model.save_pretrained(tmp_path / "one")
    CCMModel.from_pretrained(tmp_path / "one", tiny_base(), n_tok=n_tok).save_pretrained(tmp_path / "other")
    again = CCMModel.from_pretrained(tmp_path / "other", tiny_base())
    assert replace(again.config, base_fingerprint="", base_vocab_size=None) == replace(model.config, n_tok=n_tok)
    assert again.config.n_tok_range == (1, 4)
    kept = again.adapter_tensors()
    assert all(torch.equal(kept[name], tensor) for name, tensor in model.adapter_tensors().items())
    back = CCMModel.from_pretrained(tmp_path / "other", tiny_base(), n_tok=3)
    assert torch.equal(online_logits(back, SAMPLE), online_logits(model, SAMPLE))


@pytest.mark.parametrize("rule", [None, "concat", "full"])
@pytest.mark.parametrize("n_tok", [0, 5])
def test_an_n_beyond_those_of_the_adapter_is_refused_with_its_range(
    n_tok: int, rule: str | None, tmp_path: Path
) -> None:
    tiny_model("gist", **SPAN).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"trained with n_tok from 1 to 4; it cannot run with {n_tok}"):
        CCMModel.from_pretrained(tmp_path, tiny_base(), rule=rule, n_tok=n_tok)


def test_another_n_goes_with_another_rule() -> None:
    config = with_rule(CCMConfig("gist", **SPAN), "concat", n_tok=1)
    assert (config.rule, config.n_tok, config.n_tok_range) == ("concat", 1, (1, 4))


@pytest.mark.parametrize(("bounds", "n_tok"), [({"min_n_tok": 1}, 2), ({"max_n_tok": 4}, 4)])
def test_a_range_with_one_bound_given_stays_under_another_n(bounds: dict[str, int], n_tok: int) -> None:
    config = CCMConfig(n_tok=3, **bounds)
    assert with_rule(config, n_tok=n_tok).n_tok_range == config.n_tok_range


def test_an_adapter_from_before_there_were_ranges_loads_with_its_own_n(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    assert (values.pop("min_n_tok"), values.pop("max_n_tok"), values.pop("format_version")) == (None, None, 2)
    (folder / CONFIG).write_text(json.dumps(values))
    save_file(tiny_model().adapter_tensors(), folder / WEIGHTS)
    loaded = CCMModel.from_pretrained(folder, tiny_base())
    assert loaded.config.n_tok_range == (2, 2)
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(tiny_model(), SAMPLE))


@pytest.mark.parametrize("rule", ["merge", "ema", "gist"])
def test_a_rule_that_the_adapter_was_not_trained_for_is_refused_with_those_it_was(folder: Path, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"'concat'.*'{rule}'.*concat, full, none, pos_control"):
        CCMModel.from_pretrained(folder, tiny_base(), rule=rule)


@pytest.mark.parametrize("rule", ["full", "none", "pos_control", "concat"])
def test_controls_run_with_any_adapter_they_fit(folder: Path, rule: str) -> None:
    loaded = CCMModel.from_pretrained(folder, tiny_base(), rule=rule)
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(tiny_model(rule), SAMPLE))


def test_gisting_online_is_a_gist_adapter_under_concat_without_recurrence(tmp_path: Path) -> None:
    tiny_model("gist").save_pretrained(tmp_path)
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base(), rule="concat", recurrent=False)
    assert (loaded.config.rule, loaded.config.recurrent) == ("concat", False)
    expected = online_logits(tiny_model("concat", recurrent=False), SAMPLE)
    assert torch.equal(online_logits(loaded, SAMPLE), expected)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="no rule 'concatenate'"):
        with_rule(CCMConfig(), "concatenate")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", "no-such-owner/no-such-adapter"):
        with pytest.raises(AdapterError, match=f"no folder {source}"):
            find_adapter(source)


def test_a_folder_without_an_adapter_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match=r"ccm_config.json is missing.*adapter_config.json.*PEFT"):
        find_adapter(tmp_path)


def test_saving_onto_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterError, match="File exists"):
        tiny_model().save_pretrained(tmp_path / "file")
    with pytest.raises(AdapterError, match="file/sub cannot be written"):
        tiny_model().save_pretrained(tmp_path / "file" / "sub")


@pytest.mark.parametrize("name", NO_PATHS)
def test_what_is_no_path_is_refused(name: Any) -> None:
    for use in (tiny_model().save_pretrained, find_adapter):
        with pytest.raises(AdapterError, match=r"not a path|cannot be the name of a file"):
            use(name)


def test_the_parameters_of_a_rule_are_for_that_rule_alone() -> None:
    tensors = {"comp_embeddings.weight": torch.ones(2, 4), "rule.weight": torch.ones(1, 4)}
    saved = SavedAdapter(CCMConfig(rule="gate"), tensors, None)
    assert saved.tensors_for("gate") == tensors
    assert list(saved.tensors_for("full")) == ["comp_embeddings.weight"]


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterError, match=f"{WEIGHTS} is missing"):
        CCMModel.from_pretrained(folder, tiny_base())


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "pytorch_model.bin"])
def test_weights_that_memory_does_not_hold_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise MemoryError

    (tmp_path / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 1, "target_modules": []}')
    (tmp_path / name).write_bytes(b"large")
    monkeypatch.setattr(checkpoint, "load_tensors", fail)
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(AdapterError, match=f"{name} is larger than the memory of this machine"):
        read_plain_lora(tmp_path)


@pytest.mark.parametrize("text", ["{damaged", "", "null", "3", "[]", '["n_tok"]', '"text"'])
def test_damaged_settings_are_refused(folder: Path, text: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises((AdapterError, ConfigError)):
        CCMModel.from_pretrained(folder, tiny_base())


def test_settings_that_are_not_text_are_refused(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(AdapterError, match="damaged"):
        CCMModel.from_pretrained(folder, tiny_base())


@pytest.mark.parametrize("place", ["", "lora", "turns"])
def test_an_unknown_setting_is_refused_by_name(folder: Path, place: str) -> None:
    values = json.loads((folder / CONFIG).read_text())
    (values[place] if place else values)["wizard"] = 1
    (folder / CONFIG).write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"'wizard'.*Known"):
        CCMModel.from_pretrained(folder, tiny_base())


LORA = "model.layers.1.self_attn.v_proj.lora_B.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[LORA].view(-1)[3:4].fill_(float("nan")), f"{LORA} holds values that are not finite"),
        (lambda t: t.update({LORA: t[LORA][1:].clone()}), r"has shape \(31, 4\), the model \(32, 4\)"),
        (lambda t: t.update({LORA: t[LORA].to(torch.int8)}), "is in torch.int8, the model in torch.float32"),
        (lambda t: t.pop(LORA), f"missing.*{LORA}"),
        (lambda t: t.update({"extra": torch.ones(1)}), "unknown.*extra"),
        (lambda t: t.pop("comp_embeddings.weight"), "missing.*comp_embeddings"),
    ],
)
def test_weights_that_do_not_fit_are_refused(folder: Path, change: Callable[[dict], Any], message: str) -> None:
    saved = read_adapter(folder)
    tensors = dict(saved.tensors)
    change(tensors)
    write_adapter(replace(saved, tensors=tensors), folder)
    with pytest.raises(AdapterError, match=message):
        CCMModel.from_pretrained(folder, tiny_base())
    model = tiny_model(seed=5, base=tiny_base())
    before = {name: tensor.detach().clone() for name, tensor in model.adapter_tensors().items()}
    with pytest.raises(AdapterError, match=message):
        model.load_adapter(tensors, "there")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.adapter_tensors().items())


@pytest.mark.parametrize("kept", [0, 10, 0.5])
def test_cut_weights_are_refused(folder: Path, kept: float) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(AdapterError, match="no whole file of the tensors of an adapter"):
        CCMModel.from_pretrained(folder, tiny_base())


def test_what_is_no_plain_lora_is_told_as_what_it_is(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=f"There is no folder {tmp_path / 'none'}; name one that holds a LoRA"):
        read_stage1(tmp_path / "none")
    with pytest.raises(
        AdapterError, match=f"{folder} is an adapter of ccm, .* begins with it by init_adapter={folder}"
    ):
        read_stage1(folder)
    (tmp_path / "other").mkdir()
    with pytest.raises(AdapterError, match="holds no adapter_config.json"):
        read_stage1(tmp_path / "other")


def test_plain_peft_and_transformers_find_nothing_to_load(folder: Path) -> None:
    """They would run the update on every token."""
    with pytest.raises((ValueError, OSError), match="adapter_config.json"):
        PeftModel.from_pretrained(tiny_base(), str(folder))
    with pytest.raises((ValueError, OSError)):
        AutoModelForCausalLM.from_pretrained(folder)


def save_plain_lora(folder: Path, seed: int = 3) -> torch.nn.Module:
    """Write a plain PEFT LoRA of the tiny base, as stage 1 leaves it; returns the model it makes."""
    wrapped = get_peft_model(tiny_base(), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    wrapped.save_pretrained(folder)
    return wrapped.eval()


def test_a_stage_1_adapter_is_saved_inside_and_merged_again(tmp_path: Path) -> None:
    wrapped = save_plain_lora(tmp_path / "plain")
    model = CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "plain")).eval()
    randomize_adapter(model, 1)
    model.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "base_adapter" / "adapter_model.safetensors").is_file()
    loaded = CCMModel.from_pretrained(tmp_path / "adapter", tiny_base())
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))
    assert loaded.base_id == model.base_id != tiny_model().base_id
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert_close(loaded.read(loaded.empty_memory(), ids), wrapped(ids).logits)


def test_adapters_share_the_stage_1_adapter_that_stands_beside_them(tmp_path: Path) -> None:
    save_plain_lora(tmp_path / "first")
    models = []
    for rule in ("concat", "merge"):
        model = CCMModel(tiny_base(), ccm_config(rule), stage1=read_stage1(tmp_path / "first")).eval()
        randomize_adapter(model, 1)
        model.save_pretrained(tmp_path / rule)  # by itself at first
        settings = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
        (tmp_path / "first" / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "x"}))
        write_adapter(read_adapter(tmp_path / rule), tmp_path / rule, shared="first")
        assert not (tmp_path / rule / "base_adapter").exists()
        models.append(model)
    for model in models:
        loaded = CCMModel.from_pretrained(tmp_path / model.config.rule, tiny_base())
        assert torch.equal(online_logits(loaded, SAMPLE), online_logits(model, SAMPLE))
        assert loaded.config == replace(model.config, base_fingerprint=model.base_id, base_vocab_size=model.vocab_size)


def test_a_stage_1_adapter_beside_that_is_absent_another_or_elsewhere_is_refused(tmp_path: Path) -> None:
    save_plain_lora(tmp_path / "first")
    save_plain_lora(tmp_path / "other", seed=4)
    model = CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "first"))
    model.save_pretrained(tmp_path / "adapter")
    saved = read_adapter(tmp_path / "adapter")
    with pytest.raises(AdapterError, match="does not hold the stage-1 adapter"):
        write_adapter(saved, tmp_path / "adapter", shared="other")
    write_adapter(saved, tmp_path / "adapter", shared="first")
    save_plain_lora(tmp_path / "first", seed=4)
    with pytest.raises(AdapterError, match=r"with the stage-1 adapter \w{16} in \.\./first, but there is \w{16};"):
        read_adapter(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(AdapterError, match="first"):
        read_adapter(tmp_path / "adapter")
    for place in ("/etc", "../..", "../a/b", "first", "../.hidden", 3):
        settings = json.loads((tmp_path / "adapter" / "ccm_config.json").read_text()) | {"base_adapter": place}
        (tmp_path / "adapter" / "ccm_config.json").write_text(json.dumps(settings))
        with pytest.raises(AdapterError, match=r"allowed is a folder beside it, such as \.\./base"):
            read_adapter(tmp_path / "adapter")


def test_an_adapter_saved_over_one_with_stage_1_leaves_nothing_of_it(tmp_path: Path) -> None:
    save_plain_lora(tmp_path / "plain")
    CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "plain")).save_pretrained(tmp_path / "adapter")
    tiny_model().save_pretrained(tmp_path / "adapter")
    loaded = CCMModel.from_pretrained(tmp_path / "adapter", tiny_base())
    assert torch.equal(online_logits(loaded, SAMPLE), online_logits(tiny_model(), SAMPLE))


def test_without_its_stage_1_adapter_or_with_another_one_an_adapter_is_refused(tmp_path: Path) -> None:
    save_plain_lora(tmp_path / "plain")
    model = CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "plain"))
    model.save_pretrained(tmp_path / "adapter")
    inside = tmp_path / "adapter" / "base_adapter"
    save_plain_lora(inside, seed=4)
    with pytest.raises(AdapterError, match=r"with the stage-1 adapter \w{16} in base_adapter, but there is \w{16};"):
        CCMModel.from_pretrained(tmp_path / "adapter", tiny_base())
    for file in inside.iterdir():
        file.unlink()
    inside.rmdir()
    with pytest.raises(AdapterError, match=r"but there is \(none\); the adapter was not copied whole"):
        CCMModel.from_pretrained(tmp_path / "adapter", tiny_base())


def test_an_adapter_does_not_begin_with_one_of_other_sizes(tmp_path: Path) -> None:
    """Of one that is bound to no base, as imported ones may be, no fingerprint tells."""
    other = tiny_model(base=tiny_base(hidden_size=64, num_attention_heads=8, num_key_value_heads=8))
    write_adapter(SavedAdapter(other.config, other.adapter_tensors(), None), tmp_path)
    with pytest.raises(AdapterError, match="hidden size: 64, the model's: 32"):
        tiny_model().begin_with(tmp_path)


@pytest.mark.parametrize("comp", [True, False])
@pytest.mark.parametrize("pickled", [True, False])
def test_the_authors_adapters_are_read_from_either_file(tmp_path: Path, pickled: bool, comp: bool) -> None:
    written = authors_folder(tmp_path / "theirs", pickled=pickled, comp=comp)
    lora = read_plain_lora(tmp_path / "theirs")
    assert set(lora.tensors) == {
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_B.weight",
    }
    for name, tensor in lora.tensors.items():
        assert torch.equal(tensor, written[f"base_model.model.{name}"])
    assert lora.settings["lora_alpha"] == 8
    assert (lora.comp is not None) == comp
    if comp:
        with pytest.raises(AdapterError, match="not a stage-1 adapter"):
            read_stage1(tmp_path / "theirs")


def test_tensors_that_are_no_lora_are_refused(tmp_path: Path) -> None:
    authors_folder(tmp_path / "theirs", pickled=False, comp=True)
    save_file({"base_model.model.lm_head.weight": torch.ones(2)}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(AdapterError, match="no LoRA.*lm_head"):
        read_plain_lora(tmp_path / "theirs")


@pytest.mark.parametrize("write", ["pickle", "torch", "torch_legacy"])
def test_a_checkpoint_that_holds_more_than_tensors_is_refused_and_not_executed(tmp_path: Path, write: str) -> None:
    authors_folder(tmp_path / "theirs", pickled=True, comp=True)
    mark, path = tmp_path / "executed", tmp_path / "theirs" / "pytorch_model.bin"
    content = {"a.lora_A.weight": torch.ones(1), "b": Malicious(mark)}
    if write == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(AdapterError, match="holds more than tensors"):
        read_plain_lora(tmp_path / "theirs")
    assert not mark.exists()


def test_the_malicious_checkpoint_would_have_been_executed(tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", b"\x80\x02}q\x00.", b"PK\x03\x04broken", b"\x80\x020.", b"\x80\x02X\x02\x00\x00\x00\xff\xff."],
)
def test_a_damaged_pickled_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    authors_folder(tmp_path / "theirs", pickled=True, comp=True)
    (tmp_path / "theirs" / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(AdapterError):
        read_plain_lora(tmp_path / "theirs")


@pytest.mark.parametrize("content", [torch.ones(2), [torch.ones(2)], {"a.lora_A.weight": 3}])
def test_a_pickled_checkpoint_that_is_no_table_of_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    authors_folder(tmp_path / "theirs", pickled=True, comp=True)
    torch.save(content, tmp_path / "theirs" / "pytorch_model.bin")
    with pytest.raises(AdapterError):
        read_plain_lora(tmp_path / "theirs")


@pytest.mark.parametrize("text", ["{damaged", "[]", "{}", "null"])
def test_damaged_settings_of_a_plain_lora_are_refused(tmp_path: Path, text: str) -> None:
    """When it is read, or at the latest when it is merged."""
    authors_folder(tmp_path / "theirs", pickled=False, comp=False)
    (tmp_path / "theirs" / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError):
        CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "theirs"))


def test_a_plain_lora_without_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter_config.json"):
        read_plain_lora(tmp_path)
    authors_folder(tmp_path / "theirs", pickled=False, comp=False)
    (tmp_path / "theirs" / "model.safetensors").unlink()
    with pytest.raises(AdapterError, match="no weights"):
        read_plain_lora(tmp_path / "theirs")


def test_a_stage_1_adapter_of_other_sizes_is_refused(tmp_path: Path) -> None:
    authors_folder(tmp_path / "theirs", pickled=False, comp=False)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.ones(2, 16)}, tmp_path / "theirs" / "model.safetensors")
    with pytest.raises(AdapterError):
        CCMModel(tiny_base(), ccm_config(), stage1=read_stage1(tmp_path / "theirs"))


@pytest.mark.parametrize(
    ("own", "rule", "changes"),
    [
        ("concat", "full", {}),
        ("concat", "none", {}),
        ("concat", None, {"recurrent": False}),
        ("merge", "ema", {"rule_options": {"weight": 0.3}}),
        ("gate", "none", {}),
        ("gate", "gate", {"n_tok": 1}),
    ],
)
def test_a_model_under_another_rule_is_that_which_is_loaded_so(
    tmp_path: Path, own: str, rule: str | None, changes: dict[str, Any]
) -> None:
    model = tiny_model(own, n_tok=2, min_n_tok=1, max_n_tok=2)
    model.save_pretrained(tmp_path)
    before = online_logits(model, SAMPLE)
    other = model.under(rule, **changes)
    loaded = CCMModel.from_pretrained(tmp_path, tiny_base(), rule=rule, **changes)
    assert torch.equal(online_logits(other, SAMPLE), online_logits(loaded, SAMPLE))
    assert other.config.rule == loaded.config.rule
    assert repr(other.origin) == repr(loaded.origin)
    assert {id(p) for p in other.parameters()} <= {id(p) for p in model.parameters()}
    assert torch.equal(online_logits(model, SAMPLE), before)
    assert model.config.rule == own


def test_a_model_does_not_go_under_a_rule_that_it_was_not_trained_for() -> None:
    with pytest.raises(ConfigError, match="trained for the rule 'concat' and cannot run as 'merge'"):
        tiny_model().under("merge")


def test_another_adapter_shares_the_weights_of_the_base(tmp_path: Path) -> None:
    tiny_model("merge", n_tok=2).save_pretrained(tmp_path)
    model = tiny_model("concat")
    before = online_logits(model, SAMPLE)
    other, loaded = model.with_adapter(tmp_path), CCMModel.from_pretrained(tmp_path, tiny_base())
    assert torch.equal(online_logits(other, SAMPLE), online_logits(loaded, SAMPLE))
    assert repr(other.origin) == repr(loaded.origin) != repr(model.origin)
    assert torch.equal(online_logits(model, SAMPLE), before)
    shared = {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}
    assert shared == {id(p) for name, p in model.base.named_parameters() if "lora_" not in name}
    with torch.no_grad():
        other.adapter_tensors()["comp_embeddings.weight"].add_(1)
        for name, tensor in other.adapter_tensors().items():
            tensor.add_(0.5) if "lora_" in name else None
    assert torch.equal(online_logits(model, SAMPLE), before)


def test_another_adapter_shares_a_merged_first_stage(tmp_path: Path) -> None:
    save_plain_lora(tmp_path / "plain")
    for rule in ("concat", "gate"):
        model = CCMModel(tiny_base(), ccm_config(rule), stage1=read_stage1(tmp_path / "plain"))
        randomize_adapter(model, len(rule))
        model.save_pretrained(tmp_path / rule)
    model = CCMModel.from_pretrained(tmp_path / "concat", tiny_base())
    other = model.with_adapter(tmp_path / "gate")
    loaded = CCMModel.from_pretrained(tmp_path / "gate", tiny_base())
    assert torch.equal(online_logits(other, SAMPLE), online_logits(loaded, SAMPLE))
    other.save_pretrained(tmp_path / "again")
    assert read_adapter(tmp_path / "again").stage1 is not None


@pytest.mark.parametrize(
    ("model", "saved"),
    [
        ({}, {"base": 1}),
        ({}, {"lora": LoRASettings(r=2)}),
        ({"lora": LoRASettings(conditional=False)}, {"lora": LoRASettings(conditional=False)}),
        ({"embeddings": "table"}, {"embeddings": "table"}),
    ],
)
def test_an_adapter_that_cannot_share_the_base_is_refused(
    tmp_path: Path, model: dict[str, Any], saved: dict[str, Any]
) -> None:
    seed = saved.pop("base", 0)
    CCMModel(tiny_base(seed=seed), ccm_config("concat", **saved)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot share the weights of this model"):
        CCMModel(tiny_base(), ccm_config("concat", **model)).with_adapter(tmp_path)
