"""Whether to multiply matrices in bfloat16: some processors do so twice as fast as in float32, others half as fast."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

ROWS, TRIES = 1024, 8
WORTH = 1.2  # the smallest speed-up for which mixed precision is turned on


def bfloat16_speed(width: int, inner: int, device: torch.device) -> float:
    """Measure how many times faster a device multiplies matrices in bfloat16 than in float32.

    The time in bfloat16 includes the rounding of the weights.

    Args:
        width: the hidden size of the model.
        inner: the width of its MLP.
        device: the device to measure.
    """
    x, weight = (torch.ones(rows, width, device=device) for rows in (ROWS, inner))
    products = (lambda: linear(x, weight), lambda: linear(x.bfloat16(), weight.bfloat16()))
    times = [[_seconds(p, device) for p in products] for _ in range(TRIES)]  # alternate: other processes may interfere
    float32, bfloat16 = map(min, zip(*times, strict=True))
    return float32 / bfloat16


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
