"""Libraries that are too old, or have changed, are refused with their versions."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.version import Version

from ccm.core.errors import StackError
from ccm.engine import stack

ROOT = Path(__file__).resolve().parents[2]


def test_this_stack_is_accepted() -> None:
    stack.check_versions()
    stack.check_seams()
    stack.check_seams(stack.ENCODER_SEAMS)


def test_an_older_library_is_refused_with_what_is_there_and_what_is_needed(monkeypatch) -> None:
    there = {**stack.OLDEST, "transformers": "5.2.0", "torch": "2.11.0+cpu"}
    monkeypatch.setattr(stack, "version", there.__getitem__)
    with pytest.raises(StackError, match=r"at least transformers 5\S+; installed: torch 2.11.0\+cpu, .*5.2.0,"):
        stack.check_versions()
    monkeypatch.setattr(stack, "version", {**there, "transformers": "10.0.0.dev0"}.__getitem__)
    stack.check_versions()


def test_encoder_decoders_need_a_newer_transformers_than_the_rest(monkeypatch) -> None:
    there = {**stack.OLDEST, "transformers": "5.19.0"}
    monkeypatch.setattr(stack, "version", there.__getitem__)
    stack.check_versions()
    with pytest.raises(StackError, match=r"T5 needs at least transformers 5.20.0; installed: .*5.19.0,"):
        stack.check_encoders()


@pytest.mark.parametrize(
    ("seam", "message"),
    [
        (("transformers", "AttentionInterface.enroll", ()), "AttentionInterface.enroll is not there any more; .*peft"),
        (("transformers.nowhere", "thing", ()), "transformers.nowhere.thing is not there"),
        (("transformers", "DynamicCache.update", ("layer_idx", "depth")), "does not take depth any more; .*torch"),
    ],
)
def test_a_seam_that_is_gone_is_named_with_the_versions(seam: tuple, message: str) -> None:
    with pytest.raises(StackError, match=message):
        stack.check_seams((*stack.SEAMS, seam))


def test_the_oldest_versions_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    declared = dict(found.groups() for line in lines if (found := re.match(r"([\w-]+)>=([\d.]+)", line)))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-oldest.txt").read_text(), re.M))
    makefile = (ROOT / "Makefile").read_text()
    assert f"T5 := {stack.ENCODER_OLDEST['transformers']}\n" in makefile
    for name, least in stack.OLDEST.items():
        assert pinned[name] == least
        assert Version(declared[name]) == Version(least)
