"""Whether to multiply matrices in bfloat16: on some processors that is twice as fast as float32, on others half."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.functional import linear

ROWS, TRIES, WORTH = 1024, 8, 1.2  # of the matrices that are multiplied; below so many times as fast it is left


def bfloat16_speed(width: int, inner: int, device: torch.device) -> float:
    """How many times as fast as in float32 a device multiplies matrices in bfloat16, the weights' rounding included.

    Args:
        width: of the model.
        inner: width within its MLP.
        device: where it lives.
    """
    x, weight = (torch.ones(rows, width, device=device) for rows in (ROWS, inner))

    ways = (lambda: linear(x, weight), lambda: linear(x.bfloat16(), weight.bfloat16()))
    times = [[_seconds(way, device) for way in ways] for _ in range(TRIES)]  # by turns: others may be at work here
    whole, half = map(min, zip(*times, strict=True))
    return whole / half


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
