"""Why the Hub gave or took nothing, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_ADVICE: tuple[tuple[type[Exception], str], ...] = (  # the first that fits: a gated repository also counts as not found
    (GatedRepoError, f"Ask for access at {{page}}, then {_LOG_IN}."),
    (RevisionNotFoundError, "{page}/tree/main lists its branches and tags; choose one, or a commit."),
    (RepositoryNotFoundError, f"Check the name at {{page}}; if it is private, {_LOG_IN}."),
    (LocalTokenNotFoundError, f"The Hub has to know you: {_LOG_IN}."),
)
_UNREACHED = "the Hub gives no answer; check the network, and that local_files_only is not set"


def why(error: BaseException, source: str | Path) -> str:
    """The Hub's reason for an error about that repository, and what to do; the error's first line where it is another.

    The reason may stand in an error from which this one was raised.
    """
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):  # the library's own words on this, and the next, advise otherwise
            return "The Hub is not asked while HF_HUB_OFFLINE is set; unset it."
        if isinstance(cause, LocalEntryNotFoundError):
            offline = "HF_HUB_OFFLINE is set; unset it" if constants.HF_HUB_OFFLINE else _UNREACHED
            return f"It is not in the cache, and {offline}, or name a folder."
        for kind, advice in _ADVICE:
            if isinstance(cause, kind):
                reason = getattr(cause, "server_message", None) or _line(cause)
                return f"{reason.strip().rstrip('.')}. {advice.format(page=f'https://huggingface.co/{source}')}"
    return _line(error)


def _line(error: BaseException) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
