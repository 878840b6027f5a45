"""The benchmark beside the authors' code: what it does where they are not there, or compute something else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import authors
from benchmarks.common import Options


def test_a_side_that_does_not_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No module named torch >&2\n")
    python.chmod(0o755)
    with pytest.raises(RuntimeError, match="No module named torch"):
        authors.run(tmp_path, str(python), Options(rounds=1, warmup=0), only="first token, concat N=2, chat")


@pytest.mark.parametrize("theirs", [[1.0, 2.1], [1.0, float("nan")]])
def test_nothing_is_timed_where_both_sides_compute_different_things(theirs: list[float]) -> None:
    with pytest.raises(AssertionError, match="reply: the two sides differ"):
        authors._check("reply", (lambda: None, lambda _: [1.0, 2.0]), theirs)
