"""The command line: ``python -m conformance DIR``."""

from __future__ import annotations

import argparse
from pathlib import Path

from ccm.cli.console import ending, quiet
from conformance import GROUPS, run


def main() -> None:
    """Run the checks; the exit status is 1 if anything differs, is absent, or was not checked."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("goldens", type=Path, help="folder of recorded numbers")
    parser.add_argument("--group", choices=list(GROUPS), action="append", help="only this group (repeatable)")
    arguments = parser.parse_args()
    if not arguments.goldens.is_dir():
        parser.error(f"there is no folder {arguments.goldens}")
    quiet()
    raise SystemExit(0 if run(arguments.goldens, arguments.group or list(GROUPS)) else 1)


if __name__ == "__main__":
    with ending():
        main()
