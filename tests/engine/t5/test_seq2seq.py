"""An encoder-decoder with a memory: parallel equals online, the base without COMP tokens stays what it is, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import EOS, PAD, VOCAB, assert_close, ccm_config, make_sample, pad_left, randomize_adapter, tiny_model
from tiny_t5 import tiny_t5, write_t5
from torch import Tensor

import ccm
from ccm.cli.commands import demo
from ccm.core.config import CCMConfig
from ccm.core.errors import ConfigError, InputError, UnsupportedModelError
from ccm.data.settings import DataSettings
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.t5.encoder import EncoderPass, build_encoder_layout
from ccm.engine.t5.memory import EncoderMemory
from ccm.engine.t5.seq2seq import CCMEncoderDecoder
from ccm.evaluation.baselines import pool
from ccm.evaluation.scoring import Scorer
from ccm.training.loop import train
from ccm.training.recipe import Recipe

RULES = ("concat", "merge", "ema", "gist", "pos_control", "full", "none")
ANSWER = [7, 30, 12]


def t5(rule: str = "concat", *, attn: str = "sdpa", **settings: Any) -> CCMEncoderDecoder:
    """A model whose adapter matters."""
    model = CCMEncoderDecoder(tiny_t5(attn), ccm_config(rule, **{"recurrent": False, **settings})).eval()
    randomize_adapter(model, 1)
    return model


def with_answer(sample: Sample) -> Sample:
    """The same, and an answer to it that a decoder is to say."""
    ids = [*sample.query.ids, *ANSWER[:-1]]
    return Sample(sample.steps, Step(ids, [*[IGNORE] * (len(sample.query.ids) - 1), *ANSWER]))


@torch.no_grad()
def parallel(model: CCMEncoderDecoder, rows: list[Sample]) -> Tensor:
    """(B, A, V) logits of the answers, from one pass over the batch."""
    layout = build_encoder_layout([with_answer(row) for row in rows], model.config, model.rule, pad_id=PAD)
    return model(layout).logits.unflatten(0, (len(rows), len(ANSWER)))


@torch.no_grad()
def online(model: CCMEncoderDecoder, rows: list[Sample]) -> tuple[Tensor, EncoderMemory]:
    """The same by a memory that is built step by step, of rows with equally many steps."""
    memory = model.empty_memory(len(rows))
    for steps in zip(*(row.steps for row in rows), strict=True):
        memory = model.compress(memory, *pad_left([step.ids for step in steps]))
    ids, mask = pad_left([row.query.ids for row in rows])
    return model.read(memory, ids, torch.tensor([ANSWER] * len(rows)), mask), memory


@pytest.mark.covers("rule n_tok", "attn")
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("n_tok", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_the_parallel_pass_equals_the_online_steps(rule: str, n_tok: int, attn: str) -> None:
    model = t5(rule, n_tok=n_tok, attn=attn)
    rows = [make_sample([5, 2, 7], 4, seed=3), make_sample([1, 6, 3], 2, seed=4)]
    step_by_step, _ = online(model, rows)
    assert_close(step_by_step, parallel(model, rows))
    for i, row in enumerate(rows):  # a batch changes nothing
        assert_close(online(model, [row])[0][0], step_by_step[i])


def test_rows_of_a_batch_may_have_different_numbers_of_steps() -> None:
    for rule in RULES:
        model = t5(rule)
        rows = [make_sample([5, 2, 7], 4, seed=3), make_sample([], 9, seed=4), make_sample([3], 2, seed=5)]
        for i, row in enumerate(rows):
            assert_close(parallel(model, rows)[i], parallel(model, [row])[0])


def test_the_adapter_and_the_context_matter_and_the_base_is_untouched_where_no_comp_token_is() -> None:
    row = make_sample([5, 2, 7], 4, seed=3)
    stock = tiny_t5()
    ids = torch.tensor([[*[i for step in row.steps for i in step.ids], *row.query.ids]])
    start = torch.tensor([[stock.config.decoder_start_token_id, *ANSWER[:-1]]])
    with torch.no_grad():
        expected = stock(input_ids=ids, decoder_input_ids=start).logits
    assert_close(parallel(t5("full"), [row]), expected)
    others = {rule: parallel(t5(rule), [row]) for rule in RULES if rule != "full"}
    for rule, logits in others.items():
        assert (logits - expected).abs().max() > 0.01, rule
    assert (others["merge"] - others["ema"]).abs().max() > 1e-3


def test_the_memory_holds_what_the_rule_says_and_counts_its_bytes() -> None:
    rows = [make_sample([5, 2, 7], 4, seed=3)]
    for rule, entries in {"concat": 6, "merge": 6, "gist": 14, "full": 14, "none": 0}.items():
        _, memory = online(t5(rule), rows)
        assert (rule, memory.entries, memory.tokens) == (rule, (entries,), (14,))
    model = t5("gist")
    closed = model.close(online(model, rows)[1])
    assert closed.entries == (2,)
    with pytest.raises(InputError, match="This memory was closed; its context takes no more steps"):
        model.compress(closed, torch.tensor([[5]]))
    assert closed.nbytes == 2 * 8 * (3 * 2 * 4 * 8 + 32) == closed.entry_nbytes * 2


def test_generation_says_the_likeliest_tokens_after_the_memory() -> None:
    model = t5("merge")
    rows = [make_sample([5, 2], 4, seed=3), make_sample([4, 6], 3, seed=8)]
    _, memory = online(model, rows)
    ids, mask = pad_left([row.query.ids for row in rows])
    said = model.generate(memory, ids, mask, max_new_tokens=4, do_sample=False)
    for i in range(4):
        logits = model.read(memory, ids, said, mask)[:, i]
        assert logits.argmax(-1).tolist() == said[:, i].tolist()


def test_the_mask_agrees_with_a_slow_oracle() -> None:
    for rule in ("concat", "merge", "gist", "pos_control"):
        model = t5(rule)
        layout = build_encoder_layout([make_sample([3, 2], 2, seed=1)], model.config, model.rule, PAD)
        kinds = [
            *[("text", 0)] * 3, *([("comp", 0)] * 2 if rule in ("concat", "merge") else []),
            *[("text", 1)] * 2, *([("comp", 1)] * 2),
            *([("sum", 2)] * 2 if rule == "merge" else []), *[("query", 3)] * 2,
        ]  # fmt: skip
        mask, cross = model.pass_of(layout).mask()[0, 0], model.pass_of(layout).cross[0]
        assert len(kinds) == len(mask)
        for q, (reader, mine) in enumerate(kinds):
            for k, (read, theirs) in enumerate(kinds):
                sees = mine == theirs
                if rule == "gist":
                    sees = reader == read == "query" or (reader != "query" and read != "query") or read == "comp"
                elif rule == "pos_control":
                    sees = True
                elif rule == "concat":
                    sees |= reader == "query" and read == "comp"
                else:
                    sees |= (reader, read) in {("query", "sum"), ("sum", "comp")}
                assert bool(mask[q, k]) == sees, (rule, q, k)
        reads = {"concat": {"query", "comp"}, "gist": {"query", "comp"}, "merge": {"query", "sum"}}
        assert cross.tolist() == [kind in reads.get(rule, {"text", "comp", "query"}) for kind, _ in kinds]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "concat", "recurrent": True}, "recurrent is true: an encoder reads every step by itself"),
        ({"rule": "gate"}, "rule is 'gate'"),
        ({"rule": "concat", "sink": True}, "sink is true"),
        ({"rule": "concat", "embeddings": "table"}, "embeddings is 'table'"),
    ],
)
def test_what_an_encoder_cannot_do_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CCMEncoderDecoder(tiny_t5(), CCMConfig(**{"recurrent": False, **settings}))


def test_each_class_refuses_the_other_kind_of_model() -> None:
    with pytest.raises(UnsupportedModelError, match="T5ForConditionalGeneration is an encoder-decoder"):
        CCMModel(tiny_t5(), CCMConfig())
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM is a decoder alone"):
        CCMEncoderDecoder(tiny_model().base, CCMConfig(recurrent=False))


def test_bad_input_is_refused_by_name() -> None:
    model = t5()
    memory = model.empty_memory()
    with pytest.raises(InputError, match="A step has no tokens"):
        model.compress(memory, torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(InputError, match="must be \\(1, T\\)"):
        model.compress(memory, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(InputError, match=f"0 to {VOCAB - 1}"):
        model.read(memory, torch.tensor([[VOCAB]]), torch.tensor([[1]]))
    with pytest.raises(InputError, match="made with another model"):
        t5("merge").compress(memory, torch.tensor([[5]]))
    with pytest.raises(InputError, match="No row of this batch has an answer"):
        model(build_encoder_layout([make_sample([3], 4)], model.config, model.rule, PAD))
    taught = Sample([Step([5, 6], [6, IGNORE])], Step([7, 8], [8, EOS]))
    with pytest.raises(InputError, match="use the objective 'last'"):
        build_encoder_layout([taught], model.config, model.rule, PAD)


@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_the_lora_is_on_the_encoder_alone_and_all_that_is_trained_has_a_gradient(rule: str) -> None:
    model = t5(rule).train()
    row = with_answer(make_sample([5, 2, 7], 4, seed=3))
    model(build_encoder_layout([row], model.config, model.rule, PAD)).loss.backward()
    tensors = model.adapter_tensors()
    assert all(name.startswith(("encoder.", "comp_embeddings")) for name in tensors)
    assert len(tensors) == 3 * 4 * 2 + 1
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in tensors.values())


def test_gradients_are_the_same_with_checkpointing() -> None:
    row = with_answer(make_sample([5, 2, 7], 4, seed=3))
    found = []
    for checkpointing in (False, True):
        model = t5("merge")
        if checkpointing:
            model.base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.train()
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        model(build_encoder_layout([row], model.config, model.rule, PAD)).loss.backward()
        found.append({name: tensor.grad.clone() for name, tensor in model.adapter_tensors().items()})
    for name, gradient in found[0].items():
        assert_close(found[1][name], gradient)


def test_it_is_trained_saved_and_loaded_in_one_line(tmp_path: Path) -> None:
    base = write_t5(tmp_path / "base")
    line = {"steps": ["anna likes tea", "tom likes rain"], "query": "who likes tea", "answer": "anna"}
    data = tmp_path / "tasks.jsonl"
    data.write_text((json.dumps(line) + "\n") * 12, encoding="utf-8")
    recipe = Recipe(
        model=str(base),
        output_dir=str(tmp_path / "adapter"),
        data=DataSettings(path=str(data), eval_samples=2, random_steps=False),
        adapter=ccm_config("concat", recurrent=False),
        max_steps=8,
        batch_size=4,
        lr=1e-2,
        device="cpu",
        log_every=1,
        tensorboard=False,
    )
    losses: list[float] = []
    train(recipe, report=lambda report: losses.extend(report.losses.values()))
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(ConfigError, match="flex=true works for decoders only"):
        train(replace(recipe, flex=True, output_dir=str(tmp_path / "other")))
    model, tokenizer = ccm.load(adapter=tmp_path / "adapter", device="cpu")
    assert isinstance(model, CCMEncoderDecoder)
    ids = torch.tensor([tokenizer.encode("anna likes tea")])
    memory = model.compress(model.empty_memory(), ids)
    assert memory.entries == (2,)
    full, _ = ccm.load(base, rule="full", device="cpu")
    assert isinstance(full, CCMEncoderDecoder)
    with pytest.raises(UnsupportedModelError, match="a conversation needs a decoder alone"):
        ccm.Conversation(full, tokenizer)
    with pytest.raises(UnsupportedModelError, match="the demo needs a decoder alone"):
        demo.run({"model": base, "rule": "full", "device": "cpu"}, None)
    with pytest.raises(UnsupportedModelError, match="'pool' does, needs a decoder alone"):
        Scorer(full, fold=pool)


def test_sum_tokens_have_embeddings_of_their_own_under_every_n() -> None:
    model = t5("merge", n_tok=1, min_n_tok=1, max_n_tok=3)
    layout = build_encoder_layout([make_sample([5, 2], 4)], model.config, model.rule, PAD)
    assert len(model.comp_embeddings.weight) == 6
    assert {*layout.slots[layout.comps].tolist()} == {0}
    assert {*layout.slots[layout.sums].tolist()} == {3}


def test_a_pass_that_mixes_nothing_has_no_sum_tokens() -> None:
    model = t5("merge")
    layout = build_encoder_layout([make_sample([], 3, seed=1)], model.config, model.rule, PAD)
    assert not layout.sums.any()
    assert isinstance(model.pass_of(layout), EncoderPass)
    assert_close(parallel(model, [make_sample([], 3, seed=1)]), parallel(t5("none"), [make_sample([], 3, seed=1)]))
