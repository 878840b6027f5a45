"""Batches: each row generates and compresses what its conversation does alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from helpers import RULE_NAMES, assert_close, compress_all, make_sample, tiny_base, tiny_model

from ccm.engine import batching
from ccm.engine.batching import Batch, compress_together
from ccm.engine.decoder import CCMModel
from ccm.engine.memory import Memory, MemoryCache

SIZES = [(3, 5), (7,), (), (4, 2, 6), (9, 1)]  # tokens of the steps before


@dataclass
class Talk:
    """A conversation that reads a prompt and generates greedily."""

    memory: Memory
    prompt: list[int]
    cache: MemoryCache
    said: list[int] = field(default_factory=list)

    @property
    def step(self) -> list[int]:
        return [*self.prompt, *self.said]


def talks(model: CCMModel, seed: int = 0) -> list[Talk]:
    """One for each of the sizes, some under a head; open memories as they are read."""
    made = []
    for number, sizes in enumerate(SIZES):
        sample = make_sample([*sizes], 3 + number, seed=seed + number, head=4 * (number % 2))
        memory = compress_all(model, sample) if sizes else model.empty_memory(1, [model.head(sample.head)])
        made.append(Talk(memory, [*sample.query.ids], model.close(memory).cache()))
    return made


def alone(model: CCMModel, talk: Talk, count: int) -> tuple[list[int], Memory]:
    """The tokens that a conversation generates by itself, and its memory after them."""
    read = model.reader(talk.memory, talk.cache)
    ids, said = talk.prompt, list[int]()
    for _ in range(count):
        said.append(int(read(torch.tensor([ids])).argmax(-1)))
        ids = said[-1:]
    return said, model.compress(talk.memory, torch.tensor([[*talk.prompt, *said]]), cache=talk.cache)


def together(model: CCMModel, several: list[Talk], counts: list[int], order: random.Random) -> list[Memory]:
    """Let conversations join in any order, leave as they are done, and compress in groups."""
    batch, waiting, ready = Batch(model), [*range(len(several))], list[int]()
    memories: dict[int, Memory] = {}
    order.shuffle(waiting)
    while waiting or batch.rows:
        numbers = [next(n for n, talk in enumerate(several) if talk.cache is row) for row in batch.rows]
        if numbers:
            for number, token in zip(
                numbers, batch.read([several[n].said[-1] for n in numbers]).argmax(-1), strict=True
            ):
                several[number].said.append(int(token))
        joining = [waiting.pop() for _ in range(min(len(waiting), order.randint(0, 2)))]
        if joining:
            logits = batch.begin([several[n].cache for n in joining], [several[n].prompt for n in joining])
            for number, token in zip(joining, logits.argmax(-1), strict=True):
                several[number].said.append(int(token))
        done = [n for n in (*numbers, *joining) if len(several[n].said) == counts[n]]
        batch.leave([several[n].cache for n in done])
        ready += done
        if len(ready) > 1 or not (waiting or batch.rows):
            found = [several[n] for n in ready]
            made = compress_together(
                model, [t.memory for t in found], [t.step for t in found], [t.cache for t in found]
            )
            memories |= dict(zip(ready, made, strict=True))
            ready = []
    return [memories[number] for number in range(len(several))]


SETTINGS = [{"rule": rule} for rule in RULE_NAMES]
SETTINGS += [{"rule": rule, "sink": True} for rule in ("concat", "gate")]
SETTINGS += [{"rule": rule, "recurrent": False} for rule in ("concat", "merge")]
SETTINGS += [{"family": family} for family in ("gemma3", "gpt2", "mistral")]


@pytest.mark.covers(cases=4)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_rows_that_join_and_leave_generate_as_alone(settings: dict[str, Any]) -> None:
    model = tiny_model(**settings).double()
    counts = [4, 1, 6, 3, 5]
    expected = [alone(model, talk, count) for talk, count in zip(talks(model), counts, strict=True)]
    for seed in range(2):
        several = talks(model)
        memories = together(model, several, counts, random.Random(seed))
        for talk, memory, (said, other) in zip(several, memories, expected, strict=True):
            assert talk.said == said
            assert memory.steps == other.steps
            assert memory.offset.equal(other.offset)
            for x, y in zip((*memory.keys, *memory.values), (*other.keys, *other.values), strict=True):
                assert_close(x, y, dtype=torch.float64)


def test_padding_does_not_pile_up() -> None:
    model = tiny_model(base=tiny_base())
    several, batch = talks(model), Batch(model)
    longest = max(talk.cache.columns.width + len(talk.prompt) for talk in several)
    for _ in range(5):
        for talk in several:
            talk.cache = model.close(talk.memory).cache()
            batch.begin([talk.cache], [talk.prompt])
        assert batch._slots is not None
        assert batch._slots.width == longest
        batch.leave([talk.cache for talk in several])
    assert not batch.rows


def test_room_that_a_long_row_took_is_let_go_once_it_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(base=tiny_base())
    several, batch = talks(model), Batch(model)
    long, short = several[0], several[1]
    long.cache, short.cache = (model.close(talk.memory).cache() for talk in (long, short))
    batch.begin([long.cache], [[5] * 100])
    batch.begin([short.cache], [short.prompt])
    assert batch._slots is not None
    assert batch._slots._all.mask.shape[1] == 128
    monkeypatch.setattr(batching, "_BLOCK", 8)
    batch.leave([long.cache])
    batch.read([3])
    assert batch._slots._all.mask.shape[1] < 60
    assert long.cache.read.shape == (1, 100)


def test_what_a_row_left_in_its_slot_touches_no_other() -> None:
    model = tiny_model(base=tiny_base()).double()
    (said, _), batch = alone(model, talks(model)[1], 3), Batch(model)
    broken, short, long = talks(model)[:3]
    batch.begin([broken.cache], [[5] * 60])
    assert batch._slots is not None
    for tensor in (*batch._slots._all.keys, *batch._slots._all.values):
        tensor[0, :, 50:60] = torch.inf
    short.said.append(int(batch.begin([short.cache], [short.prompt]).argmax(-1)))
    batch.leave([broken.cache])
    batch.begin([long.cache], [[5] * 60])
    for _ in range(2):
        short.said.append(int(batch.read([short.said[-1], 5])[0].argmax(-1)))
    assert short.said == said


def test_rows_that_fail_to_join_leave_the_others_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(base=tiny_base()).double()
    (said, _), batch = alone(model, talks(model)[1], 3), Batch(model)
    failing, one, other = talks(model)[:3]
    one.said.append(int(batch.begin([one.cache], [one.prompt]).argmax(-1)))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(batching, "pad", fail)
        with pytest.raises(torch.OutOfMemoryError):
            batch.begin([failing.cache, other.cache], [failing.prompt, [5] * 100])
    for _ in range(2):
        one.said.append(int(batch.read(one.said[-1:]).argmax(-1)))
    assert (one.said, batch.rows) == (said, [one.cache])
