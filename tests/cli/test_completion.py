"""Completion by the shell: commands, options and names, at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ccm.cli import completion
from ccm.core.rules import RULES
from ccm.models.catalogue import MODELS

SCRIPT = """
source <(ccm --show-completion bash)
complete -p ccm
for COMP_LINE in "ccm ev" "ccm chat --rule ga" "ccm train smol" "ccm chat --model ./"; do
    read -ra COMP_WORDS <<< "$COMP_LINE"
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _ccm_completion ccm
    echo "$COMP_LINE: ${COMPREPLY[*]}"
done
"""
PROGRAM = """
import os, sys
sys.argv = ["ccm"]
from ccm.cli import main

for words in ("ccm chat --model ", "ccm chat --rule ", "ccm train ", "ccm data prepare ", "ccm adapters download "):
    os.environ |= {"_CCM_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    try:
        main()
    except SystemExit:
        pass
sys.exit(", ".join({"torch", "transformers", "huggingface_hub"} & sys.modules.keys()) or 0)
"""


def test_names_are_completed_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {"builtin", "smollm2-135m", "llama-7b", "gate", "dialog", "dailydialog", "unified"} <= {*done.stdout.split()}


def test_all_rules_are_completed() -> None:
    assert {*completion.rules("")} == {*RULES}
    assert completion.rules("g") == ["gist", "gate"]


def test_models_to_fetch_are_completed() -> None:
    assert completion.fetched_models("") == [*MODELS]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "ccm").write_text(f'#!/bin/sh\nexec {sys.executable} -m ccm.cli "$@"\n')
    (tmp_path / "ccm").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SCRIPT], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "complete -o default -F _ccm_completion ccm",  # of files, where nothing of ours begins so
        "ccm ev: evaluate",
        "ccm chat --rule ga: gate",
        "ccm train smol: smollm2",
        "ccm chat --model ./: ",
    ]
