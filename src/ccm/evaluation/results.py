"""What evaluations found, and the folder that keeps it: what is there is not measured again.

OUTPUT/  scores/METHOD-DEPTH-DIGEST.json ...  results.jsonl  report.md  steps.png  memory.png
         replies/METHOD-DEPTH-DIGEST.jsonl ...  where replies are generated
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ccm.errors import ConfigError, DataError
from ccm.evaluation.texts import Reply
from ccm.files import save_json, write_atomically

NOT_FINITE = "a likelihood is not a finite number"  # why a question was left out


@dataclass(frozen=True)
class Measured:
    """One method at one depth: a line of the results.

    Attributes:
        task: name and options of what was measured.
        method: its name.
        rule: of memory, or the baseline.
        n_tok: N; None where nothing is compressed.
        adapter: its place.
        model: name or place of the base.
        data: place of the files that were asked from.
        base: fingerprint of the base, a stage-1 adapter included.
        depth: the time step.
        asked: digest of the targets that were asked for; what stands in view of them is not in it.
        questions: how many were scored.
        skipped: how many were left out, by reason.
        noted: how many were asked otherwise than meant, by what it is.
        main: the figure that counts.
        figures: "perplexity" and "loss", or "acc", "acc_norm" and "acc_base" as shares, each the mean over tasks; where
            all questions have the same classes "f1", too, and of classes that are numbers "mae" and "rmse"; of replies
            "em", "answer_f1" and "rouge_l", each the mean over questions.
        by_task: the same figures of each task.
        tokens: of the right answers.
        entries: of the memory, the mean.
        kv_bytes: of these.
        peak_entries: in view at the most at a time, the mean over questions.
        peak_bytes: of these.
        write_seconds: for all memories.
        read_seconds: for all queries, answers and replies.
    """

    task: dict[str, Any]
    method: str
    rule: str
    n_tok: int | None
    adapter: str | None
    model: str
    data: str | None
    base: str
    depth: int
    asked: str
    questions: int
    skipped: dict[str, int]
    noted: dict[str, int]
    main: str
    figures: dict[str, float]
    by_task: dict[str, dict[str, float]]
    tokens: int
    entries: float
    kv_bytes: float
    peak_entries: float
    peak_bytes: float
    write_seconds: float
    read_seconds: float


@dataclass(frozen=True)
class Result:
    """A measured line, and what stands behind it, question by question.

    Attributes:
        line: the line.
        values: mean log-likelihood of the right answer's tokens, or 1 where the right option was taken, or the figure
            of the reply.
        weights: tokens of the right answer, or 1.
        tasks: what it is counted under, where the figure is a mean over tasks.
    """

    line: Measured
    values: list[float]
    weights: list[int]
    tasks: list[str]


class Kept:
    """The folder of an evaluation; where it is None, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"The output {folder} is a file; name a folder.")
            (folder / "scores").mkdir(parents=True, exist_ok=True)

    def _place(self, method: str, identity: Mapping[str, Any]) -> Path:
        """The file of what is measured: its name tells people the method and the step, its digest all the rest."""
        assert self.folder is not None
        digest = hashlib.sha256(json.dumps([method, identity], sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.folder / "scores" / f"{re.sub('[^A-Za-z0-9_.-]+', '-', method)}-{identity['depth']}-{digest}.json"

    def read(self, method: str, identity: Mapping[str, Any]) -> Result | None:
        """What was measured of it, if anything.

        Raises:
            DataError: when the file is damaged.
        """
        if self.folder is None or not (path := self._place(method, identity)).is_file():
            return None
        return read_result(path)

    def write(self, result: Result, identity: Mapping[str, Any], replies: Sequence[Reply] = ()) -> None:
        """Keep a result, and first the replies behind it, for people to read."""
        if self.folder is None:
            return
        path = self._place(result.line.method, identity)
        if replies:
            (self.folder / "replies").mkdir(exist_ok=True)
            _write_lines(self.folder / "replies" / f"{path.stem}.jsonl", replies)
        save_json(path, asdict(result))

    def finish(self, lines: Sequence[Measured]) -> None:
        """Write the lines as JSON lines."""
        if self.folder is not None:
            _write_lines(self.folder / "results.jsonl", lines)


def _write_lines(path: Path, rows: Sequence[Measured | Reply]) -> None:
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def read_result(path: Path) -> Result:
    """What was measured, from its file.

    Raises:
        DataError: when it is damaged.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return Result(**{**held, "line": Measured(**held["line"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); delete it, and it is measured again.") from None


def read_run(folder: Path) -> list[Result]:
    """What an evaluation was asked for last, in that order.

    Raises:
        DataError: when the folder holds no whole evaluation.
    """
    path = folder / "results.jsonl"
    try:
        order = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); name the --output of an evaluation that ended.") from None
    found = [read_result(file) for file in sorted((folder / "scores").glob("*.json"))]
    asked = [result for line in order for result in found if asdict(result.line) == line]
    if len(asked) < len(order):
        raise DataError(f"{folder / 'scores'} lacks what {path} tells of; say the same evaluation again.")
    return asked
