"""A small sample of LongMemEval, as another project has it, in the benchmark's own format.

    python -m reproductions.longmemeval --data DIR --output FILE
    ccm evaluate longmemeval --data FILE ...

DIR holds ``longmemeval-sample`` (MIT): 16 questions, each with the sessions that hold its evidence and no others, and
without a date of its own. So a question gets the date of its latest session, and all its sessions count as evidence.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ccm.cli.console import ending
from ccm.core.files import save_json

SAMPLE = "longmemeval-sample/longmemeval_oracle_sample.json.gz"


def original(item: Mapping[str, Any]) -> dict[str, Any]:
    """A question of the sample as the benchmark's files have it."""
    sessions = [(date, [*said]) for date, said in groupby(item["conversation"], key=lambda message: message["date"])]
    names = [f"session {number}" for number in range(1, len(sessions) + 1)]
    (asked,) = item["questions"]
    return {
        "question_id": item["id"],
        "question_type": item["question_type"],
        "question": asked["question"],
        "answer": asked["answer"],
        "question_date": max(date for date, _ in sessions),
        "haystack_dates": [date for date, _ in sessions],
        "haystack_session_ids": names,
        "haystack_sessions": [said for _, said in sessions],
        "answer_session_ids": names,
    }


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets with free licences")
    parser.add_argument("--output", type=Path, default=Path("runs/longmemeval.json"), help="file to write")
    args = parser.parse_args()
    with gzip.open(args.data / SAMPLE, "rt", encoding="utf-8") as file:
        items = json.load(file)["data"]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_json(args.output, [*map(original, items)])


if __name__ == "__main__":
    with ending():
        main()
