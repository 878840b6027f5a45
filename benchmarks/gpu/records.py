"""What a part found, as a JSON file that is whole at any time, and the summary of all files in a folder."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import Report, describe_machine, free
from benchmarks.gpu.order import MARGIN, Order, Part
from ccm.core.files import read_json, save_json, write_atomically

SUMMARY = "README.md"
UNFINISHED = "It did not end: what stands here was measured before."


class OverdueError(Exception):
    """A part took longer than it may."""


def measure(name: str, part: Part, order: Order, folder: Path) -> bool:
    """Run a part, and write what it finds as it finds it; returns whether it ended well.

    A part may fail in any way, of a library or the device, and must not take the others with it: the error stands in
    its file, beside what was measured before.
    """
    begun = time.monotonic()
    record: dict[str, Any] = {
        "part": name,
        "about": part.about,
        "machine": describe_machine(),
        "rehearsal": order.rehearse,
        "begun": datetime.now(UTC).isoformat(timespec="seconds"),
        "error": UNFINISHED,
        "reports": {},
    }

    def write() -> None:
        save_json(folder / f"{name}.json", record | {"seconds": round(time.monotonic() - begun, 1)})

    write()
    try:
        with _at_most(part.seconds + MARGIN):
            for report in part.run(replace(order, ends=begun + part.seconds)):
                record["reports"][report.title] = asdict(report)
                write()
        record["error"] = None
    except Exception as error:  # of whatever kind: it is written down, and the next part runs
        record["error"] = "".join(traceback.format_exception(error, limit=-3)).strip()
    write()
    free()
    return record["error"] is None


@contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Break off what takes longer, at the next line of Python."""

    def stop(*_: Any) -> None:
        raise OverdueError(f"It was broken off after {seconds:.0f} seconds.")

    kept = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, kept)


def write_summary(folder: Path) -> Path:
    """Write the tables of all parts whose files lie in the folder, whenever they were measured."""
    records = [read_json(path) for path in sorted(folder.glob("*.json"))]
    text = "# Measured\n\n" + "\n".join(map(_shown, records))
    write_atomically(folder / SUMMARY, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / SUMMARY


def _shown(record: dict[str, Any]) -> str:
    machine = ", ".join(f"{key} {value}" for key, value in record["machine"].items())
    small = " **A rehearsal at small size: the figures show only that everything runs.**" * record["rehearsal"]
    tables = [Report(**report).markdown() for report in record["reports"].values()]
    error = [f"It failed:\n\n```\n{record['error']}\n```\n"] if record["error"] else []
    when = f"{record['begun']}, {record['seconds']} seconds"
    return "\n".join([f"## {record['part']}: {record['about']}\n\n{when}; {machine}.{small}\n", *tables, *error])
