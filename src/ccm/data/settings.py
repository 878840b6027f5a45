"""What data are read, and how they are cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ccm.core.config import check_types
from ccm.core.errors import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """What is trained on.

    Attributes:
        name: of the data set (``ccm.data.DATA_SETS``); "custom" reads your own files.
        path: file, or folder of files.
        eval_path: likewise, for evaluation, all of it; where None, samples are held out of ``path``.
        eval_samples: how many are held out at most, whole conversations together, and at most a tenth.
        max_steps: most steps of a sample's context; longer conversations and texts are cut into stretches, and of a
            longer task the latest steps count.
        max_step_tokens: most tokens of a step; a longer one is an error.
        chunk_tokens: of a step, where plain text is cut into chunks.
        query_chunks: how many of these are read as one after the last step, on top of the memory.
        random_steps: whether each sample's context is cut to a random number of steps, drawn anew every time.
        options: of the data set itself.
    """

    name: str = "custom"
    path: str | None = None
    eval_path: str | None = None
    eval_samples: int = 64
    max_steps: int = 16
    max_step_tokens: int = 512
    chunk_tokens: int = 128
    query_chunks: int = 1
    random_steps: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, "data.")
        for name, least in (("max_steps", 1), ("max_step_tokens", 1), ("chunk_tokens", 2), ("query_chunks", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{self.called(name)} is {getattr(self, name)}; it must be at least {least}.")
        if self.eval_samples < 0:
            raise ConfigError(f"data.eval_samples is {self.eval_samples}; it must be at least 0.")

    def called(self, name: str) -> str:
        """What people say to set a field."""
        return f"data.{name}"
