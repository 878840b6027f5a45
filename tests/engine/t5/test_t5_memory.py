"""The memory of an encoder-decoder: rows, batches and files of it; what is damaged or another's is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCAB, assert_close, ccm_config, make_sample, randomize_adapter, rewrite, tiny_model
from tiny_t5 import tiny_t5
from torch import Tensor

from ccm.core.errors import InputError, MemoryFileError, RowError
from ccm.engine.layout import Sample
from ccm.engine.t5.memory import EncoderMemory
from ccm.engine.t5.seq2seq import CCMEncoderDecoder

RULES = ("concat", "merge", "gist", "full", "none")
ROWS = [make_sample([5, 2, 7], 4, seed=3), make_sample([3], 4, seed=4)]


def t5(rule: str = "concat", seed: int = 1) -> CCMEncoderDecoder:
    model = CCMEncoderDecoder(tiny_t5(), ccm_config(rule, recurrent=False)).eval()
    randomize_adapter(model, seed)
    return model


@torch.no_grad()
def read(model: CCMEncoderDecoder, row: Sample) -> EncoderMemory:
    memory = model.empty_memory()
    for step in row.steps:
        memory = model.compress(memory, torch.tensor([step.ids]))
    return memory


@torch.no_grad()
def answered(model: CCMEncoderDecoder, memory: EncoderMemory, rows: list[Sample] = ROWS) -> Tensor:
    return model.read(memory, torch.tensor([row.query.ids for row in rows]), torch.tensor([[7, 30]] * len(rows)))


def equal(one: EncoderMemory, other: EncoderMemory) -> bool:
    both = ((m.states, m.mask, m.positions, m.offset, *m.keys, *m.values) for m in (one, other))
    said = ((m.text, m.tokens, m.origin) for m in (one, other))
    return all(map(torch.equal, *both)) and next(said) == next(said)


@pytest.mark.parametrize("rule", RULES)
def test_a_stack_answers_as_its_rows_do_and_gives_them_back(rule: str) -> None:
    model = t5(rule)
    memories = [read(model, row) for row in ROWS]
    stacked = EncoderMemory.stack(memories)
    assert all(equal(row, memory) for row, memory in zip(stacked, memories, strict=True))
    assert stacked.entries == tuple(memory.entries[0] for memory in memories)
    together = answered(model, stacked)
    for i, memory in enumerate(memories):
        assert_close(together[i], answered(model, memory, ROWS[i : i + 1])[0])
    longer = model.compress(stacked, torch.tensor([[5, 9], [8, 4]]))
    assert_close(
        answered(model, longer[1], ROWS[1:]),
        answered(model, model.compress(memories[1], torch.tensor([[8, 4]])), ROWS[1:]),
    )


def test_rows_and_stacks_that_cannot_be_are_refused() -> None:
    memory = read(t5(), ROWS[0])
    for row in (1, -1):
        with pytest.raises(RowError, match=f"no conversation {row}; the memory holds 1"):
            memory[row]
    with pytest.raises(InputError, match="give at least one"):
        EncoderMemory.stack([])
    with pytest.raises(InputError, match="same model, adapter and settings"):
        EncoderMemory.stack([memory, read(t5("merge"), ROWS[0])])


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_memory_comes_back_bit_for_bit_and_goes_on_alike(rule: str, tmp_path: Path) -> None:
    model = t5(rule)
    memory = EncoderMemory.stack([read(model, row) for row in ROWS])
    memory.save(tmp_path / "memory")
    loaded = model.load_memory(tmp_path / "memory")
    assert equal(loaded, memory)
    step = torch.tensor([[5, 9], [8, 4]])
    assert torch.equal(answered(model, model.compress(loaded, step)), answered(model, model.compress(memory, step)))
    half = memory.to(dtype=torch.bfloat16)
    half.save(tmp_path / "memory")
    assert equal(EncoderMemory.load(tmp_path / "memory", model.origin), half)
    assert half.nbytes == memory.nbytes // 4


DAMAGE: dict[str, tuple[Callable[[dict, dict], Any], str]] = {
    "a part is missing": (lambda t, m: t.pop("states"), r"lacks a part of the memory: \['states'\]"),
    "a part too many": (lambda t, m: t.update(more=t["mask"].clone()), "holds .*more.* beside its parts"),
    "not finite": (lambda t, m: t["values.1"].fill_(torch.nan), "not finite in values.1"),
    "fewer states": (lambda t, m: t.update(states=t["states"][:, 1:].clone()), "sizes disagree"),
    "fewer rows": (lambda t, m: t.update(offset=t["offset"][:0].clone()), "sizes disagree"),
    "other heads": (lambda t, m: t.update({"keys.0": t["keys.0"][:, :1].clone()}), "sizes disagree"),
    "no text": (lambda t, m: m.pop("text"), "lacks a part of the memory: 'text'"),
    "text of floats": (lambda t, m: m.update(text=[[[0.5]]]), "not whole numbers"),
    "text beyond the vocabulary": (lambda t, m: m.update(text=[[[VOCAB]]]), "ids that this model does not have"),
    "a step without tokens": (lambda t, m: m.update(text=[[[]]]), "or a step is empty"),
    "narrower states": (lambda t, m: t.update(states=t["states"][:, :, 1:].clone()), "sizes disagree"),
    "a layer too few": (lambda t, m: [t.pop(f"{kind}.2") for kind in ("keys", "values")], "lacks a part.*keys.2"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    model, path = t5(), tmp_path / "memory"
    read(model, ROWS[0]).save(path)
    spoil, message = DAMAGE[damage]
    rewrite(path, spoil)
    with pytest.raises(MemoryFileError, match=message):
        model.load_memory(path)


def test_a_memory_of_another_adapter_rule_or_kind_of_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    read(t5(), ROWS[0]).save(path)
    with pytest.raises(MemoryFileError, match="another adapter"):
        t5(seed=2).load_memory(path)
    with pytest.raises(MemoryFileError, match="made with rule 'concat', but the model runs with rule 'merge'"):
        t5("merge").load_memory(path)
    with pytest.raises(MemoryFileError, match="holds a memory of an encoder-decoder; wanted is a memory, as of a chat"):
        tiny_model().load_memory(path)
