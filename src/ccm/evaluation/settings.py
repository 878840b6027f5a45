"""What an evaluation is asked for. The command line imports this module for its options, so it imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ccm.core.errors import ConfigError

Quantization = Literal["int8", "8bit", "4bit"]  # as in ccm.engine.quantization, which imports torch


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The methods that are compared on one base, how the base is loaded, and where the results are kept.

    Attributes:
        model: the base, as ``ccm.load`` takes it; None is the base of the adapters, or the built-in model.
        adapters: folders or Hub ids. Each is a method under its own rule.
        rules: each is a method too, on the first adapter that can run with it; None stands for the usual ones.
        baselines: each is a method too, by its name; None stands for the usual ones.
        n_tok: COMP tokens a step, for adapters that were trained with several numbers of them.
        device: such as "cpu" or "cuda".
        dtype: of the base, as ``ccm.load`` takes it.
        quantize: how the weights of the base are stored in fewer bits (:mod:`ccm.engine.quantization`).
        strict: refuse a quantized or fine-tuned relative of an adapter's base.
        output: folder that keeps the results, so that nothing is measured twice; None keeps nothing.
    """

    model: str | None = None
    adapters: Sequence[str] = ()
    rules: Sequence[str] | None = None
    baselines: Sequence[str] | None = None
    n_tok: int | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Quantization | None = None
    strict: bool = False
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How much of a task is asked, and how.

    Attributes:
        depths: time steps; None takes those of the task.
        most: the most questions under each name within the task, at every depth; 0 takes all.
        batch: answers that are scored together.
        generate: the most new tokens of a reply, which is judged as a text; 0 generates none, None does as the task.
        control: whether each query is also read with the memory of another conversation.
        room: raw entries that a baseline keeps of a context; None keeps as many as concat makes: N a step, and one.
        embedder: folder or Hub id of the model that the baseline "embedding" needs.

    Raises:
        ConfigError: when a number is too small.
    """

    depths: Sequence[int] | None = None
    most: int = 0
    batch: int = 16
    generate: int | None = None
    control: bool = True
    room: int | None = None
    embedder: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("most", 0), ("batch", 1), ("generate", 0), ("room", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; it must be at least {least}.")
