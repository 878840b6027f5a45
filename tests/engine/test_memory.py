"""Memory as a value: sizes, stacking, taking steps back, and files that are whole, ours, or refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import NO_PATHS, RULE_NAMES, compress_all, compress_batch, make_sample, rewrite, tiny_base, tiny_model
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ccm.core.errors import InputError, IrreversibleError, MemoryFileError, RowError
from ccm.core.tensor_files import KINDS, write_file
from ccm.engine.decoder import CCMModel
from ccm.engine.layout import Sample
from ccm.engine.memory import Memory, Origin

SAMPLE = make_sample([3, 5, 2], 4)
QUERY = torch.tensor([SAMPLE.query.ids])


def assert_same(one: Memory, other: Memory) -> None:
    """Bit for bit the same memory."""
    assert all(map(torch.equal, (*one.keys, *one.values), (*other.keys, *other.values)))
    assert torch.equal(one.mask, other.mask)
    assert torch.equal(one.positions, other.positions)
    assert torch.equal(one.offset, other.offset)
    assert one.steps == other.steps
    assert one.origin == other.origin
    assert one.closed == other.closed


def first_steps(count: int) -> Sample:
    """The sample cut after some steps."""
    return Sample(SAMPLE.steps[:count], SAMPLE.query)


def test_sizes_are_those_of_the_tensors() -> None:
    model = tiny_model("concat", family="llama_gqa", n_tok=3)
    memory = compress_batch(model, [SAMPLE, make_sample([1, 1, 7], 2)])
    assert memory.batch == 2
    assert memory.width == 9
    assert memory.entries == (9, 9)
    assert memory.tokens == (10, 9)
    assert memory.entry_nbytes == 2 * 3 * 2 * 8 * 8  # K and V, layers, kv heads, head dim, float64
    assert memory.nbytes == memory.entry_nbytes * 18
    assert memory.nbytes == sum(x.numel() * 8 for x in (*memory.keys, *memory.values))
    half = memory.to(dtype=torch.bfloat16)
    assert half.nbytes * 4 == memory.nbytes
    assert half.entry_nbytes * 4 == memory.entry_nbytes


def test_padding_is_not_counted_as_entries() -> None:
    model = tiny_model("concat", sink=True)
    stacked = Memory.stack([compress_all(model, first_steps(1)), compress_all(model, SAMPLE)])
    assert stacked.entries == (3, 7)
    assert stacked.width == 7
    assert stacked.tokens == (3, 10)


def test_an_empty_memory_is_empty() -> None:
    memory = tiny_model().empty_memory(3)
    assert memory.entries == memory.tokens == (0, 0, 0)
    assert memory.nbytes == 0
    assert memory.entry_nbytes > 0


def test_to_changes_the_dtype_of_entries_alone() -> None:
    memory = compress_all(tiny_model(sink=True), SAMPLE)
    half = memory.to(dtype=torch.float16)
    assert {x.dtype for x in (*half.keys, *half.values)} == {torch.float16}
    assert (half.mask.dtype, half.positions.dtype, half.offset.dtype) == (torch.bool, torch.long, torch.long)
    assert_same(half.to("cpu"), half)
    assert memory.keys[0].dtype == torch.float64
    assert memory.to("meta").offset.is_meta


@pytest.mark.covers("rule positions", "sink")
@pytest.mark.parametrize("positions", ["skip", "base"])
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", ["concat", "gist", "full", "none", "pos_control"])
def test_rollback_is_as_if_the_steps_had_never_been_read(rule: str, sink: bool, positions: str) -> None:
    model = tiny_model(rule, sink=sink, positions=positions)
    memory = compress_all(model, SAMPLE)
    before = memory.fork()
    for count in range(4):
        assert_same(memory.rollback(count), compress_all(model, first_steps(3 - count)))
    assert_same(memory, before)
    again = compress_all(model, Sample(SAMPLE.steps[1:], SAMPLE.query), memory.rollback(2))
    assert_same(again, memory)


@pytest.mark.parametrize("sink", [False, True])
def test_rollback_of_a_batch_takes_the_same_steps_from_every_row(sink: bool) -> None:
    model = tiny_model("concat", sink=sink)
    other = make_sample([4, 1], 2, seed=9)
    stacked = Memory.stack([compress_all(model, SAMPLE), compress_all(model, other)]).rollback(1)
    expected = [compress_all(model, first_steps(2)), compress_all(model, Sample(other.steps[:1], other.query))]
    for row in range(2):
        assert_same(stacked[row], expected[row])
    assert stacked.width == max(memory.width for memory in expected)


@pytest.mark.parametrize("rule", ["merge", "ema", "gate"])
def test_rules_that_mix_cannot_roll_back_and_say_what_to_do(rule: str) -> None:
    memory = compress_all(tiny_model(rule), SAMPLE)
    with pytest.raises(IrreversibleError, match=f"'{rule}'.*Keep the earlier Memory"):
        memory.rollback(1)
    assert memory.rollback(0) is memory


@pytest.mark.parametrize("count", [-1, 4])
def test_rolling_back_more_steps_than_there_are_is_refused(count: int) -> None:
    with pytest.raises(InputError, match=f"{count} steps.*holds 3"):
        compress_all(tiny_model(), SAMPLE).rollback(count)


@pytest.mark.parametrize("rule", ["gist", "pos_control"])
def test_a_closed_memory_is_not_rolled_back_into_nonsense(rule: str) -> None:
    """Its entries are no longer those of its steps: it must refuse, or give back an earlier open memory."""
    model = tiny_model(rule)
    closed = model.close(compress_all(model, SAMPLE))
    try:
        back = closed.rollback(1)
    except InputError:
        return
    assert_same(back, compress_all(model, first_steps(2)))


def test_a_fork_shares_nothing() -> None:
    memory = compress_all(tiny_model(), SAMPLE)
    fork = memory.fork()
    assert_same(fork, memory)
    before = memory.keys[0].clone()
    for tensor in (*fork.keys, *fork.values, fork.offset, fork.positions):
        tensor.add_(1)
    fork.mask.logical_not_()
    assert torch.equal(memory.keys[0], before)
    assert memory.offset.tolist() == [10]
    assert memory.mask.all()
    assert (memory.positions == -1).all()


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_an_update_leaves_the_old_memory_unchanged(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    memory = compress_all(model, first_steps(2))
    before = memory.fork()
    one = model.compress(memory, torch.tensor([[5, 6]]))
    other = model.compress(memory, torch.tensor([[7, 8]]))
    assert_same(memory, before)
    assert one.tokens == other.tokens == (10,)
    assert one.offset.tolist() != memory.offset.tolist() or rule == "none"


@pytest.mark.covers("rule", "sink")
@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("rule", RULE_NAMES)
def test_a_row_of_a_stack_is_the_memory_it_was(rule: str, sink: bool) -> None:
    model = tiny_model(rule, sink=sink)
    memories = [model.empty_memory(), compress_all(model, SAMPLE), compress_all(model, first_steps(1))]
    stacked = Memory.stack(memories)
    assert stacked.batch == 3
    for row, memory in enumerate(memories):
        assert_same(stacked[row], memory)
    assert_same(Memory.stack(list(stacked)), stacked)


@pytest.mark.parametrize("row", [-1, 2])
def test_a_row_that_is_not_there_is_refused(row: int) -> None:
    memory = tiny_model().empty_memory(2)
    with pytest.raises(RowError, match=f"no conversation {row}; the memory holds 2"):
        memory[row]
    assert len(list(memory)) == 2


def test_memories_of_different_origins_do_not_stack() -> None:
    memory = compress_all(tiny_model(), SAMPLE)
    others = [tiny_model("merge"), tiny_model(n_tok=1), tiny_model(seed=7), tiny_model(sink=True)]
    for other in others:
        with pytest.raises(InputError, match="same"):
            Memory.stack([memory, compress_all(other, SAMPLE)])
    with pytest.raises(InputError, match="at least one"):
        Memory.stack([])


def test_an_open_memory_does_not_stack_with_a_closed_one() -> None:
    model = tiny_model("gist")
    memory = compress_all(model, SAMPLE)
    with pytest.raises(InputError, match="open"):
        Memory.stack([memory, model.close(memory)])


@pytest.mark.parametrize("settings", [{"rule": name} for name in RULE_NAMES] + [{"sink": True, "positions": "base"}])
def test_a_saved_memory_comes_back_bit_for_bit_and_goes_on_alike(settings: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model(**settings)
    memory = compress_all(model, SAMPLE)
    memory.save(tmp_path / "memory.safetensors")
    loaded = model.load_memory(tmp_path / "memory.safetensors")
    assert_same(loaded, memory)
    with torch.no_grad():
        assert torch.equal(model.read(loaded, QUERY), model.read(memory, QUERY))
        assert_same(model.compress(loaded, QUERY), model.compress(memory, QUERY))


def test_a_batch_and_a_closed_memory_come_back_too(tmp_path: Path) -> None:
    model = tiny_model("gist", sink=True)
    stacked = model.close(Memory.stack([compress_all(model, first_steps(1)), compress_all(model, SAMPLE)]))
    stacked.save(tmp_path / "memory")
    assert_same(model.load_memory(tmp_path / "memory"), stacked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny_model(base=tiny_base(dtype=dtype))
    memory = compress_all(model, SAMPLE)
    memory.save(tmp_path / "memory")
    assert_same(model.load_memory(tmp_path / "memory"), memory)


def test_a_memory_of_a_saved_and_loaded_model_is_the_same_models(tmp_path: Path) -> None:
    """Who trains, saves the adapter and goes on in another process still has the memories of before."""
    model = tiny_model()
    memory = compress_all(model, SAMPLE)
    memory.save(tmp_path / "memory")
    model.save_pretrained(tmp_path / "adapter")
    again = CCMModel.from_pretrained(tmp_path / "adapter", tiny_base())
    assert torch.equal(again.load_memory(tmp_path / "memory").keys[0], memory.keys[0])
    assert Memory.stack([memory, compress_all(again, SAMPLE)]).batch == 2


@pytest.fixture
def saved(tmp_path: Path) -> tuple[CCMModel, Path]:
    """A model and a memory of its own on disk."""
    model = tiny_model()
    path = tmp_path / "memory.safetensors"
    compress_all(model, SAMPLE).save(path)
    return model, path


def test_a_directory_is_refused_both_ways(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    with pytest.raises(MemoryFileError, match="is a directory"):
        model.load_memory(path.parent)
    with pytest.raises(MemoryFileError, match="is a directory"):
        model.load_memory(path).save(path.parent)


def test_a_missing_file_or_folder_is_named(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    with pytest.raises(MemoryFileError, match=r"no file .*absent"):
        model.load_memory(path.parent / "absent")
    with pytest.raises(MemoryFileError, match=r"there is no folder .*nowhere\."):
        model.load_memory(path).save(path.parent / "nowhere" / "memory")


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: tuple[CCMModel, Path], kept: float) -> None:
    model, path = saved
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    with pytest.raises(MemoryFileError, match="no whole file of a memory"):
        model.load_memory(path)


def test_a_file_of_something_else_is_refused(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    path.write_text("not a memory")
    with pytest.raises(MemoryFileError, match="no whole file"):
        model.load_memory(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(MemoryFileError, match="is not a memory"):
        model.load_memory(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"ccm_memory": "{damaged"})
    with pytest.raises(MemoryFileError, match="manifest"):
        model.load_memory(path)


@pytest.mark.parametrize("manifest", ["[]", "3", "null", "{}"])
def test_a_manifest_that_is_no_manifest_is_refused(saved: tuple[CCMModel, Path], manifest: str) -> None:
    model, path = saved
    save_file({"weight": torch.ones(2)}, path, metadata={"ccm_memory": manifest})
    with pytest.raises(MemoryFileError):
        model.load_memory(path)


@pytest.mark.parametrize("version", [0, 3, "1", None, True])
def test_another_format_version_is_refused_with_both(saved: tuple[CCMModel, Path], version: Any) -> None:
    model, path = saved
    rewrite(path, lambda _, manifest: manifest.update(format_version=version))
    with pytest.raises(MemoryFileError, match=f"version {version}; this ccm reads versions 1 to 2"):
        model.load_memory(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["keys.0", "values.2"])
def test_values_that_are_not_finite_are_refused_by_name(saved: tuple[CCMModel, Path], name: str, value: float) -> None:
    model, path = saved
    rewrite(path, lambda tensors, _: tensors[name].view(-1)[7:8].fill_(value))
    with pytest.raises(MemoryFileError, match=f"not finite in {name}"):
        model.load_memory(path)


DAMAGE: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], Any]] = {
    "a layer is missing": lambda tensors, _: tensors.pop("keys.1"),
    "the last layer is missing": lambda tensors, _: (tensors.pop("keys.2"), tensors.pop("values.2")),
    "all layers are missing": lambda tensors, _: [tensors.pop(name) for name in list(tensors) if "." in name],
    "the mask is missing": lambda tensors, _: tensors.pop("mask"),
    "the mask is shorter": lambda tensors, _: tensors.update(mask=tensors["mask"][:, 1:].clone()),
    "a layer is shorter": lambda tensors, _: tensors.update({"keys.1": tensors["keys.1"][:, :, 1:].clone()}),
    "a layer has fewer heads": lambda tensors, _: tensors.update({"keys.1": tensors["keys.1"][:, 1:].clone()}),
    "entries are narrower": lambda tensors, _: tensors.update({"values.0": tensors["values.0"][..., 1:].clone()}),
    "the offsets are of two rows": lambda tensors, _: tensors.update(offset=torch.tensor([1, 2])),
    "the steps are of two rows": lambda _, manifest: manifest.update(steps=manifest["steps"] * 2),
    "the steps are missing": lambda _, manifest: manifest.pop("steps"),
    "a step lacks a number": lambda _, manifest: manifest.update(steps=[[[3, 2]]]),
    "the config is missing": lambda _, manifest: manifest.pop("config"),
    "the config has an unknown key": lambda _, manifest: manifest["config"].update(wizard=1),
    "the mask is a number": lambda tensors, _: tensors.update(mask=torch.tensor(True)),
    "the mask is of floats": lambda tensors, _: tensors.update(mask=tensors["mask"].float()),
    "the offset is of floats": lambda tensors, _: tensors.update(offset=tensors["offset"].float()),
    "keys are flat": lambda tensors, _: tensors.update({"keys.0": tensors["keys.0"].flatten(1)}),
    "keys are whole numbers": lambda tensors, _: tensors.update({"keys.0": tensors["keys.0"].to(torch.int8)}),
    "all entries are whole numbers": lambda tensors, _: tensors.update(
        {name: x.to(torch.int8) for name, x in tensors.items() if "." in name}
    ),
    "the dtype of a layer is another": lambda tensors, _: tensors.update({"keys.1": tensors["keys.1"].half()}),
    "a part is there twice": lambda tensors, _: tensors.update({"mask.0": tensors["mask"].clone()}),
    "it is under a head": lambda _, manifest: manifest.update(head={"digest": "ab", "tokens": 3}),
    "a count is beyond all bounds": lambda _, manifest: manifest["steps"][0][0].__setitem__(0, 10**4000),
    "a tensor is unknown": lambda tensors, _: tensors.update(extra=torch.ones(1)),
    "the steps are texts": lambda _, manifest: manifest.update(steps=[["abc", "abc", "abc"]]),
    "a count is negative": lambda _, manifest: manifest["steps"][0][0].__setitem__(0, -3),
    "a count is no number": lambda _, manifest: manifest["steps"][0][0].__setitem__(2, None),
    "a step has more entries": lambda _, manifest: manifest["steps"][0][1].__setitem__(1, 3),
    "a step is gone": lambda _, manifest: manifest["steps"][0].pop(),
    "the offset is another": lambda tensors, _: tensors.update(offset=tensors["offset"] + 1),
    "closed is a text": lambda _, manifest: manifest.update(closed="no"),
    "the config has a value of another type": lambda _, manifest: manifest["config"].update(rule=["concat"]),
    "the config is no table": lambda _, manifest: manifest.update(config=[]),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_refused(saved: tuple[CCMModel, Path], damage: str) -> None:
    model, path = saved
    rewrite(path, DAMAGE[damage])
    with pytest.raises(MemoryFileError, match=path.name):
        model.load_memory(path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tiny_model(base=tiny_base(seed=9)), "another base model"),
        (lambda: tiny_model(seed=0, base=tiny_base("llama_gqa")), "another base model"),
    ],
)
def test_a_memory_of_another_base_is_refused_with_both(
    saved: tuple[CCMModel, Path], other: Callable[[], CCMModel], named: str
) -> None:
    model, path = saved
    stranger = other()
    with pytest.raises(MemoryFileError, match=named) as refusal:
        stranger.load_memory(path)
    assert model.base_id in str(refusal.value)
    assert stranger.base_id in str(refusal.value)


def test_a_memory_of_another_adapter_is_refused_with_both(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    mine = model.origin.adapter
    with torch.no_grad():
        model.comp_embeddings.weight.add_(0.1)
    with pytest.raises(MemoryFileError, match=rf"another adapter \({mine}\).*\({model.origin.adapter}\)"):
        model.load_memory(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "merge"}, "rule 'concat'.*rule 'merge'"),
        ({"n_tok": 3}, "n_tok 2.*n_tok 3"),
        ({"sink": True}, "sink False.*sink True"),
        ({"recurrent": False}, "recurrent True.*recurrent False"),
        ({"positions": "base"}, "positions 'skip'.*positions 'base'"),
        ({"rule_options": {"weight": 0.3}}, "rule_options {}.*weight"),
    ],
)
def test_a_memory_under_other_settings_is_refused_with_both(
    saved: tuple[CCMModel, Path], change: dict[str, Any], message: str
) -> None:
    """Even where the adapter's tensors are the same."""
    model, path = saved
    settings = replace(model.config, **change)
    with pytest.raises(MemoryFileError, match=message):
        Memory.load(path, Origin(settings, model.origin.base, model.origin.adapter))


def test_a_memory_of_another_n_of_the_same_adapter_is_refused(tmp_path: Path) -> None:
    tiny_model("merge", n_tok=2, min_n_tok=1, max_n_tok=3).save_pretrained(tmp_path / "adapter")
    one, other, again = (CCMModel.from_pretrained(tmp_path / "adapter", tiny_base(), n_tok=n) for n in (1, 3, 1))
    memory = compress_all(one, SAMPLE)
    memory.save(tmp_path / "memory")
    with pytest.raises(MemoryFileError, match="n_tok 1, but the model runs with n_tok 3; load the model with n_tok=1"):
        other.load_memory(tmp_path / "memory")
    for call in (other.compress, other.read, other.generate):
        with pytest.raises(InputError, match="another model, adapter or rule"):
            call(memory, QUERY)
    with pytest.raises(InputError, match="same model, adapter and settings"):
        Memory.stack([memory, compress_all(other, SAMPLE)])
    assert_same(again.load_memory(tmp_path / "memory"), memory)


@pytest.mark.parametrize("rule", ["full", "merge"])
def test_the_same_adapter_under_another_rule_has_other_memories(rule: str) -> None:
    assert tiny_model("concat").origin.adapter != tiny_model(rule).origin.adapter


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), SafetensorError("I/O error: no space")])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    saved: tuple[CCMModel, Path], monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    model, path = saved
    before = path.read_bytes()

    def fail(target: Path, _: bytes) -> None:
        with target.open("wb") as file:
            file.write(b"half")
        raise failure

    monkeypatch.setattr(Path, "write_bytes", fail)
    for target in (path, path.parent / "new"):
        with pytest.raises(MemoryFileError, match="cannot be written"):
            model.empty_memory().save(target)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("held", ["text", "tensors"])
def test_a_file_that_is_no_memory_is_not_overwritten(saved: tuple[CCMModel, Path], held: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if held == "text":
        other.write_text("Dear diary")
    else:
        save_file({"a": torch.zeros(2)}, other)
    before = other.read_bytes()
    with pytest.raises(MemoryFileError, match="is not a saved memory"):
        saved[0].empty_memory().save(other)
    assert other.read_bytes() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_not_overwritten_and_both_are_named(
    saved: tuple[CCMModel, Path], kind: str, tmp_path: Path
) -> None:
    memory, other = saved[0].load_memory(saved[1]), tmp_path / "other"
    write_file(other, kind, {"a": torch.zeros(2)}, {})
    before = other.read_bytes()
    if kind == "ccm_memory":
        memory.save(other)
        return
    with pytest.raises(MemoryFileError, match=f"other exists and holds {KINDS[kind]}, and what is saved is a memory"):
        memory.save(other)
    assert other.read_bytes() == before


def test_saving_replaces_the_file_in_one_move(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    memory = model.compress(model.load_memory(path), QUERY)
    memory.save(path)
    assert_same(model.load_memory(path), memory)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_name_that_is_too_long_is_refused(saved: tuple[CCMModel, Path]) -> None:
    model, path = saved
    memory = model.load_memory(path)
    for length in (256, 300):
        with pytest.raises(MemoryFileError, match="cannot be written"):
            memory.save(path.parent / ("x" * length))
    with pytest.raises(MemoryFileError, match="cannot be read"):
        model.load_memory(path.parent / ("x" * 300))
    longest = path.parent / ("x" * 255)
    memory.save(longest)
    assert_same(model.load_memory(longest), memory)


@pytest.mark.parametrize("name", NO_PATHS)
def test_what_is_no_path_is_refused(saved: tuple[CCMModel, Path], name: Any) -> None:
    model, path = saved
    for use in (model.load_memory(path).save, model.load_memory):
        with pytest.raises(MemoryFileError, match=r"not a path|cannot be the name of a file"):
            use(name)
