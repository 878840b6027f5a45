"""Throughput by the size of the memory, at the paper's setting: LLaMA-7B's shape, the largest batches that fit."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks import throughput
from benchmarks.common import Report
from benchmarks.gpu.order import Order


def run(order: Order) -> Iterator[Report]:
    """One table of all three memories."""
    size, most = order.size("7b"), 4 if order.rehearse else throughput.MOST
    model = throughput.make_model(size, order.device)
    rates = throughput.in_largest_batches(model, order.options(0.5), most)
    yield throughput.report(model, size, rates, f"the largest that fits, up to {most}")
