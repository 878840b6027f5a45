"""Files of tensors: a flipped bit, a swapped pair, another version or kind; and every file of version 1."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_close, rewrite, tiny_base, tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import ccm
from ccm.core.config import CCMConfig
from ccm.core.errors import AdapterError, CCMError, MemoryFileError
from ccm.core.files import load_tensors, read_metadata, save_json
from ccm.core.tensor_files import KINDS, digest, read_file, write_file
from ccm.engine.adapter_files import SavedAdapter, read_adapter, write_adapter
from ccm.engine.decoder import CCMModel
from ccm.engine.fingerprint import pack_signs, sample_signs
from ccm.engine.lora import PlainLoRA
from ccm.engine.memory_files import Origin
from ccm.engine.t5.memory import EncoderMemory
from ccm.streams.stream import StreamingMemory

OLD = Path(__file__).parents[1] / "version1"
TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor([True, False]),
    "c": torch.zeros(1, 0, 4, dtype=torch.bfloat16),
    "d": torch.tensor(7),
}
LORA = PlainLoRA(
    {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]},
    {f"model.layers.0.self_attn.q_proj.lora_{side}.weight": torch.randn(2, 2) for side in "AB"},
    None,
)
ADAPTER = SavedAdapter(CCMConfig(base_fingerprint="ab"), {"comp_embeddings.weight": torch.randn(2, 8)}, LORA)

pytestmark = pytest.mark.usefixtures("one_thread")


def read(path: Path, **options: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return read_file(path, "ccm_memory", MemoryFileError, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of tensors."""
    write_file(tmp_path / "a", "ccm_memory", TENSORS, {"x": [1, 2.5, "\u00e9"], "y": {"z": None}})
    return tmp_path / "a"


def test_tensors_and_manifest_come_back(path: Path) -> None:
    tensors, manifest = read(path)
    assert manifest == {"format_version": 2, "x": [1, 2.5, "\u00e9"], "y": {"z": None}}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor, tensors[name])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 1 << 30))
def test_a_flipped_bit_anywhere_is_refused(path: Path, place: int) -> None:
    whole = path.read_bytes()
    byte, bit = divmod(place % (8 * len(whole)), 8)
    path.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :])
    with pytest.raises(MemoryFileError):
        read(path)
    path.write_bytes(whole)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(range(4)), st.integers(0, 1 << 30))
def test_a_flipped_bit_in_any_file_of_an_adapter_is_refused(
    tmp_path_factory: pytest.TempPathFactory, number: int, place: int
) -> None:
    folder = tmp_path_factory.mktemp("adapter")
    write_adapter(ADAPTER, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 4
    whole = files[number].read_bytes()
    byte, bit = divmod(place % (8 * len(whole)), 8)
    files[number].write_bytes(whole[:byte] + bytes([whole[byte] ^ 1 << bit]) + whole[byte + 1 :])
    try:
        found = read_adapter(folder)
    except CCMError:
        return
    found = replace(found, config=replace(found.config, base_model=""))  # a hint, which may be changed
    assert found.config == ADAPTER.config
    assert found.stage1 is not None
    assert digest(found.tensors, found.stage1.settings) == digest(ADAPTER.tensors, LORA.settings)
    assert digest(found.stage1.tensors, {}) == digest(LORA.tensors, {})


@pytest.mark.parametrize("name", ["ccm_config.json", "ccm_adapter.safetensors", "base_adapter"])
def test_files_of_two_adapters_are_no_adapter(tmp_path: Path, name: str) -> None:
    other = replace(
        ADAPTER,
        config=replace(ADAPTER.config, recurrent=False),
        stage1=replace(LORA, settings={**LORA.settings, "lora_alpha": 4}),
    )
    write_adapter(ADAPTER, tmp_path / "one")
    write_adapter(other, tmp_path / "other")
    target = tmp_path / "one" / name
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    (tmp_path / "other" / name).rename(target)
    with pytest.raises(AdapterError, match=r"not saved together|not copied whole"):
        read_adapter(tmp_path / "one")


def test_the_place_of_an_adapters_base_may_be_changed_by_hand(tmp_path: Path) -> None:
    write_adapter(ADAPTER, tmp_path)
    values = json.loads((tmp_path / "ccm_config.json").read_text())
    save_json(tmp_path / "ccm_config.json", {**values, "base_model": "elsewhere"})
    assert read_adapter(tmp_path).config.base_model == "elsewhere"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format_version", 3, "version 3; this ccm reads versions 1 to 2. It was written by a newer one: update ccm"),
        ("format_version", "2", "version 2; this ccm reads"),
        ("format_version", 1, None),
        ("base_adapter", "/first", "names '/first' as its stage-1 adapter"),
    ],
)
def test_settings_of_another_version_are_refused(tmp_path: Path, key: str, value: Any, message: str | None) -> None:
    write_adapter(ADAPTER, tmp_path)
    values = json.loads((tmp_path / "ccm_config.json").read_text())
    save_json(tmp_path / "ccm_config.json", {**values, key: value})
    if message is None:  # the tensors tell which settings are theirs
        read_adapter(tmp_path)
        return
    with pytest.raises(AdapterError, match=message):
        read_adapter(tmp_path)


def test_settings_of_version_2_are_not_those_of_tensors_of_version_1(tmp_path: Path) -> None:
    write_adapter(ADAPTER, tmp_path)
    save_file(ADAPTER.tensors, tmp_path / "ccm_adapter.safetensors")
    with pytest.raises(AdapterError, match="was not saved with the tensors beside it"):
        read_adapter(tmp_path)


def test_the_settings_of_an_adapter_are_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a folder that is half written has none, or those that no longer fit."""

    def stop(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ccm.engine.adapter_files.write_file", stop)
    with pytest.raises(AdapterError, match="cannot be written.*No space left"):
        write_adapter(ADAPTER, tmp_path / "new")
    assert not (tmp_path / "new" / "ccm_config.json").exists()
    monkeypatch.undo()
    write_adapter(ADAPTER, tmp_path / "old")
    monkeypatch.setattr("ccm.engine.adapter_files.save_json", stop)
    other = replace(ADAPTER, config=replace(ADAPTER.config, sink=True), stage1=None)
    with pytest.raises(AdapterError, match="cannot be written"):
        write_adapter(other, tmp_path / "old")
    with pytest.raises(AdapterError, match="not saved together"):
        read_adapter(tmp_path / "old")


def write_often(folder: Path, number: int) -> None:
    adapter = SavedAdapter(CCMConfig(n_tok=number), {"comp_embeddings.weight": torch.full((number, 8), 1.0)}, LORA)
    for _ in range(20):
        write_adapter(adapter, folder)


def test_savers_and_readers_of_an_adapter_neither_crash_nor_mix(tmp_path: Path) -> None:
    write_often(tmp_path, 1)
    fork = multiprocessing.get_context("fork")
    savers = [fork.Process(target=write_often, args=(tmp_path, number), daemon=True) for number in (2, 3)]
    for saver in savers:
        saver.start()
    while any(saver.is_alive() for saver in savers):
        found = read_adapter(tmp_path)
        assert len(found.tensors["comp_embeddings.weight"]) == found.config.n_tok
    assert [saver.exitcode for saver in savers] == [0, 0]


def test_an_adapter_keeps_the_signs_of_its_base(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path)
    saved = read_adapter(tmp_path)
    assert saved.tensors.keys() == model.adapter_tensors().keys()
    assert saved.base_signs is not None
    assert torch.equal(saved.base_signs, pack_signs(sample_signs(tiny_base())))
    assert (saved.base_signs.dtype, saved.base_signs.ndim) == (torch.uint8, 1)
    assert len(saved.base_signs) <= 8192


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("[" * 100_000, "damaged"),
        ('{"format_version": 2, "x": ' + "[" * 200 + "]" * 200 + "}", "deeper"),
        ('{"format_version": ' + "2" * 5000 + "}", "damaged"),
        ('{"format_version": ' + "2" * 4000 + "}", "newer"),
        ('{"format_version": 2}', "does not hold what was written"),
        ('{"format_version": 2, "digest": 3}', "does not hold what was written"),
    ],
)
def test_a_bomb_in_a_manifest_is_an_error_of_ours(tmp_path: Path, manifest: str, message: str) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "a", {"ccm_memory": manifest})
    with pytest.raises(MemoryFileError, match=message):
        read(tmp_path / "a")


def test_tensors_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    """A file may claim more than there is memory, and have holes for it."""
    size = 10**12
    header: dict[str, Any] = {"__metadata__": {"ccm_memory": json.dumps({"format_version": 1})}}
    header["a"] = {"dtype": "I64", "shape": [size // 8], "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    with (tmp_path / "a").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        try:
            file.truncate(8 + len(text) + size)
        except OSError:
            pytest.skip("no file may be of a terabyte here")

    def check(manifest: dict[str, Any], stated: dict[str, Any]) -> None:
        assert stated == {"a": ("int64", (size // 8,))}
        raise MemoryFileError("not wanted")

    with pytest.raises(MemoryFileError, match="not wanted"):
        read(tmp_path / "a", check=check)


def test_a_file_of_another_kind_says_of_which(path: Path) -> None:
    with pytest.raises(CCMError, match="holds a memory, as of a chat .*; wanted is a checkpoint of a training"):
        read_file(path, "ccm_checkpoint", CCMError)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "\n", '{"messages": []}\n', "My name is Anna. " * 9])
def test_a_file_of_another_format_is_told_as_none_of_the_kind(tmp_path: Path, kind: str, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(
        CCMError, match=f"a.jsonl is no whole file of {KINDS[kind]}: it is not of the format safetensor"
    ):
        read_file(tmp_path / "a.jsonl", kind, CCMError)


# Version 1, as its code wrote it -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def builtin() -> CCMModel:
    model, _ = ccm.load("builtin", device="cpu", dtype="bfloat16")
    return model


def test_memories_of_version_1_are_read(builtin: CCMModel) -> None:
    found = builtin.load_memory(OLD / "memory.safetensors")
    again = builtin.compress(builtin.empty_memory(), torch.tensor([[5, 6, 7, 8]]))
    assert (found.entries, found.steps) == (again.entries, again.steps)
    for one, other in zip((*found.keys, *found.values), (*again.keys, *again.values), strict=True):
        assert_close(one.float(), other.float(), dtype=torch.float16)


def test_streams_of_version_1_are_read(builtin: CCMModel) -> None:
    stream = StreamingMemory.load(OLD / "stream.safetensors", builtin)
    assert (stream.tokens, stream.entries) == (2, 2)
    assert stream.feed(torch.tensor([[6]])).isfinite().all()


def test_memories_of_encoder_decoders_of_version_1_are_read() -> None:
    made = json.loads(read_metadata(OLD / "encoder_memory.safetensors")["ccm_encoder_memory"])
    origin = Origin(CCMConfig.from_dict(made["config"]), made["base"], made["adapter"])
    found = EncoderMemory.load(OLD / "encoder_memory.safetensors", origin)
    assert (found.entries, found.tokens, len(found.keys)) == ((1,), (3,), 3)


def test_adapters_of_version_1_are_read(tmp_path: Path) -> None:
    shutil.copytree(OLD / "adapter", tmp_path / "a")
    found = read_adapter(tmp_path / "a")
    assert (found.config.base_model, found.config.base_vocab_size, found.base_signs) == ("somewhere", 10, None)
    assert found.tensors["comp_embeddings.weight"].shape == (2, 8)
    assert found.stage1 is not None
    write_adapter(found, tmp_path / "b")
    again = read_adapter(tmp_path / "b")
    assert digest(again.tensors, again.config.to_dict()) == digest(found.tensors, found.config.to_dict())
    (tmp_path / "a" / "base_adapter" / "adapter_config.json").unlink()
    with pytest.raises(AdapterError):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize("change", [lambda t: t["keys.0"].add_(1), lambda t: t["mask"].logical_not_()])
def test_what_was_written_anew_has_its_digest(builtin: CCMModel, tmp_path: Path, change: Callable[[dict], Any]) -> None:
    """Files of version 1 have none; what is loaded from one and saved again has."""
    path = tmp_path / "a"
    builtin.load_memory(OLD / "memory.safetensors").save(path)
    builtin.load_memory(path)
    tensors, metadata = load_tensors(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(MemoryFileError, match=r"does not hold what was written"):
        builtin.load_memory(path)
    rewrite(path, lambda tensors, manifest: None)
