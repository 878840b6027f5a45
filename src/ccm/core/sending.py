"""Copies of tensors to the model's device that do not wait for the work that a CUDA device still has to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. A copy from pageable memory to CUDA does not wait for running kernels."""
    pageable = x.device.type == "cpu" and not x.is_pinned()  # a late copy from pinned memory could read newer values
    return x.to(device, non_blocking=pageable and device.type == "cuda")


def send_numbers(values: Sequence, device: torch.device) -> Tensor:
    """A tensor on a device, made from nested lists of integers (int64) or booleans."""
    return send(torch.tensor(values), device)
