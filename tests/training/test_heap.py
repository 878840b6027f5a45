"""Free memory of a process goes back to the system."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch
from tiny_training import Tiny

from ccm.training import heap
from ccm.training.loop import train

STATUS, PIECES = Path("/proc/self/statm"), 3000


def resident() -> int:
    """Bytes of the process in memory."""
    return int(STATUS.read_text().split()[1]) * 4096


def on_glibc() -> bool:
    try:
        return STATUS.exists() and hasattr(ctypes.CDLL("libc.so.6"), "malloc_trim")
    except OSError:
        return False


@pytest.mark.skipif(not on_glibc(), reason="the system's library is another than glibc")
def test_what_is_free_between_pieces_in_use_is_given_back() -> None:
    pieces = [torch.ones(16_000) for _ in range(PIECES)]  # 64 KB each, of the heap
    kept = pieces[::100]
    del pieces
    gc.collect()
    before = resident()
    heap.trim()
    assert resident() < before - PIECES * 32_000
    assert all(bool((piece == 1).all()) for piece in kept)


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    heap.trim()


def test_a_training_gives_back_every_so_many_steps(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(heap, "EVERY", 2)
    monkeypatch.setattr(heap, "trim", lambda: calls.append(1))
    train(tiny.recipe(tmp_path / "out", max_steps=5))
    assert len(calls) == 3  # after steps 2 and 4, and the last
