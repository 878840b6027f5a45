"""A list on disk is the list that was given, and takes no memory for its items."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ccm.data.spool import Spool

TEXTS = st.lists(st.tuples(st.text(st.characters(codec=None)), st.integers()), max_size=6)


def spooled(items: object) -> Spool[tuple]:
    return Spool(items, list, tuple)


@given(TEXTS)
def test_the_items_come_back_in_any_order(items: list[tuple[str, int]]) -> None:
    spool = spooled(iter(items))
    assert len(spool) == len(items)
    assert [spool[i] for i in reversed(range(len(items)))] == items[::-1]
    assert [*spool] == items
    assert [*spool[1:]] == items[1:]


def test_some_of_the_items_are_a_list_of_their_own() -> None:
    spool = spooled([("a", 1), ("b", 2), ("c", 3)])
    some = spool.only(iter([2, 0]))
    assert [*some] == [("c", 3), ("a", 1)]
    assert [*some.only([1])] == [("a", 1)]
    assert [*spool] == [("a", 1), ("b", 2), ("c", 3)]
    del spool
    assert some[-1] == ("a", 1)  # the file is there as long as any list of it
    with pytest.raises(IndexError):
        some[2]


def test_the_items_take_no_memory() -> None:
    def items() -> Iterator[tuple[str, int]]:
        for i in range(20_000):
            yield f"{i:0500}", i

    tracemalloc.start()
    spool = spooled(items())
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert spool[19_999] == (f"{19_999:0500}", 19_999)
    assert held < most < 1_000_000  # the texts are ten million bytes
