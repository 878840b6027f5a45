"""What evaluations found, and the folder that keeps it (:class:`ccm.evaluation.kept.Folder`).

OUTPUT/  scores/METHOD-DEPTH-DIGEST.json ...  results.jsonl  report.md  steps.png  memory.png
         replies/METHOD-DEPTH-DIGEST.jsonl ...  where replies are generated
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccm.core.errors import DataError, reason
from ccm.core.files import save_json
from ccm.evaluation.kept import Folder, ending, keeping, read_kept, write_lines
from ccm.evaluation.texts import JudgedReply

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
            all of :data:`ccm.evaluation.texts.FIGURES`, each the mean over questions.
        by_task: the same figures of each task, also of those that do not count in the mean.
        tokens: of the right answers that do.
        entries: of the memory, the mean.
        kv_bytes: of these.
        peak_entries: in view at the most at a time, the mean over questions.
        peak_bytes: of these.
        write_seconds: for all memories.
        read_seconds: for all queries, answers and replies.
        vocab_size: tokens that the model chooses from; None in results of earlier versions.
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
    vocab_size: int | None = None


@dataclass(frozen=True)
class Result:
    """A measured line, and what stands behind it, question by question.

    Attributes:
        line: the line.
        values: mean log-likelihood of the right answer's tokens, or 1 where the right option was taken, or the figure
            of the reply.
        weights: tokens of the right answer, or 1.
        tasks: what it is counted under, where the figure is a mean over tasks.
        nats: log-likelihood of the right answer, of the questions that count in figures of likelihoods.
        others: likewise, with the memory of another conversation (:mod:`ccm.evaluation.control`); None where there was
            none. Empty, as nats, in results of earlier versions.
    """

    line: Measured
    values: list[float]
    weights: list[int]
    tasks: list[str]
    nats: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)


class Kept(Folder):
    """The folder of an evaluation, or none."""

    def __init__(self, folder: Path | None) -> None:
        super().__init__(folder, "scores")

    def read(self, place: Path | None) -> Result | None:
        """What was measured, if anything.

        Raises:
            DataError: when the file is damaged.
        """
        if place is None or not (path := ending(place, "json")).is_file():
            return None
        return read_kept(path, _result)

    def write(self, place: Path | None, result: Result, replies: Sequence[JudgedReply] = ()) -> None:
        """Keep a result, and first the replies behind it, for people to read."""
        if self.folder is None or place is None:
            return
        with keeping(self.folder):
            if replies:
                (self.folder / "replies").mkdir(exist_ok=True)
                write_lines(self.folder / "replies" / f"{place.name}.jsonl", map(asdict, replies))
            save_json(ending(place, "json"), asdict(result))


def _result(held: dict[str, Any]) -> Result:
    return Result(**{**held, "line": Measured(**held["line"])})


def read_run(folder: Path) -> list[Result]:
    """What an evaluation was asked for last, in that order.

    Raises:
        DataError: when the folder holds no whole evaluation.
    """
    path = folder / "results.jsonl"
    try:
        order = [Measured(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({reason(error)}); name the output of an evaluation that ended."
        ) from None
    found = [read_kept(file, _result) for file in sorted((folder / "scores").glob("*.json"))]
    asked = [result for line in order for result in found if result.line == line]
    if len(asked) < len(order):
        raise DataError(f"{folder / 'scores'} lacks what {path} tells of; say the same evaluation again.")
    return asked
