"""The central identity: a parallel pass equals the online recursion. And all else that the model promises."""

from __future__ import annotations

import threading

import pytest
import torch
from helpers import (
    COMPRESSING,
    PAD,
    POSITIONS,
    RULE_NAMES,
    VOCAB,
    assert_close,
    compress_all,
    compress_batch,
    greedy,
    greedy_by_parallel,
    layout_of,
    make_sample,
    online_logits,
    pad_left,
    parallel_logits,
    samples,
    tiny_base,
    tiny_model,
)
from hypothesis import given
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig

from ccm.core.config import LoRASettings
from ccm.core.errors import ConfigError, InputError
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import IGNORE, Sample, Step
from ccm.engine.memory import Memory

ROWS = [make_sample([3, 5], 4, seed=1), make_sample([6, 1], 2, seed=2), make_sample([2, 7], 5, seed=3)]


@pytest.mark.covers("rule n_tok", "rule positions", "rule sink", "rule recurrent", "positions sink recurrent")
@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    ("rule", "n_tok"), [*((rule, n) for rule in COMPRESSING for n in (1, 2, 3)), ("full", 2), ("none", 2)]
)
def test_parallel_equals_online(rule: str, recurrent: bool, n_tok: int, sink: bool, positions: str) -> None:
    model = tiny_model(rule, recurrent=recurrent, n_tok=n_tok, sink=sink, positions=positions)

    @given(samples(longest_head=5))
    def check(rows: list[Sample]) -> None:
        for row, logits in zip(rows, parallel_logits(model, rows), strict=True):
            assert_close(online_logits(model, row), logits)

    check()


@pytest.mark.parametrize("changes", [{"embeddings": "table"}, {"lora": LoRASettings(r=4, conditional=False)}])
@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_parallel_equals_online_in_the_ablations(rule: str, changes: dict) -> None:
    model = tiny_model(rule, **changes)
    for row, logits in zip(ROWS, parallel_logits(model, ROWS), strict=True):
        assert_close(online_logits(model, row), logits)


@pytest.mark.covers("rule", "n_tok")
@pytest.mark.parametrize("n_tok", [1, 2])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist"])
def test_parallel_equals_online_with_fewer_comp_tokens_than_embeddings(rule: str, n_tok: int) -> None:
    model = tiny_model(rule, n_tok=n_tok, max_n_tok=3, sink=True)

    @given(samples(longest_head=5))
    def check(rows: list[Sample]) -> None:
        for row, logits in zip(rows, parallel_logits(model, rows), strict=True):
            assert_close(online_logits(model, row), logits)

    check()


@pytest.mark.covers("rule", "embeddings")
@pytest.mark.parametrize("embeddings", ["separate", "table"])
@pytest.mark.parametrize("rule", ["concat", "merge", "gate", "gist"])
def test_of_max_n_tok_embeddings_and_gates_the_first_n_tok_count(rule: str, embeddings: str) -> None:
    model = tiny_model(rule, n_tok=2, max_n_tok=4, embeddings=embeddings)
    trained = model.adapter_tensors()
    slots = [trained["comp_embeddings.weight"]]  # all with the slots first
    if rule == "gate":
        slots += [trained["rule.weight"].movedim(2, 0), trained["rule.bias"].movedim(2, 0)]
    before = online_logits(model, ROWS[0])
    for slot, counts in ((3, False), (2, False), (1, True), (0, True)):
        for tensor in slots:
            with torch.no_grad():
                tensor[slot] += 1
            after = online_logits(model, ROWS[0])
            assert ((after - before).abs().max() > 1e-4) == counts
            before = after


@pytest.mark.parametrize("rule", ["concat", "merge", "ema", "gate"])
def test_parallel_equals_online_after_many_steps(rule: str) -> None:
    row = make_sample([1, 2] * 10, 3)
    model = tiny_model(rule)
    assert_close(online_logits(model, row), parallel_logits(model, [row])[0])


@pytest.mark.covers("rule", "recurrent")
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("rule", ["concat", "merge", "ema", "gate", "gist"])
def test_gradients_of_the_parallel_pass_equal_those_of_the_recursion(rule: str, recurrent: bool) -> None:
    row, targets = make_sample([3, 4, 2], 3), torch.tensor([7, 8, 9])
    model = tiny_model(rule, recurrent=recurrent, sink=True)

    def gradients(logits: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        cross_entropy(logits, targets).backward()
        return {
            name: torch.zeros(()) if x.grad is None else x.grad.clone() for name, x in model.adapter_tensors().items()
        }

    memory = model.empty_memory()
    for step in row.steps:
        memory = model.compress(memory, torch.tensor([step.ids]))
    online = gradients(model.read(memory, torch.tensor([row.query.ids]))[0])
    parallel = gradients(model(layout_of(model, [row])).logits[0, -3:])
    for name, gradient in parallel.items():
        assert_close(online[name].expand_as(gradient), gradient)
    assert parallel["comp_embeddings.weight"].abs().max() > 1e-3


@pytest.mark.covers("rule", "sink recurrent")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_padded_batch_equals_single_rows_online(rule: str, recurrent: bool, sink: bool) -> None:
    model = tiny_model(rule, recurrent=recurrent, sink=sink)
    memory = compress_batch(model, ROWS)
    ids, mask = pad_left([row.query.ids for row in ROWS])
    with torch.no_grad():
        logits = model.read(memory, ids, mask)
    for i, row in enumerate(ROWS):
        assert_close(logits[i, mask[i]], online_logits(model, row))
        alone = compress_all(model, row)
        assert memory[i].entries == alone.entries
        assert memory.tokens[i] == alone.tokens[0] == sum(len(step.ids) for step in row.steps)
        assert_close(memory[i].keys[1], alone.keys[1])
        assert_close(memory[i].values[0], alone.values[0])


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_stacked_memories_of_different_lengths_read_and_generate_like_single_ones(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    rows = [make_sample([3], 2, seed=1), make_sample([2, 6, 1], 4, seed=2), make_sample([1, 5], 1, seed=3)]
    single = [compress_all(model, row) for row in rows]
    stacked = Memory.stack(single)
    queries = [row.query.ids for row in rows]
    ids, mask = pad_left(queries)
    with torch.no_grad():
        logits = model.read(stacked, ids, mask)
    together = greedy(model, stacked, queries, 4)
    for i, alone in enumerate(single):
        assert_close(logits[i, mask[i]], model.read(alone, torch.tensor([queries[i]]))[0])
        assert together[i].tolist() == greedy(model, alone, [queries[i]], 4)[0].tolist()


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_conversation_that_has_not_begun_can_be_stacked_with_one_that_has(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    begun, fresh = make_sample([3, 4], 3, seed=1), make_sample([], 3, seed=2)
    stacked = Memory.stack([compress_all(model, begun), model.empty_memory()])
    with torch.no_grad():
        logits = model.read(stacked, torch.tensor([begun.query.ids, fresh.query.ids]))
    assert_close(logits[0], online_logits(model, begun))
    assert_close(logits[1], online_logits(model, fresh))
    assert_close(logits[1], parallel_logits(model, [begun, fresh])[1])


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_stacked_conversations_of_different_ages_go_on_together(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    rows = [make_sample(lengths, 3, seed=len(lengths)) for lengths in ([3, 4, 2], [6, 1], [5])]
    memory = Memory.stack([compress_all(model, Sample(row.steps[:-1], row.query)) for row in rows])
    memory = compress_batch(model, [Sample(row.steps[-1:], row.query) for row in rows], memory)
    ids, mask = pad_left([row.query.ids for row in rows])
    with torch.no_grad():
        logits = model.read(memory, ids, mask)
    for i, row in enumerate(rows):
        assert_close(logits[i, mask[i]], online_logits(model, row))


@pytest.mark.parametrize("rule", COMPRESSING)
def test_the_context_and_the_adapter_matter(rule: str) -> None:
    """Otherwise the identities above would hold of nothing."""
    model, row = tiny_model(rule), ROWS[0]
    logits = online_logits(model, row)
    other = Sample([Step([*row.steps[0].ids[:-1], 50]), *row.steps[1:]], row.query)
    assert (online_logits(model, other) - logits).abs().max() > 0.01
    with torch.no_grad():
        for name, tensor in model.adapter_tensors().items():
            tensor.mul_(0.5 if "lora_B" in name else 1.0)
    assert (online_logits(model, row) - logits).abs().max() > 0.01


@pytest.mark.parametrize("rule", ["concat", "merge"])
def test_recurrent_steps_see_the_memory_and_isolated_ones_do_not(rule: str) -> None:
    row = ROWS[0]
    other = Sample([Step([9, 8, 7]), *row.steps[1:]], row.query)
    fresh = {}
    for recurrent in (True, False):
        model = tiny_model(rule, recurrent=recurrent, n_tok=1)
        first, second = (compress_all(model, sample).values[-1] for sample in (row, other))
        if rule == "merge":  # out of the mean of two, h(2) alone
            first, second = (
                2 * mean - compress_all(model, Sample(sample.steps[:1], sample.query)).values[-1]
                for mean, sample in ((first, row), (second, other))
            )
        fresh[recurrent] = (first[:, :, -1:] - second[:, :, -1:]).abs().max().item()
    assert fresh[True] > 1e-2
    assert fresh[False] < 1e-5


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_greedy_generation_from_memory_equals_repeated_parallel_passes(rule: str) -> None:
    model = tiny_model(rule, sink=True)
    expected = greedy_by_parallel(model, ROWS[0], 6)
    assert greedy(model, compress_all(model, ROWS[0]), [ROWS[0].query.ids], 6)[0].tolist() == expected


CACHES = {"use_cache": False, "cache_implementation": "static", "return_dict_in_generate": True}


@pytest.mark.parametrize("name", CACHES)
def test_what_generate_makes_of_the_cache_is_overridden_in_the_models_settings_and_refused_in_a_call(
    monkeypatch, name: str
) -> None:
    model, row = tiny_model("concat"), ROWS[0]
    memory, query = compress_all(model, row), torch.tensor([row.query.ids])
    expected = model.generate(memory, query, max_new_tokens=6, do_sample=False)
    assert expected.equal(model.generate(memory, query, max_new_tokens=6, do_sample=False, use_cache=True))
    for options in ({name: CACHES[name]}, {"generation_config": GenerationConfig(**{name: CACHES[name]})}):
        with pytest.raises(InputError, match=f"{name} is {CACHES[name]!r}"):
            model.generate(memory, query, max_new_tokens=6, **options)
    fed = []
    model.base.register_forward_pre_hook(
        lambda _, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(model.base.generation_config, name, CACHES[name])
    assert model.generate(memory, query, max_new_tokens=6, do_sample=False).equal(expected)
    assert fed == [query.shape[1], *[1] * 5], "nothing is read twice"


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"generation_config": GenerationConfig(num_beams=3, pad_token_id=PAD)},
    ],
    ids=["beams", "sequences", "config"],
)
def test_beam_search_over_full_context_equals_the_stock_models(options: dict) -> None:
    model, stock = tiny_model("full"), tiny_base()
    for row in ROWS[:2]:
        text = torch.tensor([[*row.steps[0].ids, *row.steps[1].ids, *row.query.ids]])
        expected = stock.generate(
            text, attention_mask=torch.ones_like(text), max_new_tokens=5, do_sample=False, **options
        )[:, text.shape[1] :]
        memory = compress_all(model, row)
        assert greedy(model, memory, [row.query.ids], 5, **options).tolist() == expected.tolist()


def test_beam_search_from_stacked_memories_equals_single_ones() -> None:
    model = tiny_model("concat")
    rows = [make_sample([3], 2, seed=1), make_sample([2, 6], 4, seed=2)]
    alone = [compress_all(model, row) for row in rows]
    together = greedy(model, Memory.stack(alone), [row.query.ids for row in rows], 5, num_beams=3)
    for i, row in enumerate(rows):
        assert together[i].tolist() == greedy(model, alone[i], [row.query.ids], 5, num_beams=3)[0].tolist()


def test_beams_without_any_memory_are_those_of_the_stock_model() -> None:
    model, ids = tiny_model("concat"), torch.tensor([[5, 6, 7], [8, 9, 10]])
    beams: dict = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 5, "do_sample": False}
    with torch.no_grad():
        stock = model.base.generate(ids, attention_mask=torch.ones_like(ids), **beams)
    assert model.generate(model.empty_memory(2), ids, **beams).equal(stock[:, 3:])


def test_sampling_from_memory_is_the_same_under_the_same_seed() -> None:
    model = tiny_model("concat")
    memory, ids = compress_all(model, ROWS[0]), torch.tensor([ROWS[0].query.ids])
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(memory, ids, max_new_tokens=8, do_sample=True, temperature=5.0)[0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("most", [2, 4])
def test_generation_never_yields_a_comp_row_of_the_table(most: int) -> None:
    """Nor one that is not in use, since the adapter was trained for more."""
    model = tiny_model("concat", embeddings="table", max_n_tok=most)
    with torch.no_grad():
        model.base.get_output_embeddings().weight[VOCAB:] *= 1000
    drawn = greedy(model, compress_all(model, ROWS[0]), [ROWS[0].query.ids], 8)
    assert drawn.max() < VOCAB
    assert drawn[0].tolist() == greedy_by_parallel(model, ROWS[0], 8)


def test_tokens_that_the_caller_suppresses_stay_suppressed_beside_the_comp_rows() -> None:
    model = tiny_model("concat", embeddings="table")
    memory, query = compress_all(model, ROWS[0]), [ROWS[0].query.ids]
    first = int(greedy(model, memory, query, 1)[0, 0])
    with torch.no_grad():
        model.base.get_output_embeddings().weight[VOCAB:] *= 1000
    drawn = greedy(model, memory, query, 4, suppress_tokens=[first])
    assert drawn.max() < VOCAB
    assert drawn[0, 0] != first


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_the_base_reads_on_from_a_memory_by_itself(rule: str, sink: bool) -> None:
    """Mask and positions are those of text after the memory, also where the memories of a batch differ in length."""
    model = tiny_model(rule, sink=sink, family="mistral_window")
    rows = [make_sample([3], 4, seed=1), make_sample([2, 6, 1], 4, seed=2)]
    memory = Memory.stack([compress_all(model, row) for row in rows])
    ids = torch.tensor([row.query.ids for row in rows])
    with torch.no_grad():
        expected = model.read(memory, ids)
        cache = model.close(memory).cache()
        begun, rest = (model.base(part, past_key_values=cache).logits for part in (ids[:, :3], ids[:, 3:]))
        assert_close(torch.cat([begun, rest], dim=1), expected)
        cache = model.close(memory).cache()
        assert_close(model.base(ids, None, None, cache).logits, expected)
        inner = model.base.base_model(ids, past_key_values=model.close(memory).cache())
        assert_close(model.base.lm_head(inner.last_hidden_state), expected)
        if memory.width:
            with pytest.raises(InputError, match="The attention mask has 4 columns"):
                model.base(ids, past_key_values=model.close(memory).cache(), attention_mask=torch.ones_like(ids))
            with pytest.raises(InputError, match="call generate of the CCMModel"):
                model.base.generate(ids, past_key_values=model.close(memory).cache(), max_new_tokens=2)


def test_the_base_takes_a_mask_of_four_dimensions_after_a_memory() -> None:
    model = tiny_model("concat")
    memory, ids = compress_all(model, ROWS[0]), torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones(1, 1, 4, memory.width + 4, dtype=torch.bool).tril(memory.width)
    given = {"attention_mask": mask, "position_ids": memory.positions_of(torch.ones_like(ids))}
    with torch.no_grad():
        assert_close(model.base(ids, past_key_values=memory.cache(), **given).logits, model.read(memory, ids))


@pytest.mark.parametrize("rule", ["gist", "pos_control"])
def test_an_open_memory_of_a_rule_that_compresses_once_gives_no_cache(rule: str) -> None:
    model = tiny_model(rule)
    memory = compress_all(model, ROWS[0])
    with pytest.raises(InputError, match=r"model.close\(memory\).cache\(\)"):
        memory.cache()
    query = torch.tensor([ROWS[0].query.ids])
    closed = model.close(memory).cache()
    assert model.generate(memory, query, cache=closed, max_new_tokens=4).equal(
        model.generate(memory, query, max_new_tokens=4)
    )


def test_a_cache_of_another_conversation_or_adapter_is_refused() -> None:
    model, other = tiny_model("merge"), tiny_model("merge", n_tok=3)
    memory, query = compress_all(model, ROWS[0]), torch.tensor([ROWS[0].query.ids])
    again = compress_all(model, ROWS[0])
    for cache in (again.cache(), compress_all(other, ROWS[0]).cache()):
        with pytest.raises(InputError, match="cache is of another memory"):
            model.generate(memory, query, cache=cache, max_new_tokens=2)
        with pytest.raises(InputError, match="cache is of another memory"):
            model.read(memory, query, cache=cache)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_ids_that_do_not_fit_are_refused_with_what_would(rule: str) -> None:
    model = tiny_model(rule)
    one, both = torch.tensor([[5, 6]]), torch.tensor([[5, 6], [7, 8]])
    for online in (model.compress, model.read, model.generate):
        for memory, ids in ((model.empty_memory(), both), (model.empty_memory(2), one), (model.empty_memory(), one[0])):
            with pytest.raises(InputError, match=rf"must be \({memory.batch}, T\)"):
                online(memory, ids)
        with pytest.raises(InputError, match="and their mask"):
            online(model.empty_memory(), one, torch.ones(1, 3, dtype=torch.bool))
        for bad in (-1, VOCAB):
            with pytest.raises(InputError, match=f"0 to {VOCAB - 1}"):
                online(model.empty_memory(), torch.tensor([[5, bad]]))


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_under_gradient_checkpointing_there_is_no_memory(rule: str) -> None:
    model = tiny_model(rule)
    memory, ids = model.empty_memory(), torch.tensor([[5, 6]])
    model.base.generation_config.max_new_tokens = 1
    model.base.gradient_checkpointing_enable()
    reading = (model.read, model.generate) if model.rule.forgets else (model.compress, model.read, model.generate)
    model.train()
    for online in reading:
        with pytest.raises(InputError, match=r"call model.eval\(\)"):
            online(memory, ids)
    model.eval()
    memory = model.compress(memory, ids)
    assert memory.tokens == (2,)
    if model.rule.compresses == "context":
        model.train()
        with pytest.raises(InputError, match=r"call model.eval\(\)"):
            model.close(memory)


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_compress_with_the_cache_of_a_generation_equals_compress_from_scratch(rule: str) -> None:
    model = tiny_model(rule, sink=True)
    memory = compress_all(model, ROWS[0])
    prompt = torch.tensor([ROWS[0].query.ids])
    cache = model.close(memory).cache()
    reply = model.generate(memory, prompt, cache=cache, max_new_tokens=5, do_sample=False)
    text = torch.cat([prompt, reply], dim=1)
    with torch.no_grad():
        with_cache = model.compress(memory, text, cache=cache)
        from_scratch = model.compress(memory, text)
    assert with_cache.offset.tolist() == from_scratch.offset.tolist()
    assert with_cache.steps == from_scratch.steps
    for one, other in zip(
        (*with_cache.keys, *with_cache.values), (*from_scratch.keys, *from_scratch.values), strict=True
    ):
        assert_close(one, other)


@pytest.mark.parametrize("rule", ["concat", "merge", "full", "gist", "pos_control"])
def test_a_cache_that_does_not_fit_the_step_is_refused_or_not_used(rule: str) -> None:
    """One that has read more than the step holds (a cut reply), or that began with another memory (a closed one)."""
    model = tiny_model(rule, sink=True)
    memory = compress_all(model, ROWS[0])
    prompt = torch.tensor([ROWS[0].query.ids])
    for cache, cut in ((model.close(memory).cache(), 4), (model.close(memory).cache(), 0)):
        reply = model.generate(memory, prompt, cache=cache, max_new_tokens=6, do_sample=False)
        text = torch.cat([prompt, reply[:, : 6 - cut]], dim=1)
        with torch.no_grad():
            expected = model.compress(memory, text)
            got = model.compress(memory, text, cache=cache)
        assert got.width == expected.width
        assert_close(got.keys[-1], expected.keys[-1])
        assert_close(got.values[-1], expected.values[-1])
    for other in (model.empty_memory().cache(), cache):  # of another memory; one that has read text already
        with pytest.raises(InputError, match="make a new one"):
            model.generate(memory, prompt, cache=other, max_new_tokens=6)


def test_a_cache_of_beams_is_not_used_to_compress() -> None:
    model = tiny_model("concat")
    memory = compress_all(model, ROWS[0])
    cache, prompt = memory.cache(), torch.tensor([ROWS[0].query.ids])
    reply = model.generate(memory, prompt, cache=cache, max_new_tokens=6, do_sample=False, num_beams=3)
    text = torch.cat([prompt, reply], dim=1)
    with torch.no_grad():
        assert_close(model.compress(memory, text, cache=cache).keys[-1], model.compress(memory, text).keys[-1])


def test_a_base_that_carries_an_adapter_is_refused() -> None:
    model = tiny_model("concat")
    with pytest.raises(ConfigError, match="already has an adapter"):
        CCMModel(model.base, model.config)


def test_a_rope_that_changes_with_length_limits_the_positions() -> None:
    factors = [1.0] * 4
    rope: dict = {"rope_type": "longrope", "short_factor": factors, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    rope["original_max_position_embeddings"] = 32
    base = tiny_base("phi3", original_max_position_embeddings=32, rope_parameters=rope)
    assert tiny_model(base=base).max_positions == 32


def test_a_reply_beyond_the_models_positions_is_refused_before_it_begins() -> None:
    model = tiny_model("full")
    with pytest.raises(InputError, match=f"position {POSITIONS + 5}.*made for {POSITIONS}"):
        model.generate(model.empty_memory(), torch.tensor([[5, 6]]), max_new_tokens=POSITIONS + 3)


def test_a_training_pass_leaves_other_threads_their_logits() -> None:
    model = tiny_model("concat")
    layout = layout_of(model, [Sample(ROWS[0].steps, Step([7, 8], [IGNORE, 2]))])
    text, shapes = torch.tensor([[5, 6, 7]]), []
    reading = threading.Thread(target=lambda: shapes.append(model.read(model.empty_memory(), text).shape))

    def run_the_other(*_: object) -> None:
        reading.start()
        reading.join()

    handle = model.base.model.norm.register_forward_hook(lambda *a: None if reading.ident else run_the_other())
    assert model(layout).logits.shape == (1, VOCAB)
    handle.remove()
    assert shapes == [(1, 3, VOCAB)]


def test_a_closed_memory_takes_no_more_steps_and_is_not_closed_twice() -> None:
    model = tiny_model("gist")
    closed = model.close(compress_all(model, ROWS[0]))
    assert closed.closed
    assert model.close(closed) is closed
    with pytest.raises(InputError, match="closed"):
        model.compress(closed, torch.tensor([[5]]))
    with torch.no_grad():
        assert_close(model.read(closed, torch.tensor([ROWS[0].query.ids]))[0], online_logits(model, ROWS[0]))


def test_a_memory_of_another_model_is_refused() -> None:
    model, other = tiny_model("concat"), tiny_model("concat", seed=5)
    memory = compress_all(other, ROWS[0])
    for call in (model.compress, model.read, model.generate):
        with pytest.raises(InputError, match="another model"):
            call(memory, torch.tensor([[5]]))


def test_compress_reads_only_what_the_cache_has_not_read() -> None:
    model = tiny_model("concat")
    memory = model.empty_memory()
    cache, prompt = memory.cache(), torch.tensor([[5, 6, 7]])
    reply = model.generate(memory, prompt, cache=cache, max_new_tokens=4, do_sample=False)
    fed: list[int] = []
    model.base.base_model.register_forward_pre_hook(
        lambda _, __, kwargs: fed.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    with torch.no_grad():
        model.compress(memory, torch.cat([prompt, reply], dim=1), cache=cache)
    assert fed == [1 + model.config.n_tok]  # generation never reads its own last token


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_reading_and_generating_leave_the_memory_as_it_is(rule: str) -> None:
    model = tiny_model(rule)
    memory = compress_all(model, ROWS[0])
    before = memory.fork()
    ids = torch.tensor([[5, 6]])
    first = model.read(memory, ids)
    greedy(model, memory, [[5, 6]], 4)
    model.compress(memory, ids)
    assert torch.equal(model.read(memory, ids), first)
    assert memory.entries == before.entries
    assert all(map(torch.equal, (*memory.keys, *memory.values), (*before.keys, *before.values)))


def test_loss_is_the_mean_over_all_targets_of_the_batch() -> None:
    model = tiny_model("concat")
    rows = [
        Sample([Step([3, 4, 5], [IGNORE, 5, 6])], Step([7, 8], [8, 2])),
        Sample([Step([9, 9])], Step([10, 11, 12], [IGNORE, IGNORE, 2])),
    ]
    layout = layout_of(model, rows)
    output = model(layout)
    untrained = [Sample([Step(step.ids) for step in row.steps], Step(row.query.ids)) for row in rows]
    logits = model(layout_of(model, untrained)).logits
    trained = layout.targets != IGNORE
    assert trained.sum() == 5
    assert_close(output.loss, cross_entropy(logits[trained].float(), layout.targets[trained]))
    assert_close(output.logits, logits[trained])


def test_without_targets_there_are_all_logits_and_no_loss() -> None:
    model = tiny_model("concat")
    layout = layout_of(model, ROWS)
    output = model(layout)
    assert output.loss is None
    assert output.logits.shape == (*layout.ids.shape, VOCAB)


def test_padding_gives_no_nan() -> None:
    rows = [make_sample([1], 1), make_sample([7, 7, 7], 5)]
    for attn in ("sdpa", "eager"):
        for rule in RULE_NAMES:
            model = tiny_model(rule, attn=attn, sink=True)
            assert model(layout_of(model, rows)).logits.isfinite().all()
            memory = compress_batch(model, [Sample(row.steps[:1], row.query) for row in rows])
            assert model.read(memory, *pad_left([[5], [6, 7, 8]])).isfinite().all()


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_an_empty_step_is_refused(rule: str) -> None:
    model = tiny_model(rule)
    memory = model.empty_memory()
    nothing = torch.zeros(1, 0, dtype=torch.long)
    for call in (model.compress, model.read, model.generate):
        with pytest.raises(InputError, match="no tokens"):
            call(memory, nothing)


def test_a_step_without_tokens_in_one_row_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(InputError, match="every conversation"):
        model.compress(
            model.empty_memory(2), torch.tensor([[5, 6], [7, 8]]), torch.tensor([[True, True], [False, False]])
        )


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_text_beyond_the_models_positions_is_refused_with_both_numbers(rule: str) -> None:
    model = tiny_model(rule)
    most = POSITIONS - (0 if model.rule.compresses == "never" else model.config.n_tok)
    fits = torch.full((1, most), 5)
    with torch.no_grad():
        assert model.read(model.empty_memory(), fits).isfinite().all()
        memory = model.compress(model.empty_memory(), torch.full((1, 60), 5))
    for call in (model.compress, model.read, model.generate):
        with pytest.raises(InputError, match=f"position {POSITIONS + 1}.*made for {POSITIONS}"):
            call(model.empty_memory(), torch.full((1, most + 1), 5))
    if model.rule.forgets:
        model.read(memory, fits)
    else:
        with pytest.raises(InputError, match="roll back"):
            model.read(memory, fits)


def test_a_parallel_pass_beyond_the_models_positions_is_refused() -> None:
    model = tiny_model()
    most = POSITIONS - model.config.n_tok
    assert model(layout_of(model, [make_sample([most // 2], most - most // 2)])).logits.isfinite().all()
    with pytest.raises(InputError, match=f"position {POSITIONS + 1}.*made for {POSITIONS}"):
        model(layout_of(model, [make_sample([60], 69)]))


def test_memory_takes_no_text_positions() -> None:
    model = tiny_model("concat", n_tok=3, sink=True)
    memory = compress_all(model, ROWS[0])
    assert memory.offset.tolist() == [8]
    assert memory.width == 7
    model = tiny_model("concat", n_tok=3, positions="base")
    assert compress_all(model, ROWS[0]).offset.tolist() == [14]


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'concatenate'.*concat, "):
        tiny_model("concatenate")


def test_only_the_adapter_is_trained() -> None:
    model = tiny_model("concat")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == len(model.adapter_tensors())
    assert all("lora_" in name or name == "comp_embeddings.weight" for name in trained)


def test_origin_follows_the_adapter_as_it_is_trained() -> None:
    model = tiny_model("concat")
    before = model.origin
    assert model.origin is before
    model(layout_of(model, [Sample(ROWS[0].steps, Step([5, 6], [6, 7]))])).loss.backward()
    torch.optim.SGD(model.adapter_tensors().values(), lr=0.1).step()
    assert model.origin.adapter != before.adapter
    assert model.origin.base == before.base


def test_the_pad_id_is_an_ordinary_token_in_text() -> None:
    model = tiny_model("concat")
    row = Sample([Step([PAD, 5, PAD])], Step([PAD, PAD, 7]))
    padded = [row, make_sample([7, 7], 5)]
    assert_close(parallel_logits(model, padded)[0], online_logits(model, row))
    other = Sample([Step([PAD, 5, 6])], row.query)
    assert (online_logits(model, row) - online_logits(model, other)).abs().max() > 0.01


def test_the_base_given_is_the_base_used() -> None:
    base = tiny_base()
    model = CCMModel(base, tiny_model("concat").config)
    assert model.base is base
    assert model.device == base.device
