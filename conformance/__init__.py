"""Conformance: compares results of ccm with numbers recorded from the authors' code. ``python -m conformance DIR``.

One function checks each group of a goldens folder: it yields (case, differences by quantity). :data:`TOLERANCE` has the
largest difference allowed for each quantity; 0 demands equality.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from conformance.adapters import check_adapters
from conformance.data import check_data
from conformance.goldens import Goldens, Group, raise_to
from conformance.metrics import check_metrics
from conformance.online import check_interact, check_recursive
from conformance.parallel import check_grads, check_parallel, check_train
from conformance.stream import check_stream
from conformance.t5 import check_t5

TOLERANCE = {
    "layout": 0.0,
    "mask": 0.0,
    "greedy": 0.0,
    "offset": 0.0,
    "mixing": 1e-6,
    "embedding": 1e-6,
    "parameter": 1e-5,
    "unsettled": 2e-3,  # the share of elements that is not compared
    "loss": 2e-5,
    "gradient": 1e-4,
    "logits": 2e-4,
    "hidden": 2e-4,
    "kv": 2e-4,
    "log-likelihood": 1e-3,
    "figure": 1e-6,
    "relative figure": 1e-5,
    "nll": 2e-4,
    "length": 0.0,
    "compressions": 0.0,
}

GROUPS: dict[str, Group] = {
    "parallel": check_parallel,
    "grads": check_grads,
    "train": check_train,
    "recursive": check_recursive,
    "interact": check_interact,
    "stream": check_stream,
    "t5": check_t5,
    "adapters": check_adapters,
    "data": check_data,
    "metrics": check_metrics,
}


def run(folder: Path, groups: list[str]) -> bool:
    """Check the groups and print a line for each; return whether all passed."""
    goldens, passed, checked = Goldens(folder), True, 0
    print(f"{'group':<10} {'cases':>5}  {'largest differences':<76} result")
    for name in groups:
        check = GROUPS[name]
        worst: dict[str, float] = defaultdict(float)
        failures, cases = [], 0
        try:
            for case, differences in check(goldens):
                cases += 1
                raise_to(worst, differences)
                if not differences:
                    failures.append(f"{case}: nothing was compared")
                failures += [
                    f"{case}: {q} {d:.3g} > {TOLERANCE[q]:g}"
                    for q, d in differences.items()
                    if not d <= TOLERANCE[q]  # catches NaN too
                ]
        except FileNotFoundError as error:
            failures.append(f"absent file: {error.filename or error}")
        except KeyError as error:
            failures.append(f"absent from the manifest, the recorded arrays or the model: {error}")
        if not cases:
            failures.append("no case was checked")
        passed &= not failures
        checked += cases
        largest = ", ".join(f"{quantity} {difference:.2g}" for quantity, difference in worst.items())
        print(f"{name:<10} {cases:>5}  {largest:<76} {'FAILED' if failures else 'passed'}", flush=True)
        for failure in failures:
            print(f"           {failure}")
    return passed and checked > 0
