"""The authors' adapters become ours: what is read, what is assumed, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import COMP, Malicious, theirs
from helpers import make_sample, online_logits, tiny_base

from ccm.adapters.importing import Choices, ImportedAdapter, read_theirs
from ccm.core.errors import AdapterError, ConfigError
from ccm.engine.adapter_files import write_adapter
from ccm.engine.decoder import CCMModel
from ccm.engine.lora import initial_embeddings

SAMPLE = make_sample([3, 5], 4)


def loaded(found: ImportedAdapter, folder: Path) -> CCMModel:
    """What an import gives on the tiny Llama."""
    write_adapter(found.adapter, folder)
    return CCMModel.from_pretrained(folder, tiny_base())


def test_what_no_one_says_is_assumed_and_told(tmp_path: Path) -> None:
    found = read_theirs(theirs(tmp_path / "theirs", 3))
    config = found.adapter.config
    assert (config.rule, config.n_tok, config.recurrent, config.sink, config.base_fingerprint) == (
        "concat",
        3,
        True,
        False,
        "",
    )
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (2, 8, 0.05)
    assert config.turns.separator == "\nA:"
    for word in ("base", "unified", "concat", "recurrent", "sink", "stage-1"):
        assert any(word in note for note in found.assumed)


def test_a_folder_name_of_theirs_leaves_nothing_to_assume_but_the_base(tmp_path: Path) -> None:
    theirs(tmp_path / "pretrain/llama-7b-no", 0)
    found = read_theirs(theirs(tmp_path / "pretrain/finetune/llama-7b-no-online-merge_recur-ntok2-sink_pajama", 4))
    config = found.adapter.config
    assert (config.rule, config.n_tok, config.recurrent, config.sink) == ("merge", 2, True, True)
    assert (config.base_model, config.turns.separator) == ("huggyllama/llama-7b", "\n")
    assert found.adapter.stage1 is not None
    assert [*map(str, found.assumed)] == [
        "The base is huggyllama/llama-7b. The adapter was not compared with it; give base to do so."
    ]


def test_options_say_what_a_name_does_not(tmp_path: Path) -> None:
    choices = Choices(rule="merge", recurrent=False, sink=True, trained_on="metaicl")
    config = read_theirs(theirs(tmp_path / "theirs", 4), choices).adapter.config
    assert (config.rule, config.n_tok, config.recurrent, config.sink) == ("merge", 2, False, True)
    assert config.turns.separator == "\nInput:"


def test_sum_rows_that_were_never_trained_show_a_merge_adapter(tmp_path: Path) -> None:
    base = tiny_base()
    base.save_pretrained(tmp_path / "base")

    def untrained(tensors: dict) -> None:
        tensors[COMP][2:] = initial_embeddings(base, 4)[2:]

    found = read_theirs(theirs(tmp_path / "sums", 4, change=untrained, dtype=torch.float16), Choices(tmp_path / "base"))
    assert (found.adapter.config.rule, found.adapter.config.n_tok) == ("merge", 2)
    assert any("never trained" in note for note in found.assumed)
    doubtful = read_theirs(tmp_path / "sums", Choices(tmp_path / "base", rule="concat"))
    assert doubtful.adapter.config.n_tok == 4
    assert any("never trained, like SUM rows, so the rule may have to be merge." in note for note in doubtful.assumed)
    other = read_theirs(theirs(tmp_path / "none", 4), Choices(tmp_path / "base"))
    assert (other.adapter.config.rule, other.adapter.config.n_tok) == ("concat", 4)


def test_older_names_half_precision_and_safetensors_give_the_same_model(tmp_path: Path) -> None:
    def older(tensors: dict) -> None:
        tensors[COMP.replace("comp", "gist")] = tensors.pop(COMP)
        for name in [name for name in tensors if "lora_A" in name]:
            tensors[name.replace("lora_A", "lora_A.default")] = tensors.pop(name)

    new = loaded(read_theirs(theirs(tmp_path / "new", dtype=torch.float16)), tmp_path / "a")
    old = loaded(read_theirs(theirs(tmp_path / "old", dtype=torch.float16, change=older, safe=True)), tmp_path / "b")
    assert torch.equal(online_logits(new, SAMPLE), online_logits(old, SAMPLE))
    assert {tensor.dtype for tensor in new.adapter_tensors().values()} == {torch.float32}


def test_rows_of_sum_tokens_change_nothing(tmp_path: Path) -> None:
    def other(tensors: dict) -> None:
        tensors[COMP][2:] += 1

    models = [
        loaded(read_theirs(theirs(tmp_path / name, 4, change=change), Choices(rule="merge")), tmp_path / f"our-{name}")
        for name, change in (("a", None), ("b", other))
    ]
    assert torch.equal(online_logits(models[0], SAMPLE), online_logits(models[1], SAMPLE))


def test_a_base_binds_the_adapter_to_it(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "base")
    tiny_base(seed=7).save_pretrained(tmp_path / "another")
    found = read_theirs(theirs(tmp_path / "theirs"), Choices(tmp_path / "base"))
    assert found.adapter.config.base_model == str(tmp_path / "base")
    write_adapter(found.adapter, tmp_path / "ours")
    assert CCMModel.from_pretrained(tmp_path / "ours").base_id == found.adapter.config.base_fingerprint
    with pytest.raises(AdapterError, match="fingerprint"):
        CCMModel.from_pretrained(tmp_path / "ours", tmp_path / "another")


def test_a_stage_1_adapter_is_the_merged_base_with_full_context(tmp_path: Path) -> None:
    found = read_theirs(theirs(tmp_path / "llama-7b-no", 0))
    model = loaded(found, tmp_path / "ours")
    plain = CCMModel(tiny_base(), found.adapter.config).eval()
    assert model.config.rule == "full"
    assert not torch.allclose(online_logits(model, SAMPLE), online_logits(plain, SAMPLE), atol=1e-2)


def test_the_stage_1_adapter_under_it_has_to_be_there(tmp_path: Path) -> None:
    folder = theirs(tmp_path / "unified/finetune/llama-7b-no-online-concat_recur-ntok2")
    with pytest.raises(AdapterError, match=r"llama-7b-no, which is not in .*unified; give it with base_adapter=DIR"):
        read_theirs(folder)
    assert read_theirs(folder, Choices(base_adapter="none")).adapter.stage1 is None
    given = theirs(tmp_path / "elsewhere", 0)
    assert read_theirs(folder, Choices(base_adapter=given)).adapter.stage1 is not None
    with pytest.raises(AdapterError, match="not a stage-1 adapter"):
        read_theirs(folder, Choices(base_adapter=folder))


LAYER = "base_model.model.model.layers.1.self_attn"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(2)}), r"no LoRA: \['lm_head.weight'\]"),
        (
            lambda t: t.pop(f"{LAYER}.k_proj.lora_B.weight"),
            r"missing \['model.layers.1.self_attn.k_proj.lora_B.weight'\]",
        ),
        (lambda t: [t.pop(n) for n in [*t] if "layers.1." in n], r"missing \['model.layers.1.self_attn.k_proj"),
        (
            lambda t: t.update({f"{LAYER}.q.lora_A.weight": torch.ones(2, 2)}),
            r"unknown \['model.layers.1.self_attn.q.lora_A",
        ),
        (lambda t: t.update({f"{LAYER}.q_proj.lora_A.weight": torch.ones(5, 32)}), r"rank 5, but .* r = 2"),
        (
            lambda t: t.update({f"{LAYER}.q_proj.lora_A.weight": torch.ones(2, 32).int()}),
            r"torch.int32.*allowed: float32",
        ),
        (lambda t: t.update({COMP.replace("comp", "gist"): t[COMP]}), "several names"),
        (lambda t: t.update({COMP: torch.ones(2)}), r"not matrices: \['comp_embeddings'\]"),
        (
            lambda t: t.update({f"{LAYER}.q_proj.lora_B.weight": torch.ones(2)}),
            "not matrices: .*layers.1.*q_proj.lora_B",
        ),
    ],
)
def test_tensors_that_are_not_what_they_should_be_are_named(tmp_path: Path, change: Callable, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        read_theirs(theirs(tmp_path / "theirs", change=change))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 64, "num_attention_heads": 8, "num_key_value_heads": 8}, "hidden size: 32, the model's: 64"),
        ({"num_hidden_layers": 5}, "layers: 3, the model's: 5"),
    ],
)
def test_a_base_of_other_sizes_is_refused_with_both(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    tiny_base(**sizes).save_pretrained(tmp_path / "base")
    with pytest.raises(AdapterError, match=message):
        read_theirs(theirs(tmp_path / "theirs"), Choices(tmp_path / "base"))
    write_adapter(read_theirs(tmp_path / "theirs").adapter, tmp_path / "ours")
    with pytest.raises(AdapterError, match=message):
        CCMModel.from_pretrained(tmp_path / "ours", tmp_path / "base")


def test_other_projections_are_refused_with_both(tmp_path: Path) -> None:
    tiny_base().save_pretrained(tmp_path / "base")

    def fewer(tensors: dict) -> None:
        for name in [name for name in tensors if "k_proj" in name or "o_proj" in name]:
            del tensors[name]

    folder = theirs(tmp_path / "theirs", change=fewer, target_modules=["q_proj", "v_proj"])
    with pytest.raises(AdapterError, match="projections: q_proj, v_proj, the model's: k_proj, o_proj, q_proj, v_proj"):
        read_theirs(folder, Choices(tmp_path / "base"))


@pytest.mark.parametrize(
    ("name", "rows", "choices", "message"),
    [
        ("llama-7b-online-concat_recur-ntok4", 2, {}, "2 rows .* N = 4"),
        ("llama-7b-online-merge_recur-ntok2", 8, {}, "8 rows .* N = 2"),
        ("llama-7b-online-concat_recur-ntok2", 2, {"rule": "merge"}, "says rule 'concat', but 'merge'"),
        ("llama-7b-online-concat_recur-ntok2", 2, {"sink": True}, "says sink False, but True"),
        (
            "llama-7b-online-concat_recur-ntok2",
            2,
            {"base": "mistral-7b"},
            "huggyllama/llama-7b, but the base given is mistralai",
        ),
        ("llama-7b-no", 2, {}, "name of a stage-1 adapter, but holds 2 rows"),
        ("llama-7b-online-gist", 0, {}, "name of a compression adapter, but holds no COMP"),
        ("mine", 3, {"rule": "merge"}, "3 rows"),
        ("mine", 0, {"rule": "merge", "sink": True}, "stage-1 adapter; leave rule, sink out"),
        ("mine", 2, {"rule": "ema"}, "no adapters for the rule 'ema'"),
    ],
)
def test_what_contradicts_itself_is_refused(
    tmp_path: Path, name: str, rows: int, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        read_theirs(theirs(tmp_path / "unified" / name, rows), Choices(**choices))


def test_an_unknown_data_set_or_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="There is no folder .*nowhere"):
        read_theirs(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no data set of the authors' adapters 'wiki'"):
        read_theirs(theirs(tmp_path / "theirs"), Choices(trained_on="wiki"))


def test_more_than_a_plain_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="use_dora"):
        read_theirs(theirs(tmp_path / "theirs", use_dora=True))
    with pytest.raises(AdapterError, match="target_modules 'q_proj'; it must be a list"):
        read_theirs(theirs(tmp_path / "pattern", target_modules="q_proj"))


@pytest.mark.parametrize("kept", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("safe", [True, False])
def test_a_half_downloaded_adapter_is_detected(tmp_path: Path, kept: float, safe: bool) -> None:
    folder = theirs(tmp_path / "theirs", safe=safe)
    path = folder / ("model.safetensors" if safe else "pytorch_model.bin")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(AdapterError, match="whole"):
        read_theirs(folder)


def test_weights_that_have_not_arrived_are_named_with_their_part(tmp_path: Path) -> None:
    folder = theirs(tmp_path / "theirs")
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model.bin1a2b.part")
    with pytest.raises(AdapterError, match=r"did not arrive whole: \['pytorch_model.bin1a2b.part'\]"):
        read_theirs(folder)


def test_a_poisoned_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    folder, mark = theirs(tmp_path / "theirs"), tmp_path / "executed"
    torch.save({COMP: torch.ones(2, 32), "b": Malicious(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="holds more than tensors"):
        read_theirs(folder)
    assert not mark.exists()
