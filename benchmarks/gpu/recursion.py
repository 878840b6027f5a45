"""The recursion unrolled beside the parallel pass, and how often the unrolled pass waits for the device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import asdict

import torch

from benchmarks import models, unrolled
from benchmarks.common import FIGURES, Report, Subject, compare, mebibytes, peak_bytes, time_in_turns
from benchmarks.gpu.order import Order

SIZES = ("small", "1b")
SETTING = (
    f"{unrolled.SETTING.split(' Both must')[0]} On {{device}}, {{shape}}. Waits: how often the host waits for "
    f"the device in one unrolled loss of {unrolled.STEPS} steps. MiB are of the whole process at the peak."
)


def run(order: Order) -> Iterator[Report]:
    """A table of every size and rule, a row at a time; then loss and gradients are compared, in float32."""
    shape, rows, data, exact = unrolled.Shape(1, 12) if order.rehearse else unrolled.LARGE, [], [], []
    for size in dict.fromkeys(map(order.size, SIZES)):
        for rule, config in unrolled.RULES.items():
            model = models.with_random_adapter(models.ccm_model(config, size, order.device))
            losses = unrolled.losses_of(model, shape)
            if model.base.dtype == torch.float32:
                exact.append((model, losses))
            steps = {way: unrolled.step(model, loss) for way, loss in losses.items()}
            peaks = [peak_bytes(steps[way]) for way in (unrolled.UNROLLED, unrolled.PARALLEL)]
            waits = host_waits(losses[unrolled.UNROLLED])
            taken = time_in_turns({way: Subject(step) for way, step in steps.items()}, order.options(0.2))
            found = compare(taken, unrolled.UNROLLED, unrolled.PARALLEL)
            seen = "" if waits is None else str(waits)
            rows.append([f"{size}, {rule}", *found.figures(), *map(mebibytes, peaks), seen])
            data.append({"size": size, "rule": rule, **asdict(found), "peaks": peaks, "waits": waits})
            columns = ["", "ms unrolled", "ms parallel", *FIGURES[2:], "MiB unrolled", "MiB parallel", "waits"]
            setting = SETTING.format(device=order.device, shape=shape)
            yield Report("The recursion unrolled beside the parallel pass", setting, columns, rows, data)
    for model, losses in exact:
        unrolled.check_equal(model, losses)


def host_waits(loss: unrolled.Loss) -> int | None:
    """How often the host waits for the CUDA device while a loss is computed; None without one."""
    if not torch.cuda.is_available():
        return None
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loss()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)
