"""Quantized bases: the same memory on fewer bits. Both libraries run on a CPU; what is not installed is skipped."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from helpers import (
    PRODUCTS,
    assert_close,
    ccm_config,
    compress_all,
    layout_of,
    make_sample,
    online_logits,
    parallel_logits,
    randomize_adapter,
    tiny_base,
    tiny_model,
)
from peft import LoraConfig, get_peft_model
from tiny_t5 import write_t5
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

import ccm
from ccm.adapters.fusing import fuse_adapter
from ccm.cli import app
from ccm.core.adapter_folders import CONFIG
from ccm.core.config import LoRASettings
from ccm.core.errors import AdapterError, ConfigError
from ccm.engine.adapter_files import read_adapter, write_adapter
from ccm.engine.decoder import CCMModel
from ccm.engine.families import attention_modules
from ccm.engine.fingerprint import fingerprint_base
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.lora import CompLinear, PlainLoRA, inject_lora
from ccm.engine.quantization import LIBRARIES, Quantization, is_quantized, quantization_config, stored_bytes
from ccm.engine.t5.encoder import build_encoder_layout
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.models.base import load_base
from ccm.models.builtin import WEIGHTS
from ccm.models.load import load_tokenizer

ROWS = [make_sample([5, 3], 4), make_sample([7, 2, 6], 3)]
TRAINED = [
    Sample([Step([3, 4, 5]), Step([6])], Step([7, 8], [8, 2])),
    Sample([Step([9, 9])], Step([10, 11, 12], [11, 12, 2])),
]
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # 4 bits come in groups of 64


def needs(way: Quantization) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(LIBRARIES[way]) is None, reason=f"{LIBRARIES[way]} is not installed")


def ways(*names: Quantization) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", [pytest.param(name, marks=needs(name)) for name in names])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base on disk, and its tokenizer."""
    place = tmp_path_factory.mktemp("quantized") / "base"
    tiny_base("llama_gqa", **SIZES).save_pretrained(place)
    load_tokenizer(WEIGHTS / "base").save_pretrained(place)
    return place


def base_of(folder: Path, way: Quantization | None = None, dtype: str = "float32") -> PreTrainedModel:
    return load_base(folder, device="cpu", dtype=getattr(torch, dtype), quantize=way)


@ways("int8", "8bit", "4bit")
def test_linears_take_fewer_bytes_and_all_carry_our_lora_in_float32(folder: Path, way: Quantization) -> None:
    whole, base = base_of(folder), base_of(folder, way)
    weight = base.model.layers[0].mlp.up_proj.weight
    assert is_quantized(base)
    assert not is_quantized(whole)
    assert stored_bytes(weight) < 0.3 * stored_bytes(whole.model.layers[0].mlp.up_proj.weight)
    assert {type(module.weight) for module in (base.lm_head, base.model.embed_tokens)} == {nn.Parameter}
    model = tiny_model(base=base)
    for attention in attention_modules(model.base):
        assert {type(getattr(attention, f"{name}_proj")) for name in "qkvo"} == {CompLinear}
    assert {tensor.dtype for tensor in model.adapter_tensors().values()} == {torch.float32}


@ways("int8", "8bit", "4bit")
def test_text_runs_through_the_quantized_base_bit_for_bit(folder: Path, way: Quantization) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    model = tiny_model(base=base_of(folder, way))
    with torch.no_grad():
        found, stock, whole = model.base(ids).logits, base_of(folder, way)(ids).logits, base_of(folder)(ids).logits
    assert torch.equal(found, stock)
    assert 0 < (found - whole).abs().mean() < 0.5 * whole.abs().mean()


@pytest.mark.covers("way", "rule")
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist"])
@ways("int8", "4bit")
def test_parallel_equals_online_on_a_quantized_base(folder: Path, way: Quantization, rule: str) -> None:
    """bitsandbytes multiplies 4 bits in float32 or in bfloat16, as the processor and the number of rows have it."""
    model = tiny_model(rule, base=base_of(folder, way), sink=True)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        if way == "int8":
            assert_close(online_logits(model, row), logits, depth=PRODUCTS)
        else:
            assert (online_logits(model, row) - logits).abs().mean() < 0.1 * logits.abs().mean()


@pytest.mark.covers("way", "dtype")
@ways("int8", "8bit", "4bit")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memories_have_the_dtype_of_what_is_not_quantized(folder: Path, way: Quantization, dtype: str) -> None:
    """8bit rounds activations to 8 bits, so that either way of reading may round them to the other side."""
    model = tiny_model(base=base_of(folder, way, dtype))
    memory = compress_all(model, ROWS[0])
    assert {x.dtype for x in (*memory.keys, *memory.values)} == {getattr(torch, dtype)}
    parallel = parallel_logits(model, ROWS[:1])[0]
    assert (online_logits(model, ROWS[0]) - parallel).abs().mean() < 0.1 * parallel.abs().mean()


@ways("int8", "8bit")
def test_an_adapter_is_trained_on_a_quantized_base_and_evaluated_in_between(folder: Path, way: Quantization) -> None:
    model = tiny_model(base=base_of(folder, way)).train()
    before = [stored.clone() for stored in _stored(model)]
    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model(layout_of(model, TRAINED)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        parallel_logits(model.eval(), ROWS)
        model.train()
    assert losses[-1] < 0.7 * losses[0]
    assert all(torch.equal(old, new) for old, new in zip(before, _stored(model), strict=True))


def _stored(model: CCMModel) -> list[torch.Tensor]:
    """What the first projection's weight consists of."""
    weight = model.base.model.layers[0].self_attn.q_proj.base_layer.weight
    if hasattr(weight, "__tensor_flatten__"):
        return [getattr(weight, part) for part in weight.__tensor_flatten__()[0]]
    return [weight.data]


@pytest.mark.covers("way", "shard")
@ways("int8", "8bit", "4bit")
@pytest.mark.parametrize("shard", ["1GB", "40KB"])
def test_a_base_has_one_fingerprint_in_every_precision(tmp_path: Path, way: Quantization, shard: str) -> None:
    ids = []
    for seed in (0, 1):
        place = tmp_path / str(seed)
        tiny_base("llama_gqa", seed=seed, **SIZES).save_pretrained(place, max_shard_size=shard)
        assert (place / "model.safetensors").is_file() is (shard == "1GB")
        ids += [fingerprint_base(base_of(place, precision)) for precision in (None, way)]
    assert ids[0] == ids[1] != ids[2] == ids[3]


@ways("int8", "8bit", "4bit")
def test_adapters_and_memories_go_from_one_precision_to_another(
    folder: Path, way: Quantization, tmp_path: Path
) -> None:
    model = tiny_model(base=base_of(folder))
    model.save_pretrained(tmp_path / "adapter")
    compress_all(model, ROWS[0]).save(tmp_path / "memory")
    quantized, _ = ccm.load(folder, tmp_path / "adapter", quantize=way, device="cpu")
    assert is_quantized(quantized.base)
    assert quantized.load_memory(tmp_path / "memory").entries == (4,)
    quantized.save_pretrained(tmp_path / "again")
    back, _ = ccm.load(folder, tmp_path / "again", device="cpu")
    assert_close(parallel_logits(back, ROWS)[0], parallel_logits(model, ROWS)[0], depth=PRODUCTS)


@ways("int8", "8bit", "4bit")
def test_a_base_that_is_quantized_on_disk_is_a_relative(folder: Path, way: Quantization, tmp_path: Path) -> None:
    base_of(folder, way).save_pretrained(tmp_path / "small")
    whole = tiny_model(base=base_of(folder))
    whole.save_pretrained(tmp_path / "adapter")
    tiny_model(base=base_of(tmp_path / "small")).save_pretrained(tmp_path / "own")
    near = CCMModel.from_pretrained(tmp_path / "adapter", tmp_path / "small", device="cpu")
    own = CCMModel.from_pretrained(tmp_path / "own", tmp_path / "small", device="cpu", strict=True)
    assert is_quantized(own.base)
    assert near.base_id == own.base_id != whole.base_id, "memories stay with the very base"


@ways("int8")
def test_a_quantized_base_whose_files_are_gone_is_refused(way: Quantization, tmp_path: Path) -> None:
    tiny_base("llama_gqa", **SIZES).save_pretrained(tmp_path)
    base = base_of(tmp_path, way)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model.safetensors of .*save it in safetensors"):
        CCMModel(base, ccm_config())


@ways("int8", "8bit")
def test_an_unconditional_lora_acts_on_a_quantized_base_too(folder: Path, way: Quantization) -> None:
    model = CCMModel(base_of(folder, way), ccm_config(lora=LoRASettings(r=4, dropout=0.0, conditional=False))).eval()
    before = parallel_logits(model, [Sample([], Step([5, 6, 7]))])[0]
    randomize_adapter(model, 1)
    assert (parallel_logits(model, [Sample([], Step([5, 6, 7]))])[0] - before).abs().max() > 0.01


@ways("int8")
def test_a_base_of_which_nothing_is_quantized_is_refused(way: Quantization, tmp_path: Path) -> None:
    tiny_base("gpt2").save_pretrained(tmp_path)  # its projections are no nn.Linear
    with pytest.raises(ConfigError, match=r"quantize=int8 does not change .*Try quantize=8bit"):
        base_of(tmp_path, way)


@ways("int8", "8bit")
def test_an_encoder_decoder_is_quantized_as_well(way: Quantization, tmp_path: Path) -> None:
    base = base_of(write_t5(tmp_path / "t5"), way)
    model = CCMEncoderDecoder(base, ccm_config(recurrent=False)).eval()
    assert is_quantized(base)
    assert model.base_id == fingerprint_base(base_of(tmp_path / "t5"))
    row, answer = ROWS[0], [7, 30, 12]
    sample = Sample(row.steps, Step([*row.query.ids, 7, 30], [*[IGNORE] * (len(row.query.ids) - 1), *answer]))
    with torch.no_grad():
        memory = model.empty_memory()
        for step in row.steps:
            memory = model.compress(memory, torch.tensor([step.ids]))
        online = model.read(memory, torch.tensor([row.query.ids]), torch.tensor([answer]))[0]
        parallel = model(build_encoder_layout([sample], model.config, model.rule, pad_id=0)).logits
    assert (online - parallel).abs().mean() < (1e-4 if way == "int8" else 0.1) * parallel.abs().mean()


class OtherWeight(nn.Parameter):
    """A weight as a quantizing library holds it."""


class OtherLinear(nn.Linear):
    """A linear layer of such a library."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.weight = OtherWeight(linear.weight.data, requires_grad=False)


def test_whatever_library_quantizes_a_linear_the_lora_on_it_is_conditional() -> None:
    base, stock = tiny_base(), tiny_base()
    for attention in attention_modules(base):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(attention, name, OtherLinear(getattr(attention, name)))
    assert is_quantized(base)
    inject_lora(base, ccm_config().lora)
    layer = attention_modules(base)[0].q_proj
    assert (type(layer), type(layer.base_layer)) == (CompLinear, OtherLinear)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(base(ids).logits, stock(ids).logits)


def with_stage1(folder: Path, place: Path) -> CCMModel:
    """A model on a stage-1 LoRA, saved."""
    settings = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    wrapped = get_peft_model(base_of(folder), LoraConfig(**settings))
    torch.manual_seed(3)
    tensors = {
        name.removeprefix("base_model.model.").replace(".default.", "."): 0.2 * torch.randn(parameter.shape)
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name
    }
    model = CCMModel(base_of(folder), ccm_config(), stage1=PlainLoRA(settings, tensors, None)).eval()
    randomize_adapter(model, 1)
    model.save_pretrained(place)
    return model


@ways("int8", "8bit", "4bit")
def test_a_stage_1_adapter_on_a_quantized_base_is_refused_with_the_way_out(
    folder: Path, way: Quantization, tmp_path: Path
) -> None:
    with_stage1(folder, tmp_path / "adapter")
    with pytest.raises(ConfigError, match="`ccm adapters merge`"):
        ccm.load(folder, tmp_path / "adapter", quantize=way, device="cpu")


def test_a_merged_adapter_computes_the_same_on_its_whole_base(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = with_stage1(folder, tmp_path / "adapter")
    saved = read_adapter(tmp_path / "adapter")
    unbound = replace(saved.config, base_fingerprint="", base_vocab_size=None)  # as some that are imported
    write_adapter(replace(saved, config=unbound), tmp_path / "adapter")
    with pytest.raises(SystemExit) as ended:
        app(["adapters", "merge", str(tmp_path / "adapter"), "--output", str(tmp_path / "out"), "--base", str(folder)])
    assert ended.value.code in (None, 0)
    assert f"ccm chat --adapter {tmp_path / 'out'}" in capsys.readouterr().out.replace("\n", " ")
    merged, _ = ccm.load(adapter=tmp_path / "out", device="cpu")
    assert read_adapter(tmp_path / "out").stage1 is None
    config = read_adapter(tmp_path / "out").config
    assert (config.base_fingerprint, config.base_vocab_size) == (merged.base_id, merged.vocab_size)
    assert_close(parallel_logits(merged, ROWS)[0], parallel_logits(model, ROWS)[0], depth=PRODUCTS)
    with pytest.raises(AdapterError, match="no stage-1 adapter"):
        fuse_adapter(tmp_path / "out", tmp_path / "again")
    with pytest.raises(AdapterError, match="already exists"):
        fuse_adapter(tmp_path / "adapter", tmp_path / "out", str(folder))


def test_a_merge_that_breaks_off_leaves_nothing_behind(folder: Path, tmp_path: Path, monkeypatch) -> None:
    with_stage1(folder, tmp_path / "adapter")
    with monkeypatch.context() as broken:
        broken.setattr("ccm.adapters.fusing.write_adapter", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fuse_adapter(tmp_path / "adapter", tmp_path / "out", str(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    blocked = tmp_path / "adapter" / CONFIG / "out"  # within a file
    with pytest.raises(AdapterError, match=f"{blocked} cannot be written: .+ Name another output"):
        fuse_adapter(tmp_path / "adapter", blocked, str(folder))
    fuse_adapter(tmp_path / "adapter", tmp_path / "out", str(folder))
    assert (tmp_path / "out" / CONFIG).is_file()


@ways("int8", "8bit", "4bit")
def test_a_merged_adapter_runs_quantized(folder: Path, way: Quantization, tmp_path: Path) -> None:
    with_stage1(folder, tmp_path / "adapter")
    fuse_adapter(tmp_path / "adapter", tmp_path / "out", str(folder))
    quantized, _ = ccm.load(adapter=tmp_path / "out", quantize=way, device="cpu")
    assert is_quantized(quantized.base)


def test_an_adapter_of_another_base_is_not_merged(folder: Path, tmp_path: Path) -> None:
    with_stage1(folder, tmp_path / "adapter")
    tiny_base("llama_gqa", seed=1, **SIZES).save_pretrained(tmp_path / "other")
    with pytest.raises(AdapterError, match="load it on the model it was trained on"):
        fuse_adapter(tmp_path / "adapter", tmp_path / "out", str(tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_an_unknown_way_and_an_absent_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="quantize is 'int3'; allowed: int8, 8bit, 4bit"):
        quantization_config("int3")
    for way, library in LIBRARIES.items():
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ConfigError, match=rf"quantize={way} needs {library}, .*'\.\[quant\]'.*install {library}`"):
            quantization_config(way)


@ways("int8")
def test_a_base_is_quantized_once(way: Quantization, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantize and quantization_config both"):
        load_base(folder, device="cpu", quantize=way, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    base_of(folder, way).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="are already quantized on disk; leave quantize=8bit out"):
        base_of(tmp_path, "8bit")


@ways("int8")
def test_the_built_in_model_still_remembers(way: Quantization) -> None:
    chat = ccm.Conversation(*ccm.load("builtin", quantize=way, device="cpu"))
    chat.answer("My name is Anna.")
    assert "Anna" in chat.answer("What is my name?")


@pytest.mark.parametrize(
    "command",
    [["chat"], ["demo"], ["stream", __file__], ["evaluate", "builtin"], ["evaluate", "custom", "--data", __file__]],
)
def test_every_command_that_loads_a_base_takes_quantize(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def note(*given: object, **more: object) -> int:
        """Takes what a command is called with: a model's options, a selection, or what holds one."""
        for one in given:
            held = getattr(one, "selection", one)
            table = held if isinstance(held, dict) else getattr(held, "__dict__", {})
            asked.extend([table["quantize"]] if "quantize" in table else [])
        return 0

    for place in ("chat.run", "demo.run", "stream.run", "evaluate.run_builtin", "evaluate.run_tasks"):
        monkeypatch.setattr(f"ccm.cli.commands.{place}", note)
    with pytest.raises(SystemExit):
        app([*command, "--quantize", "4bit"])
    assert asked == ["4bit"]
