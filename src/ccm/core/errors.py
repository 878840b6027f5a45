"""Every error that ccm raises on purpose. Each is also the standard exception a caller would expect."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: Iterable[str], known: Iterable[str]) -> str:
    """The part of a message that suggests the closest known names; empty where none is close."""
    names = [*known]
    near = [match for name in given for match in get_close_matches(name, names, n=1)]
    return f" Did you mean {', '.join(near)}?" if near else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error for an unknown name: it suggests the closest known one and lists them all."""
    names = [*known]
    return ConfigError(f"There is no {kind} {name!r}.{did_you_mean([name], names)} There are: {', '.join(names)}.")


def listed(names: Iterable[str]) -> str:
    """Names for a message: the first eight in alphabetical order, and how many more there are."""
    first = sorted(names)
    more = f" and {len(first) - 8} more" if len(first) > 8 else ""
    return f"{first[:8]}{more}"


def reason(error: BaseException) -> str:
    """What went wrong, without the number and the path that system errors add: the message names the file itself."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class CCMError(Exception):
    """Root of all errors of this package. The message names the value, what is allowed, and what to do next."""


class ConfigError(CCMError, ValueError):
    """A setting, or a combination of settings, that has no meaning."""


class InputError(CCMError, ValueError):
    """Text, token ids or tensors that cannot be processed as given."""


class PositionError(InputError):
    """Text for which the model has no positions left."""


class DataError(CCMError, ValueError):
    """Training or evaluation data that is absent or malformed."""


class TrainingError(CCMError, RuntimeError):
    """A training that cannot start, continue, or be saved."""


class UnsupportedModelError(CCMError, ValueError):
    """A base model that this package cannot adapt: its attention or projections are out of reach."""


class StackError(CCMError, ImportError):
    """Libraries that are too old, or that no longer have what this package needs of them."""


class AdapterError(CCMError, ValueError):
    """An adapter folder that is missing, damaged, or made for another base model."""


class MemoryFileError(CCMError, ValueError):
    """A saved memory that is damaged, has another format version, or belongs to another model or adapter."""


class RowError(CCMError, IndexError):
    """A conversation that the batch does not have."""


class IrreversibleError(CCMError, ValueError):
    """A rollback of a memory whose rule mixes steps: no step can be taken out again."""
