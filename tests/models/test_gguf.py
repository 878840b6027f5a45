"""GGUF files as bases: transformers reads them once, and a copy is kept in the cache."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from tokenizers_made import CHATML
from transformers import AutoModelForCausalLM

import ccm
from ccm.cli.console import quiet
from ccm.core.errors import ConfigError
from ccm.models import gguf
from ccm.models.base import load_base

WORDS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz.?", "\u0120", "\u010a", "ab", "ba"]


def write_gguf(path: Path, seed: int = 0) -> Path:
    """A Llama of two layers, in float32."""
    written = pytest.importorskip("gguf", reason="GGUF files are read and written by the package gguf")
    sizes = {"hidden": 16, "heads": 4, "kv": 2, "inner": 24, "layers": 2}
    writer = written.GGUFWriter(path, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(sizes["hidden"])
    writer.add_block_count(sizes["layers"])
    writer.add_feed_forward_length(sizes["inner"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes["kv"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(4)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 4 + [1] * (len(WORDS) - 4))
    writer.add_token_merges(["a b", "b a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(3)
    writer.add_chat_template(CHATML)
    chance, half = torch.Generator().manual_seed(seed), sizes["hidden"] // 2
    shapes = {"token_embd": (len(WORDS), 16), "output_norm": (16,), "output": (len(WORDS), 16)}
    for layer in range(sizes["layers"]):
        names = {"attn_q": (16, 16), "attn_k": (half, 16), "attn_v": (half, 16), "attn_output": (16, 16)}
        names |= {"ffn_gate": (24, 16), "ffn_up": (24, 16), "ffn_down": (16, 24), "attn_norm": (16,), "ffn_norm": (16,)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", torch.randn(shape, generator=chance).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CCM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_file_a_folder_and_its_copy_are_one_model(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    ids = torch.tensor([[4, 5, 6, 7]])
    with caplog.at_level(logging.WARNING):
        model, tokenizer = ccm.load(file, rule="full", device="cpu")
    assert "Converting tiny.gguf once" in caplog.text
    with torch.no_grad():
        assert model.base(ids).logits.equal(stock(ids).logits)
    assert tokenizer.chat_template == CHATML
    assert model.config.turns.template == "chat"
    monkeypatch.setattr(gguf, "dequantize", lambda *_: pytest.fail("the copy is there"))
    again, _ = ccm.load(tmp_path, rule="full", device="cpu")
    assert again.base_id == model.base_id
    assert [path.name[:5] for path in (cache / "gguf").iterdir()] == ["tiny-"]


def test_a_file_on_the_hub_is_that_of_the_revision(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = write_gguf(tmp_path / "tiny.gguf"), []

    def download(repository: str, name: str, **options: object) -> str:
        asked.append((repository, name, options))
        return str(file)

    monkeypatch.setattr(gguf, "hf_hub_download", download)
    ccm.load("owner/name/tiny.gguf", rule="full", device="cpu", base_revision="v1", local_files_only=True)
    options = {"revision": "v1", "local_files_only": True}
    assert asked == [("owner/name", "tiny.gguf", options)] * 2, "the model and its tokenizer"


def test_another_file_of_the_same_name_is_another_copy(tmp_path: Path, cache: Path) -> None:
    first = gguf.copy_of(write_gguf(tmp_path / "tiny.gguf"))
    second = gguf.copy_of(write_gguf(tmp_path / "tiny.gguf", seed=1))
    assert first != second
    assert first.parent == second.parent == cache / "gguf"


def test_files_that_differ_in_their_midst_alone_are_two(tmp_path: Path) -> None:
    file, other = tmp_path / "a.gguf", tmp_path / "b.gguf"
    edge = bytes(2 << 20)
    file.write_bytes(edge + b"a" * (12 << 20) + edge)
    other.write_bytes(edge + b"b" * (12 << 20) + edge)
    assert gguf._identity(file) != gguf._identity(other)


def test_no_copy_is_made_to_refuse_a_rule_that_needs_an_adapter(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"The rule 'concat' needs an adapter for .*tiny\.gguf"):
        ccm.load(write_gguf(tmp_path / "tiny.gguf"), rule="concat")
    assert not cache.exists()


def test_the_reader_draws_no_bar_between_the_lines_of_a_command(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet()
    gguf.copy_of(write_gguf(tmp_path / "tiny.gguf"))
    assert "it/s" not in capsys.readouterr().err


def test_the_ending_may_be_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "A.GGUF").write_bytes(b"x")
    assert gguf.gguf_file(tmp_path) == tmp_path / "A.GGUF"


def test_places_that_name_no_one_file(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"a\.gguf, b\.gguf.*name one"):
        gguf.gguf_file(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert gguf.gguf_file(tmp_path) is None, "a folder with a model of transformers is that"
    assert gguf.gguf_file("org/name") is None
    assert gguf.gguf_file("org/name/a.gguf") == "org/name/a.gguf"
    assert gguf.gguf_file("folder/a.gguf") == Path("folder/a.gguf")


def test_what_cannot_be_read_is_refused_and_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="There is no file"):
        load_base(tmp_path / "absent.gguf")
    pytest.importorskip("gguf", reason="GGUF files are read and written by the package gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF, so to speak")
    with pytest.raises(ConfigError, match="cannot be read as a GGUF model"):
        load_base(tmp_path / "bad.gguf")
    assert not [*(cache / "gguf").iterdir()]


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "hf_hub_download", lambda *_: pytest.fail("nothing is downloaded in vain"))
    for source in (tmp_path / "a.gguf", "owner/name/a.gguf"):
        with pytest.raises(ConfigError, match="pip install gguf"):
            load_base(source)
