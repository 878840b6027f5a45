"""What the reproductions share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ccm.core.adapter_folders import read_config
from reproductions.parts import train_part


def test_a_part_is_trained_once_shows_how_it_goes_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = [{"role": role, "content": text} for _ in range(3) for role, text in (("user", "Hi!"), ("assistant", "Ah."))]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": talk}))
    places = ("model=builtin", f"data.path={tmp_path / 'chats.jsonl'}")
    changes = ("max_steps=2", "batch_size=2", "log_every=1", "mixed_precision=false")
    folder = train_part("custom", "here", "compress", tmp_path / "out", places, changes)
    assert read_config(folder).rule == "concat"
    assert [line.split("  ")[0] for line in capsys.readouterr().err.splitlines() if line.startswith("here: ")] == [
        "here: step 1/2",
        "here: step 2/2",
    ]
    written = (folder / "ccm_adapter.safetensors").stat().st_mtime_ns
    assert train_part("custom", "here", "compress", folder, places, changes) == folder
    assert (folder / "ccm_adapter.safetensors").stat().st_mtime_ns == written
    (folder / "ccm_config.json").unlink()  # as if it had been broken off
    train_part("custom", "here", "compress", folder, places, changes)
    assert read_config(folder).rule == "concat"
