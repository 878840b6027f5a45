"""The folder of results: which file is whose, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path

import pytest

from ccm.core.errors import ConfigError, DataError
from ccm.evaluation.results import SCORES, Measurement, Result, build_result, read_run
from ccm.evaluation.store import ResultStore

LINE = {field.name: field.name for field in fields(Measurement)}
RESULT = Result(Measurement(**LINE), [-1.0], [2], [""], [-2.0], [None])


def test_a_file_is_that_of_its_method_and_of_all_that_its_result_depends_on(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, SCORES, build_result)
    path = store.path("concat (a/b)", 12, {"depth": 12, "place": Path("x")})
    assert path == tmp_path / "scores" / "concat-a-b--12-b8ed58626aaf.json"  # version 0.1 gave it the same name
    assert store.path("concat (a/b)", 12, {"depth": 12, "place": Path("y")}) != path
    assert store.read(path) is None
    store.write(path, RESULT)
    assert store.read(path) == RESULT


def test_without_a_folder_nothing_is_kept() -> None:
    store = ResultStore(None, SCORES, build_result)
    assert store.path("full", 1, {}) is None
    store.write(None, RESULT)
    store.write_lines("results.jsonl", [{}])
    assert store.read(None) is None


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    old = {name: value for name, value in asdict(RESULT).items() if name not in ("nats", "others")}
    del old["line"]["vocab_size"]
    (tmp_path / SCORES).mkdir()
    (tmp_path / SCORES / "full-1-0.json").write_text(json.dumps(old), encoding="utf-8")
    (tmp_path / "results.jsonl").write_text(json.dumps(old["line"]) + "\n", encoding="utf-8")
    (result,) = read_run(tmp_path)
    assert (result.values, result.nats, result.line.vocab_size) == ([-1.0], [], None)


def test_what_cannot_be_kept_or_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is a file; name a folder"):
        ResultStore(file, SCORES, build_result)
    with pytest.raises(DataError, match="delete it, and it is measured again"):
        ResultStore(tmp_path, SCORES, build_result).read(file)
