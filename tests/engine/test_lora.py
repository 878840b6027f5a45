"""Seam 2: an update at COMP tokens alone, on every projection, in float32, that nothing merges by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import (
    KERNELS,
    VOCAB,
    assert_close,
    ccm_config,
    compress_all,
    layout_of,
    make_sample,
    parallel_logits,
    randomize_adapter,
    tiny_base,
    tiny_model,
)
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ccm.core.config import LoRASettings
from ccm.core.errors import AdapterError, ConfigError, UnsupportedModelError
from ccm.engine import families as base
from ccm.engine import lora as adapter
from ccm.engine.adapter_files import read_stage1
from ccm.engine.decoder import CCMModel
from ccm.engine.families import attention_modules, projection_paths
from ccm.engine.layout import Sample, Step
from ccm.engine.lora import CompLinear, PlainLoRA, initial_embeddings, inject_lora, merge_stage1

TEXT = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
TRAINED = [
    Sample([Step([3, 4, 5]), Step([6])], Step([7, 8], [8, 2])),
    Sample([Step([9, 9])], Step([10, 11, 12], [11, 12, 2])),
]
UNCONDITIONAL = LoRASettings(r=4, alpha=16, dropout=0.0, conditional=False)


@pytest.mark.covers("family", "attn")
@pytest.mark.parametrize(("family", "attn"), KERNELS)
def test_without_comp_tokens_the_model_is_the_stock_base_bit_for_bit(family: str, attn: str) -> None:
    model, stock = tiny_model(family=family, attn=attn), tiny_base(family, attn=attn)
    with torch.no_grad():
        expected = stock(TEXT).logits
        assert torch.equal(model.base(TEXT).logits, expected)
        assert torch.equal(model.read(model.empty_memory(), TEXT), expected)
        assert_close(parallel_logits(model, [Sample([], Step(TEXT[0].tolist()))])[0], expected[0])
        new = model.generate(model.empty_memory(), TEXT, max_new_tokens=3, do_sample=False)
        assert new.tolist() == stock.generate(TEXT, max_new_tokens=3, do_sample=False)[:, 7:].tolist()


def test_an_unconditional_lora_changes_text_too() -> None:
    model, stock = tiny_model(lora=UNCONDITIONAL), tiny_base()
    with torch.no_grad():
        assert (model.base(TEXT).logits - stock(TEXT).logits).abs().max() > 0.01


def test_the_update_reaches_comp_rows_and_no_others() -> None:
    model = tiny_model()
    linear = next(m for m in model.base.modules() if type(m) is CompLinear)
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    adapter._active.comp = adapter.CompRows(torch.tensor([1, 7]))
    try:
        difference = (linear(x) - linear.base_layer(x)).flatten(0, 1)
    finally:
        adapter._active.comp = None
    a, b = linear.lora_A["default"].weight, linear.lora_B["default"].weight
    expected = torch.zeros(10, 32, dtype=torch.float64)
    expected[[1, 7]] = (x.flatten(0, 1)[[1, 7]] @ a.T.double() @ b.T.double()) * 4.0
    assert_close(difference, expected, depth=1)


def test_a_projection_that_the_model_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.PROJECTIONS, "llama", ("q_proj", "k_proj", "v_proj", "out_proj"))
    with pytest.raises(UnsupportedModelError, match=r"3 layers, but 0 attention modules.*out_proj"):
        CCMModel(tiny_base(), ccm_config())


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("name", ["q_proj", "o_proj"])
def test_a_projection_that_does_not_become_conditional_is_refused(name: str, layer: int) -> None:
    base = tiny_base()
    setattr(base.model.layers[layer].self_attn, name, nn.Embedding(32, 32))
    with pytest.raises(UnsupportedModelError, match=f"{name} of layer {layer}.*CompLinear"):
        inject_lora(base, ccm_config().lora)


def test_a_second_attention_module_in_a_layer_is_refused() -> None:
    base = tiny_base()
    base.model.layers[1].cross_attn = base.model.layers[0].self_attn.__class__(base.config, 1)
    with pytest.raises(UnsupportedModelError, match="3 layers, but 4 attention modules"):
        attention_modules(base)


@pytest.mark.covers("family", "rule")
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_neox", "mixtral", "gpt2", "llama4"])
@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_gradients_are_the_same_with_gradient_checkpointing(rule: str, family: str) -> None:
    def gradients(checkpointing: bool) -> tuple[dict[str, Tensor], int]:
        model, calls = tiny_model(rule, family=family).train(), []
        if checkpointing:
            model.base.gradient_checkpointing_enable()
        attention_modules(model.base)[0].register_forward_pre_hook(lambda *_: calls.append(1))
        model(layout_of(model, TRAINED)).loss.backward()
        return {name: tensor.grad for name, tensor in model.adapter_tensors().items()}, len(calls)

    plain, once = gradients(False)
    again, twice = gradients(True)
    assert (once, twice) == (1, 2)
    for name, gradient in plain.items():
        assert_close(again[name], gradient)
    assert plain["comp_embeddings.weight"].abs().max() > 1e-4


def test_interleaved_passes_keep_their_own_rows_under_gradient_checkpointing() -> None:
    """The backward of the first pass recomputes after the second pass has announced other rows."""
    model = tiny_model("merge").train()
    model.base.gradient_checkpointing_enable()
    layouts = [layout_of(model, TRAINED), layout_of(model, [make_sample([7, 7], 5), *TRAINED[:1]])]

    def gradients() -> list[Tensor]:
        taken = [tensor.grad.clone() for tensor in model.adapter_tensors().values()]
        model.zero_grad()
        return taken

    for layout in layouts:
        model(layout).loss.backward()
    expected = gradients()
    sum(model(layout).loss for layout in layouts).backward()
    for one, other in zip(gradients(), expected, strict=True):
        assert_close(one, other)


@pytest.mark.covers("rule", "dtype attn")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_a_half_precision_base_keeps_the_adapter_in_float32(rule: str, dtype: torch.dtype, attn: str) -> None:
    model = tiny_model(rule, base=tiny_base(dtype=dtype, attn=attn), sink=True)
    assert {tensor.dtype for tensor in model.adapter_tensors().values()} == {torch.float32}
    rows = [make_sample([1], 1), make_sample([7, 7], 5)]
    logits = parallel_logits(model, rows)
    exact = parallel_logits(tiny_model(rule, attn=attn, sink=True), rows)
    for i, row in enumerate(rows):
        assert logits[i].isfinite().all()
        memory = compress_all(model, row)
        assert {x.dtype for x in (*memory.keys, *memory.values)} == {dtype}
        online = model.read(memory, torch.tensor([row.query.ids]))[0]
        assert (online - logits[i]).abs().mean() < 0.1 * exact[i].abs().mean()
        assert (exact[i] - logits[i]).abs().mean() < 0.1 * exact[i].abs().mean()
    model(layout_of(model, TRAINED)).loss.backward()
    for tensor in model.adapter_tensors().values():
        assert tensor.grad is None or (tensor.grad.dtype == torch.float32 and tensor.grad.isfinite().all())


@pytest.mark.parametrize("tied", [False, True])
def test_a_comp_table_trains_its_own_rows_only(tied: bool) -> None:
    base = tiny_base(tie_word_embeddings=tied)
    model = CCMModel(base, ccm_config(embeddings="table", n_tok=3))
    randomize_adapter(model, 1)
    table = base.get_input_embeddings().weight
    assert table.shape[0] == VOCAB + 3
    before = table.detach().clone()
    output = model(layout_of(model, TRAINED))
    assert output.logits.shape[-1] == VOCAB
    output.loss.backward()
    assert not table.grad[:VOCAB].any()
    assert table.grad[VOCAB:].abs().max() > 0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.SGD(trained, lr=0.1).step()
    assert torch.equal(table[:VOCAB], before[:VOCAB])
    assert (table[VOCAB:] != before[VOCAB:]).any()


def test_a_comp_table_computes_the_same_as_separate_rows() -> None:
    separate, table = tiny_model(n_tok=3), tiny_model(n_tok=3, embeddings="table")
    with torch.no_grad():
        for name, tensor in separate.adapter_tensors().items():
            table.adapter_tensors()[name].copy_(tensor)
    for one, other in zip(parallel_logits(separate, TRAINED), parallel_logits(table, TRAINED), strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_comp_embeddings_begin_as_means_of_the_bases_outputs(family: str) -> None:
    base = tiny_base(family)
    outputs = base.get_input_embeddings()(torch.arange(VOCAB)).detach()
    rows = initial_embeddings(base, 3)
    for k in range(3):
        assert_close(rows[-k - 1], outputs[k::3].mean(0).float(), depth=1)
    assert_close(CCMModel(base, ccm_config(n_tok=3)).comp_embeddings.weight.detach(), rows, depth=1)


def test_a_conditional_lora_refuses_to_be_merged() -> None:
    model = tiny_model()
    linear = next(m for m in model.base.modules() if type(m) is CompLinear)
    before = linear.base_layer.weight.clone()
    with pytest.raises(ConfigError, match="cannot be merged"):
        linear.merge()
    with pytest.raises(ConfigError, match="cannot be merged"):
        linear.merge(safe_merge=True, adapter_names=["default"])
    assert torch.equal(linear.base_layer.weight, before)


def test_backward_works_without_any_comp_token_in_the_batch() -> None:
    """Distributed training waits for a gradient of every parameter: they are there, and zero."""
    model = tiny_model()
    model(layout_of(model, [Sample([], Step([5, 6, 7], [6, 7, 8]))])).loss.backward()
    for tensor in model.adapter_tensors().values():
        assert tensor.grad is not None
        assert not tensor.grad.any()


@pytest.mark.parametrize("training", [True, False])
def test_dropout_acts_in_training_only(training: bool) -> None:
    model = tiny_model(lora=LoRASettings(r=4, alpha=16, dropout=0.5)).train(training)
    layout = layout_of(model, TRAINED)
    assert bool(model(layout).loss == model(layout).loss) is not training


def plain_lora(seed: int = 3) -> tuple[PlainLoRA, nn.Module]:
    """A plain PEFT LoRA of the tiny base, and the model it makes."""
    wrapped = get_peft_model(tiny_base(), LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
            tensors[name.removeprefix("base_model.model.").replace(".default.", ".")] = parameter.data
    return PlainLoRA({"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}, tensors, None), wrapped.eval()


def test_a_stage_1_adapter_acts_on_all_tokens_and_enters_the_fingerprint() -> None:
    lora, wrapped = plain_lora()
    model = CCMModel(tiny_base(), ccm_config(), stage1=lora).eval()
    with torch.no_grad():
        assert_close(model.read(model.empty_memory(), TEXT), wrapped(TEXT).logits)
        assert (wrapped(TEXT).logits - tiny_base()(TEXT).logits).abs().max() > 0.01
    other = CCMModel(tiny_base(), ccm_config(), stage1=plain_lora(seed=4)[0])
    assert len({model.base_id, other.base_id, CCMModel(tiny_base(), ccm_config()).base_id}) == 3


def test_a_stage_1_adapter_of_a_transposed_layer_is_merged_as_it_was_saved(tmp_path: Path) -> None:
    base = tiny_base("gpt2")
    targets = projection_paths(base)
    assert not any("mlp" in target for target in targets)
    wrapped = get_peft_model(base, LoraConfig(target_modules=targets, fan_in_fan_out=True, init_lora_weights=False))
    wrapped.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = wrapped.eval()(TEXT).logits
        assert (expected - tiny_base("gpt2")(TEXT).logits).abs().max() > 0.01
        assert_close(merge_stage1(tiny_base("gpt2"), read_stage1(tmp_path))(TEXT).logits, expected)


def test_a_stage_1_adapter_with_tensors_that_have_no_place_is_refused() -> None:
    lora, _ = plain_lora()
    extra = PlainLoRA(lora.settings, {**lora.tensors, "model.layers.9.self_attn.q_proj.lora_A.weight": TEXT}, None)
    with pytest.raises(AdapterError, match=r"does not fit.*missing \[\], unknown \['.*layers.9.self_attn.q_proj"):
        merge_stage1(tiny_base(), extra)


def test_a_stage_1_adapter_that_lacks_a_tensor_is_refused() -> None:
    """PEFT would leave a random one in its place."""
    lora, _ = plain_lora()
    lora.tensors.pop("model.layers.1.self_attn.v_proj.lora_A.weight")
    with pytest.raises(AdapterError, match=r"missing \['.*layers.1.self_attn.v_proj.lora_A.default.weight'\]"):
        merge_stage1(tiny_base(), lora)
