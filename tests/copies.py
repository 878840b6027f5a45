"""Models that are made once in a process: every test gets a copy of its own, which takes a tenth of the time."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from ccm.models.load import load

Made = TypeVar("Made")
_made: dict[str, tuple[bytes, list[Tensor]]] = {}


def copied(key: str, make: Callable[[], Made]) -> Made:
    """A copy of what ``make`` returns; it is called once for each key, unless what it makes cannot be copied.

    The state of the random numbers of torch is afterwards as before, whether it was called or not.
    """
    if key not in _made:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = make()
        try:
            _made[key] = _written(made)
        except (pickle.PicklingError, AttributeError):  # it has a class or a function of one test
            return made
    data, tensors = _made[key]
    return _Reader(io.BytesIO(data), tensors).load()


def _written(made: object) -> tuple[bytes, list[Tensor]]:
    file = io.BytesIO()
    writer = _Writer(file)
    writer.dump(made)
    return file.getvalue(), list(writer.numbers)


class _Writer(pickle.Pickler):
    """Leaves the tensors out, and keeps them with their numbers."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.numbers: dict[Tensor, int] = {}

    def persistent_id(self, thing: object) -> int | None:
        return self.numbers.setdefault(thing, len(self.numbers)) if isinstance(thing, Tensor) else None


class _Reader(pickle.Unpickler):
    """Puts a copy of each tensor in its places."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors, self._copies = tensors, dict[int, Any]()

    def persistent_load(self, number: int) -> Tensor:
        if number not in self._copies:
            self._copies[number] = copy.deepcopy(self._tensors[number])
        return self._copies[number]


def copied_builtin(monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
    """Let the functions at these places, which are ``ccm.load``, read the built-in model once under each setting."""
    real = load

    def once(model: object = None, adapter: object = None, **choice: Any) -> Any:
        if model not in (None, "builtin") or adapter is not None:
            return real(model, adapter, **choice)
        given = sorted((name, value) for name, value in choice.items() if value is not None)
        return copied(repr(("builtin", given)), lambda: real(model, adapter, **choice))

    for place in places:
        monkeypatch.setattr(place, once)
