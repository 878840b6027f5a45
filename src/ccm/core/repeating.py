"""Something that is done again and again beside other work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread


@contextmanager
def every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """Call ``do`` after each so many seconds while the block runs, from another thread."""
    over = Event()

    def repeat() -> None:
        while not over.wait(seconds):
            do()

    thread = Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
