"""Settings of the whole suite: offline, deterministic, one thread unless OMP_NUM_THREADS says else."""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the same numbers everywhere; say CUDA_VISIBLE_DEVICES=0 for -m gpu
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import pytest
import torch
import typer.main
from hypothesis import HealthCheck, settings

gc.disable()  # until all tests are imported: little of that is garbage
settings.register_profile(
    "ccm",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=3,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("ccm")
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that fork: a pool of threads that the process had before is waited for there without end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Of a test with ``covers``, as many cases run by default as hold each combination of values once; others are slow.

    Each mark names parameters whose values are combined: ``covers("family attn", "rule")`` keeps each family with each
    kernel, and each rule; without names it keeps one case, or ``cases=N`` of them. Which case holds a combination is
    drawn by the name of the case, the same everywhere.
    """
    held, kept = set[tuple[Any, ...]](), Counter[tuple[Any, ...]]()
    for item in sorted(items, key=lambda item: sha256(item.nodeid.encode()).digest()):
        mark = item.get_closest_marker("covers")
        if mark is None:
            continue
        test, values = (item.path, item.originalname), item.callspec.params
        told = {(*test, names, *(repr(values[name]) for name in names.split())) for names in mark.args} | {test}
        if told <= held and kept[test] >= mark.kwargs.get("cases", 1):
            item.add_marker(pytest.mark.slow)
        else:
            kept[test] += 1
        held |= told


def pytest_collection_finish() -> None:
    """What stands now, torch and transformers above all, stays, and need not be looked through again and again."""
    typer.main.get_command = cache(typer.main.get_command)  # once a process, as outside of tests
    gc.freeze()
    gc.enable()
