"""What evaluations found, and how it is read back from their folder (:class:`ccm.evaluation.store.ResultStore`).

OUTPUT/  scores/METHOD-DEPTH-DIGEST.json ...  results.jsonl  report.md  steps.png  memory.png
         replies/METHOD-DEPTH-DIGEST.jsonl ...  where replies are generated
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccm.core.errors import DataError, reason
from ccm.evaluation.store import read_result

SCORES = "scores"  # the part of the folder that holds the results
NOT_FINITE = "a likelihood is not a finite number"  # why a question was left out


@dataclass(frozen=True)
class Measurement:
    """One method at one depth: a line of the results.

    Attributes:
        task: name and options of the task.
        method: its name.
        rule: of memory, or the baseline.
        n_tok: N; None where nothing is compressed.
        adapter: its folder or Hub id.
        model: name, folder or Hub id of the base.
        data: folder or file of the task.
        base: fingerprint of the base, a stage-1 adapter included.
        depth: the time step.
        asked: digest of the targets; the context is not in it.
        questions: how many were scored.
        skipped: how many were left out, by reason.
        noted: how many were asked otherwise than meant, by what it is.
        main: name of the figure that counts.
        figures: "perplexity" and "loss", or "acc", "acc_norm" and "acc_base" as shares, each the mean over tasks; where
            all questions have the same classes also "f1", and "mae" and "rmse" of classes that are numbers; of replies
            all of :data:`ccm.evaluation.texts.FIGURES`, each the mean over questions.
        by_task: the same figures of each task, also of those that do not count in the mean.
        tokens: in the right answers that count.
        entries: of the memory, the mean over questions.
        kv_bytes: of those entries.
        peak_entries: the most entries in view at a time, the mean over questions.
        peak_bytes: of those entries.
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
    """A measurement, and the numbers behind it, one for each question.

    Attributes:
        line: the measurement.
        values: mean log-likelihood of the right answer's tokens, or 1 where the right option was taken, or the figure
            of the reply.
        weights: tokens of the right answer, or 1.
        tasks: what the question is counted under, where the figure is a mean over tasks.
        nats: log-likelihood of the right answer, for the questions that count in figures of likelihoods.
        others: the same with the memory of another conversation (:mod:`ccm.evaluation.control`); None where there was
            no such memory. Empty, as nats, in results of earlier versions.
    """

    line: Measurement
    values: list[float]
    weights: list[int]
    tasks: list[str]
    nats: list[float] = field(default_factory=list)
    others: list[float | None] = field(default_factory=list)


def build_result(values: dict[str, Any]) -> Result:
    """A result from the values of its file."""
    return Result(**{**values, "line": Measurement(**values["line"])})


def read_run(folder: Path) -> list[Result]:
    """The results of the latest command that wrote into a folder, in its order.

    Raises:
        DataError: when the folder holds no whole evaluation.
    """
    path = folder / "results.jsonl"
    try:
        lines = [Measurement(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({reason(error)}); name the output of an evaluation that ended."
        ) from None
    found = [read_result(file, build_result) for file in sorted((folder / SCORES).glob("*.json"))]
    results = [result for line in lines for result in found if result.line == line]
    if len(results) < len(lines):
        raise DataError(f"{folder / SCORES} lacks results that {path} names; run the same evaluation again.")
    return results
