"""What an evaluation during training measured, over the steps: one line a run, from their ``log.jsonl``.

python -m benchmarks.curves RUN [RUN ...] --what recall --output docs/images/curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from ccm.core.files import write_atomically


def points(run: Path, what: str) -> list[tuple[int, float]]:
    """Step and value of every evaluation of a run."""
    records = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [(record["step"], record[f"eval_{what}"]) for record in records if f"eval_{what}" in record]


def main() -> None:
    """Draw the curves of the runs given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output directories of ccm train")
    parser.add_argument("--what", default="recall", help="such as recall, or the name of a loss")
    parser.add_argument("--output", type=Path, default=Path("curves.png"), help="the PNG to write")
    args = parser.parse_args()
    figure = Figure(figsize=(6.4, 3.8))
    axes = figure.subplots()
    for run in args.runs:
        axes.plot(*zip(*points(run, args.what), strict=True), marker="o", label=run.name)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel(args.what)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_atomically(args.output, lambda p: figure.savefig(p, format="png", dpi=150, bbox_inches="tight"))


if __name__ == "__main__":
    main()
