"""Settings of data sets and of tasks: which files are read, how they are cut, and options of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ccm.core.config import bounded, build_settings, check_fields
from ccm.core.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class SourceSettings:
    """What the settings of a data set and of a task share.

    Attributes:
        name: of the data set or task.
        path: file, or folder of files.
        options: of this data set or task alone.
    """

    name: str = "custom"
    path: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    kind, prefix = "data set", "data."  # for messages: what is set, and where its fields are found

    def __post_init__(self) -> None:
        check_fields(self, self.prefix)

    def read_options(self, options: type[T]) -> T:
        """The options as their own dataclass.

        Raises:
            ConfigError: on a key that it does not have, or a value that it does not allow.
        """
        return build_settings(options, self.options, f"{self.prefix}options")

    def require_path(self, files: str) -> Path:
        """The path; ``files`` says what it should name.

        Raises:
            ConfigError: when there is none.
        """
        if self.path is None:
            raise ConfigError(f"The {self.kind} {self.name!r} needs {files}; name it as {self.prefix}path=PATH.")
        return Path(self.path)

    def forbid_paths(self) -> None:
        """Refuse files where the data is made, not read.

        Raises:
            ConfigError: when some are named.
        """
        if self.path is not None:
            raise ConfigError(
                f"The {self.kind} {self.name!r} makes its own dialogues; leave {self.prefix}path out, or choose "
                f"another {self.prefix}name."
            )


@dataclass(frozen=True)
class DataSettings(SourceSettings):
    """What is trained on.

    Attributes:
        name: of the data set (``ccm.data.DATA_SETS``); "custom" reads your own files.
        eval_path: file or folder to evaluate on, all of it; where None, samples are held out of ``path``.
        eval_samples: how many are held out at most, whole conversations together, and at most a tenth.
        max_steps: most steps of a sample's context. Longer conversations and texts are cut into stretches; of a longer
            task the latest steps are read.
        max_step_tokens: most tokens of a step; a longer one is an error.
        chunk_tokens: tokens of a step, where plain text is cut into chunks.
        query_chunks: how many chunks are read as one after the last step, on top of the memory.
        random_steps: whether each sample's context is cut to a random number of steps, drawn anew every time.
    """

    eval_path: str | None = None
    eval_samples: int = bounded(64, 0)
    max_steps: int = bounded(16, 1)
    max_step_tokens: int = bounded(512, 1)
    chunk_tokens: int = bounded(128, 2)
    query_chunks: int = bounded(1, 1)
    random_steps: bool = True

    def forbid_paths(self) -> None:
        super().forbid_paths()
        if self.eval_path is not None:
            raise ConfigError(f"The data set {self.name!r} makes its own dialogues; leave data.eval_path out.")

    def forbid_options(self) -> None:
        """Refuse options of a data set that has none.

        Raises:
            ConfigError: when there are some.
        """
        if self.options:
            raise ConfigError(f"The data set {self.name!r} has no options; data.options is {dict(self.options)}.")

    def published_folder(self, files: str) -> Path:
        """The folder of a published data set, which brings its own samples to evaluate on.

        Raises:
            ConfigError: when there is no path, or another one to evaluate on.
        """
        if self.eval_path is not None:
            raise ConfigError(f"The data set {self.name!r} has samples to evaluate on; leave data.eval_path out.")
        return self.require_path(f"the folder that holds {files}")

    def check_chunks(self) -> None:
        """See whether chunks of running text are short enough to be steps.

        Raises:
            ConfigError: where they are not.
        """
        if self.chunk_tokens > self.max_step_tokens:
            raise ConfigError(
                f"{self.prefix}chunk_tokens is {self.chunk_tokens}, {self.prefix}max_step_tokens "
                f"{self.max_step_tokens}; lower the one or raise the other."
            )


class DataOptions:
    """Base of the options that a data set has of its own: a frozen dataclass, whose fields are checked."""

    def __post_init__(self) -> None:
        check_fields(self, "data.options.")


class TaskOptions:
    """Base of the options that a task has of its own: a frozen dataclass, whose fields are checked."""

    def __post_init__(self) -> None:
        check_fields(self, "task.options.")
