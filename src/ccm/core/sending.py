"""Tensors on their way to the model's device: the host goes on while a CUDA device still computes what it was given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. What is in pageable memory is copied at once, without a wait for what runs on CUDA."""
    pageable = x.device.type == "cpu" and not x.is_pinned()  # of pinned memory, the device may read what comes later
    return x.to(device, non_blocking=pageable and device.type == "cuda")


def send_numbers(values: Sequence, device: torch.device) -> Tensor:
    """Whole numbers or truth values, in lists of lists as of ``torch.tensor``, on a device."""
    return send(torch.tensor(values), device)
