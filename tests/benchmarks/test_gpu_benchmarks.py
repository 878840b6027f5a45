"""The measurements for one GPU: every part runs at small size and leaves its figures, whatever becomes of others."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from helpers import tiny_model

from benchmarks.common import Report
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import adapters, bits, flex, order, pieces, records, trainings
from benchmarks.gpu.order import Order, Part
from ccm.core.errors import ConfigError
from ccm.engine.attention import ParallelPass
from ccm.training.recipe import load_recipe

TABLE = Report("A table", "What it shows.", ["", "ms"], [["this", "1.0"]], [{"ms": 1.0}])


@pytest.fixture
def small(tmp_path: Path) -> Order:
    return Order("cpu", rehearse=True, runs=tmp_path / "runs")


def part_that(then: Callable[[], object]) -> Part:
    """A part that measures something, and then does that."""

    def run(order: Order) -> Iterator[Report]:
        yield TABLE
        then()

    return Part(run, "tries", seconds=0.05)


@pytest.mark.parametrize(
    "name",
    [name if name in ("adapters", "bits") else pytest.param(name, marks=pytest.mark.slow) for name in command.PARTS],
)
def test_every_part_runs_at_small_size(name: str, small: Order, tmp_path: Path) -> None:
    assert records.measure(name, command.PARTS[name], small, tmp_path)
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["error"] is None
    assert found["rehearsal"] is True
    assert {"torch", "transformers", "processor"} <= found["machine"].keys()
    assert found["reports"]
    for title, report in found["reports"].items():
        assert report["title"] == title
        assert report["rows"]
        assert {len(row) for row in report["rows"]} == {len(report["columns"])}
        assert len(report["data"]) == len(report["rows"])


def test_a_part_that_fails_keeps_what_it_measured_and_lets_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = {"fails": part_that(lambda: 1 // 0), "works": part_that(lambda: None)}
    monkeypatch.setattr(command, "PARTS", parts)
    assert command.main(["--output", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "There is no CUDA device: this is a rehearsal" in out
    assert "Failed: fails" in err
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in parts}
    assert "ZeroDivisionError" in found["fails"]["error"]
    assert found["works"]["error"] is None
    assert found["fails"]["reports"] == found["works"]["reports"] != {}


def test_a_part_that_hangs_is_broken_off(small: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MARGIN", 0.05)
    kept = signal.getsignal(signal.SIGALRM)
    assert not records.measure("hangs", part_that(lambda: time.sleep(60)), small, tmp_path)
    assert "OverdueError" in json.loads((tmp_path / "hangs.json").read_text())["error"]
    assert signal.getsignal(signal.SIGALRM) is kept


def test_a_part_that_is_killed_leaves_what_it_measured(small: Order, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.measure("killed", part_that(stop), small, tmp_path)
    found = json.loads((tmp_path / "killed.json").read_text())
    assert found["error"] == records.UNFINISHED
    assert "A table" in found["reports"]


def test_every_part_ends_within_four_minutes() -> None:
    assert all(part.seconds + order.MARGIN <= 240 for part in command.PARTS.values())


def test_the_summary_is_of_all_parts_whenever_they_ran(small: Order, tmp_path: Path) -> None:
    records.measure("one", part_that(lambda: None), small, tmp_path)
    records.write_summary(tmp_path)
    records.measure("two", part_that(lambda: 1 // 0), small, tmp_path)
    text = records.write_summary(tmp_path).read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## one: tries", "## two: tries"]
    assert text.count("### A table") == 2
    assert text.count("ZeroDivisionError") == 1
    assert text.count("A rehearsal at small size") == 2


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["fluxes", "--output", str(tmp_path)])
    assert "fluxes" in capsys.readouterr().err


def test_a_training_ends_with_its_time_and_goes_on_from_there_elsewhere_too(tmp_path: Path) -> None:
    changes = ("model=builtin", *adapters.SMALL, "max_steps=3")

    def train(folder: str, left: float, start: Path | None = None) -> trainings.Trained:
        recipe = load_recipe("smollm2", [*changes, f"output_dir={tmp_path / folder}"], "base")
        asked = Order("cpu", rehearse=True, runs=tmp_path, ends=time.monotonic() + left)
        return trainings.train_for_a_while(recipe, asked, start)

    begun = train("here", left=0)
    assert (begun.first, begun.last) == (0, 1)
    (saved,) = trainings.checkpoints(tmp_path / "here")
    there = train("there", left=0, start=saved)
    assert (there.first, there.last) == (1, 2)
    ended = train("there", left=1000, start=saved)  # what is there counts
    assert (ended.first, ended.last) == (2, 3)
    assert ended.tokens > 0


def test_adapters_without_dialogues_are_refused_with_what_to_say(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--chats DIR"):
        next(adapters.run(Order("cuda", rehearse=False, runs=tmp_path)))


def test_a_library_that_is_absent_is_named(small: Order, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("torchao", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, library, None)
    table, *_ = bits.run(small)
    assert [row[0] for row in table.rows] == [bits.WHOLE]
    assert "needs torchao, not installed here" in table.setting


def test_the_pieces_of_a_file_make_it_whole(tmp_path: Path) -> None:
    file, there = tmp_path / "tiny.gguf", tmp_path / "there"
    file.write_bytes(bytes(range(256)) * (10 << 10))  # 2.5 MiB
    assert len(pieces.cut(file, there, mib=1)) == 3
    assert pieces.join_all(there) == [there / "tiny.gguf"]
    assert (there / "tiny.gguf").read_bytes() == file.read_bytes()
    assert adapters._model(str(there)) == str(there / "tiny.gguf")
    (there / "tiny.gguf.part-01").write_bytes(b"")
    assert pieces.join_all(there) == [there / "tiny.gguf"]  # it is whole already


@pytest.mark.parametrize("lost", ["tiny.gguf.part-01", "tiny.gguf.sha256"])
def test_pieces_that_are_not_all_there_make_no_file(lost: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(bytes(3 << 20))
    there = tmp_path / "there"
    pieces.cut(tmp_path / "tiny.gguf", there, mib=1)
    (there / lost).unlink()
    with pytest.raises(ConfigError, match="arry"):
        pieces.join_all(there)
    assert not (there / "tiny.gguf").exists()


def test_the_share_of_seen_blocks_is_that_of_the_mask() -> None:
    model = tiny_model("merge")
    case = flex.Case(length=400, step=40)
    layout = flex._layout(model, case, tokens=800)
    assert layout.ids.shape[0] == 2
    mask = ParallelPass(layout, model.rule).mask()[0, 0]
    cut = [mask[i : i + 128, j : j + 128].any() for i in range(0, len(mask), 128) for j in range(0, mask.shape[1], 128)]
    assert flex.seen_blocks(layout, model) == pytest.approx(sum(map(float, cut)) / len(cut))
