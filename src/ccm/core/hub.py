"""Why a download from the Hub or an upload to it failed, and what to do about it."""

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
_ADVICE: tuple[tuple[type[Exception], str], ...] = (  # the first match counts: a gated repository is also "not found"
    (GatedRepoError, f"Ask for access at {{page}}, then {_LOG_IN}."),
    (RevisionNotFoundError, "{page}/tree/main lists its branches and tags; choose one, or a commit."),
    (RepositoryNotFoundError, f"Check the name at {{page}}; if it is private, {_LOG_IN}."),
    (LocalTokenNotFoundError, f"The Hub has to know you: {_LOG_IN}."),
)


def why(error: BaseException, source: str | Path) -> str:
    """Explain an error about a repository of the Hub, and say what to do; other errors give their first line.

    Looks for the Hub's reason in the error itself and in the errors that caused it.
    """
    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):  # for this and the next, the library's own message misleads
            return "The Hub is not asked while HF_HUB_OFFLINE is set; unset it."
        if isinstance(cause, LocalEntryNotFoundError):
            if constants.HF_HUB_OFFLINE:
                return "It is not in the cache, and HF_HUB_OFFLINE is set; unset it, or name a folder."
            return (
                "It is not in the cache, and the Hub gives no answer; check the network, and that local_files_only is "
                "not set, or name a folder."
            )
        for kind, advice in _ADVICE:
            if isinstance(cause, kind):
                reason = getattr(cause, "server_message", None) or _line(cause)
                return f"{reason.strip().rstrip('.')}. {advice.format(page=f'https://huggingface.co/{source}')}"
    return _line(error)


def _line(error: BaseException) -> str:
    """The first line that is not blank, or the name of the error."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, then the errors that caused it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__ or current.__context__
