"""Fusing a stage-1 adapter into its base for good: the result is one model, which can be quantized."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ccm.core.adapter_folders import base_of, find_adapter
from ccm.core.errors import AdapterError
from ccm.core.files import make_atomically, writing
from ccm.engine.adapter_files import (
    BaseFacts,
    SavedAdapter,
    check_base,
    check_fit,
    read_adapter,
    write_adapter,
)
from ccm.engine.fingerprint import effective_settings, fingerprint_base, pack_signs, sample_signs
from ccm.engine.lora import merge_stage1
from ccm.models.base import load_base
from ccm.models.load import load_tokenizer

BASE = "base"  # the folder of the fused model, within the adapter's folder


def fuse_adapter(adapter: str | Path, output: str | Path, base: str | None = None) -> Path:
    """Write a copy of an adapter with its base, whose weights then include the stage-1 adapter; returns ``output``.

    OUTPUT/  ccm_config.json  ccm_adapter.safetensors  base/      base: the whole model and its tokenizer

    The base keeps the dtype of its files.

    Args:
        adapter: the folder or Hub id of the adapter.
        output: the folder to make.
        base: the folder or Hub id of the base. None uses the base that the adapter names.

    Raises:
        AdapterError: if the adapter is absent or damaged, has no stage-1 adapter, or belongs to another base; or if
            ``output`` already exists or cannot be written.
        ConfigError: if the base cannot be loaded.
    """
    folder, output = find_adapter(adapter), Path(output)
    saved = read_adapter(folder)
    if saved.stage1 is None:
        raise AdapterError(f"{adapter} has no stage-1 adapter to merge; use it as it is.")
    if output.exists():
        raise AdapterError(f"{output} already exists; name a new folder.")
    stock = load_base(base or base_of(folder, saved.config), device_map="cpu")
    check_fit(saved.tensors, stock, str(adapter))
    vocab_size = stock.get_input_embeddings().weight.shape[0]
    signs, settings = sample_signs(stock), effective_settings(stock.config.get_text_config())
    base_id = fingerprint_base(stock, saved.stage1.fingerprint, signs)
    facts = BaseFacts(stock.name_or_path, base_id, vocab_size, pack_signs(signs), settings)
    check_base(saved, facts, str(adapter))
    tokenizer = load_tokenizer(stock.name_or_path)
    merged = merge_stage1(stock, saved.stage1)
    signs = sample_signs(merged)
    base_id = fingerprint_base(merged, signs=signs)
    config = replace(saved.config, base_model=BASE, base_fingerprint=base_id, base_vocab_size=vocab_size)

    def write(into: Path) -> None:
        merged.save_pretrained(into / BASE)
        tokenizer.save_pretrained(into / BASE)
        write_adapter(SavedAdapter(config, saved.tensors, None, pack_signs(signs), settings), into)

    with writing(output, AdapterError, "Name another output."):
        make_atomically(output, write)
    return output
