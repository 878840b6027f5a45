"""How sure the order of methods is: their differences and recovered gains, over the questions drawn anew.

    python -m reproductions.certainty DIR...

The folders are outputs of ``ccm evaluate`` on the same questions, one a seed of adapters; a method's value at a
question is the mean over those that have it. Questions are drawn with replacement, as many as there are.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ccm.cli.console import ending
from ccm.core.errors import DataError
from ccm.evaluation.results import read_run

ORDER = ("none", "gist-online", "merge", "gate", "concat", "full")
DRAWS, LEVEL = 5_000, 95  # times that questions are drawn; per cent of them within a range

Values = NDArray[np.float64]


def read_seeds(
    folders: Sequence[Path], step: int, also: Mapping[str, Sequence[Path]] | None = None
) -> tuple[dict[str, Values], Values]:
    """Mean log-likelihoods a token, methods to (seeds, questions), and the tokens of the questions.

    Those of ``also`` are methods of their own, with that name before theirs: trained otherwise, under the same rules.

    Raises:
        DataError: when a folder holds no whole evaluation, nothing of the step is there, or questions differ.
    """
    named = {"": folders, **(also or {})}
    read = ((name, result) for name, places in named.items() for place in places for result in read_run(place))
    there = [(name, result) for name, result in read if result.line.depth == step]
    if not there:
        raise DataError(f"Nothing was measured at step {step} in {', '.join(map(str, chain(*named.values())))}.")
    if len({(result.line.asked, *result.weights) for _, result in there}) > 1:
        raise DataError("The folders are of different questions; name those of one protocol, measured alike.")
    found: dict[str, list[Values]] = defaultdict(list)
    for name, result in there:
        found[f"{name} {result.line.method}".strip()].append(np.array(result.values))
    return {name: np.stack(seeds) for name, seeds in found.items()}, np.array(there[0][1].weights, dtype=float)


def drawn(tokens: Values, seed: int = 0) -> Values:
    """(draws, questions) the share of each question in a mean over tokens, first as they are, then drawn anew."""
    rng, count = np.random.default_rng(seed), len(tokens)
    times = np.stack([np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(DRAWS)])
    shares = np.concatenate([np.ones((1, count)), times]) * tokens
    return shares / shares.sum(1, keepdims=True)


def differences(methods: dict[str, Values], shares: Values, order: Sequence[str]) -> list[str]:
    """Rows of a table: of neighbours in the order, by how much the second is likelier."""
    rows = []
    for worse, better in pairwise(order):
        gains = shares @ (methods[better].mean(0) - methods[worse].mean(0))
        each = [float(shares[0] @ (one - methods[worse].mean(0))) for one in methods[better]]
        error = gains[1:].std()
        agree = sum(gain > 0 for gain in each)
        rows.append(
            f"| {worse}, {better} | {gains[0]:.3f} ± {error:.3f} | {gains[0] / error:.1f} | {agree} of {len(each)} |"
        )
    return rows


def recovered(methods: dict[str, Values], shares: Values, order: Sequence[str]) -> list[str]:
    """Rows of a table: of each method, the part of the gain from none to full, the range of it, and each seed's."""
    means = {name: shares @ seeds.mean(0) for name, seeds in methods.items()}
    whole = means["full"] - means["none"]
    rows = []
    for name in order:
        if name not in ("full", "none"):
            gains = 100 * (means[name] - means["none"]) / whole
            low, high = np.percentile(gains[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
            each = 100 * (methods[name] @ shares[0] - means["none"][0]) / whole[0]
            seeds = ", ".join(f"{gain:.0f}" for gain in each)
            rows.append(f"| {name} | {gains[0]:.0f} % | {low:.0f} to {high:.0f} % | {seeds} |")
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="outputs of evaluations, one a seed")
    parser.add_argument(
        "--also", nargs="+", action="append", default=[], metavar=("NAME", "DIR"), help="likewise, as 'NAME METHOD'"
    )
    parser.add_argument("--step", type=int, default=12)
    parser.add_argument("--order", nargs="+", default=[*ORDER], help="methods, the worst first")
    args = parser.parse_args()
    also = {name: [*map(Path, places)] for name, *places in args.also}
    methods, tokens = read_seeds(args.folders, args.step, also)
    if absent := {"none", "full", *args.order} - methods.keys():
        raise DataError(f"Not measured at step {args.step}: {', '.join(sorted(absent))}.")
    shares = drawn(tokens)
    print("| from, to | nats a token | in standard errors | seeds of the second above |\n| --- | --- | --- | --- |")
    print("\n".join(differences(methods, shares, args.order)))
    print(f"\n| recovered gain | mean | {LEVEL} % over questions | seeds |\n| --- | --- | --- | --- |")
    print("\n".join(recovered(methods, shares, args.order)))


if __name__ == "__main__":
    with ending():
        main()
