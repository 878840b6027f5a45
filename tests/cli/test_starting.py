"""What needs no model imports no torch: lists, help and refusals come at once."""

from __future__ import annotations

import subprocess
import sys

LIGHT = (
    ["--version"],
    ["--help"],
    ["chat", "--help"],
    ["adapters", "list"],
    ["data", "list"],
    ["models", "list"],
    ["models", "show", "nowhere"],
    ["chat", "--model", "nowhere"],
    ["chat", "--model", "./nowhere"],
    ["demo", "--model", "./nowhere"],
    ["plan", "--help"],
    ["plan", "--model", "./nowhere"],
)
PROGRAM = """
import sys
from ccm.cli import main

for sys.argv in {calls}:
    try:
        main()
    except SystemExit:
        pass
    if found := {{"torch", "transformers", "peft"}} & sys.modules.keys():
        sys.exit(f"{{sys.argv}} imports {{sorted(found)}}")
"""


def test_lists_help_and_refusals_import_no_torch() -> None:
    program = PROGRAM.format(calls=[["ccm", *arguments] for arguments in LIGHT])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be loaded") == 4
