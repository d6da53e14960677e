"""Who waits goes in an order that harms nobody who stands still, and starves nobody who does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_worker.kv.read_order import OVERTAKES, ReadOrder


def test_last_reads_go_first_and_each_in_turn() -> None:
    order: ReadOrder[str] = ReadOrder()
    for name in ("copy1", "copy2", "last1", "last2"):
        order.add(name, name.startswith("last"))
    assert list(order) == ["last1", "last2", "copy1", "copy2"] and len(order) == 4
    order.began("copy1")  # a piece of it: it keeps its place
    assert list(order) == ["last1", "last2", "copy1", "copy2"]
    order.remove("last1")
    order.remove("copy1")
    assert list(order) == ["last2", "copy2"]


ARRIVALS = st.lists(st.tuples(st.booleans(), st.integers(1, 5)), max_size=60)
"""Whether it is a last read, and in how many pieces it goes."""


@given(reads=ARRIVALS, per_turn=st.integers(1, 4))
def test_each_class_keeps_its_order_and_all_end(reads: list[tuple[bool, int]], per_turn: int) -> None:
    order: ReadOrder[int] = ReadOrder()
    left = {number: 1 if last else pieces for number, (last, pieces) in enumerate(reads)}
    ended: list[int] = []
    coming = list(enumerate(reads))
    while coming or len(order):
        for number, (last, _) in coming[:per_turn]:
            order.add(number, last)
        del coming[:per_turn]
        first = next(iter(order), None)
        if first is not None:
            order.began(first)
            left[first] -= 1
            if not left[first]:
                order.remove(first)
                ended.append(first)
    for of_last in (True, False):
        assert [n for n in ended if reads[n][0] is of_last] == [
            n for n, (last, _) in enumerate(reads) if last is of_last
        ]
    assert len(ended) == len(reads)


@given(pieces=st.integers(1, 8), copies=st.integers(1, 4))
def test_a_flood_of_last_reads_starves_nobody(pieces: int, copies: int) -> None:
    order: ReadOrder[str] = ReadOrder()
    for number in range(copies):
        order.add(f"copy{number}", last=False)
    left, begun = {f"copy{number}": pieces for number in range(copies)}, 0
    for number in range((OVERTAKES + 1) * pieces * copies):
        order.add(f"last{number}", last=True)  # there is always another one
        first = next(iter(order))
        order.began(first)
        begun += 1
        if first in left:
            left[first] -= 1
        if left.get(first, 0) == 0:
            order.remove(first)
    assert not any(left.values()) and begun == (OVERTAKES + 1) * pieces * copies
