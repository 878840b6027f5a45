"""Every error that ccm raises on purpose. Each is also the standard exception a caller would expect."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: Iterable[str], known: Iterable[str]) -> str:
    """What belongs into a message on unknown names: the likeliest known ones; empty where none is near."""
    names = [*known]
    near = [match for name in given for match in get_close_matches(name, names, n=1)]
    return f" Did you mean {', '.join(near)}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error of a name that there is not, with the likeliest one that there is, and all of them."""
    names = [*known]
    return ConfigError(f"There is no {kind} {name!r}.{did_you_mean([name], names)} There are: {', '.join(names)}.")


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first eight of them in order, and how many more there are."""
    first = sorted(names)
    more = f" and {len(first) - 8} more" if len(first) > 8 else ""
    return f"{first[:8]}{more}"


def reason(error: BaseException) -> str:
    """What went wrong, for a message that names the file itself: of the system's errors no number and no path."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class CCMError(Exception):
    """Root of all errors of this package. The message names the value, what is allowed and what to do next."""


class ConfigError(CCMError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class InputError(CCMError, ValueError):
    """Text, token ids or tensors that cannot be processed as given."""


class DataError(CCMError, ValueError):
    """Training or evaluation data that is absent or malformed."""


class TrainingError(CCMError, RuntimeError):
    """A training that cannot begin, go on, or be saved."""


class UnsupportedModelError(CCMError, ValueError):
    """A base model whose attention or projections the two seams do not reach."""


class StackError(CCMError, ImportError):
    """Libraries under this package that are too old, or no longer have what the two seams build on."""


class AdapterError(CCMError, ValueError):
    """An adapter folder that is missing, damaged, or made for another base model."""


class MemoryFileError(CCMError, ValueError):
    """A saved memory that is damaged, of another format version, or of another model or adapter."""


class RowError(CCMError, IndexError):
    """A conversation that the batch does not have."""


class IrreversibleError(CCMError, ValueError):
    """A rollback of a memory whose rule mixes steps, so that no single step can be taken out again."""
