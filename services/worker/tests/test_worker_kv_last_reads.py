"""Reads for stopped requests overtake pre-copies, which go in pieces: in order, all of them, none for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_wire import MemoryWire, Move
from mover_end import End

from hyperflexis_worker.kv.read_order import IN_FLIGHT_US, OVERTAKES, PIECE_BYTES
from hyperflexis_worker.kv.transfers import Forget, Read, ReadOver

DUE_US = 10**12
BLOCKS = 64
LAST = 32
"""From here on are the blocks of last reads, where it matters."""


def pair(wire: MemoryWire, piece_blocks: int, at_once: int = 4) -> tuple[End, End]:
    """`a` reads from `b`, over a link on which a piece is so long."""
    a, b = (End(name, wire, at_once=at_once, total=BLOCKS) for name in "ab")
    b.storage.write(range(BLOCKS), b"".join(bytes([block]) * 64 for block in range(BLOCKS)))
    a.link(b)
    a.mover._piece = lambda peer: piece_blocks  # type: ignore[method-assign]
    return a, b


def read(number: int, first: int, count: int, last: bool = False, due_us: int = DUE_US) -> Read:
    blocks = tuple(range(first, first + count))
    return Read(number, "b", 1, blocks, blocks, due_us, last)


def under_way(wire: MemoryWire) -> list[Move]:
    return [move for move in wire.moves if not move.terminal]


def sizes(wire: MemoryWire) -> list[int]:
    return [len(move.local) for move in wire.moves]


def test_a_pre_copy_goes_in_pieces_and_leaves_slots_to_others() -> None:
    wire = MemoryWire(held=True)
    a, _ = pair(wire, 3)
    a.order(read(1, 0, 10))
    assert sizes(wire) == [3, 3]  # half of the slots
    a.order(read(2, 10, 4), read(3, 20, 1))
    assert sizes(wire) == [3, 3, 3, 1]
    wire.moves[0].move()
    assert a.turns() == [] and sizes(wire) == [3, 3, 3, 1, 3]  # the first one comes first
    over = []
    for _ in range(6):
        for move in under_way(wire):
            move.move()
        over += a.turns(1)
    assert [one.transfer_id for one in over] == [2, 1, 3]
    assert a.storage.read(range(14)) == b"".join(bytes([block]) * 64 for block in range(14))
    assert not a.mover.moving and a.mover.close()


def test_a_piece_is_as_long_as_the_link_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = MemoryWire()
    a, b = (End(name, wire, at_once=4) for name in "ab")
    a.link(b)
    bytes_of = lambda: a.mover._piece("b") * 64  # noqa: E731
    link = a.mover._links._links["b"]
    link.rate = 25.0
    assert bytes_of() * 4 / 25e3 == pytest.approx(IN_FLIGHT_US, rel=0.01)
    link.rate = 0.1
    assert bytes_of() == PIECE_BYTES
    wire.held = True
    link.rate = 1e3

    def read_four(number: int) -> None:
        a.order(a.read(number, b, tuple(range(4))))
        a.clock.advance(1)
        wire.moves[-1].move()
        a.turns()

    read_four(1)
    assert link.rate == 1e3, "so little tells nothing"
    monkeypatch.setattr("hyperflexis_worker.kv.mover.PIECE_BYTES", 4 * 64)
    read_four(2)
    assert link.rate == pytest.approx(0.75e3 + 0.25 * 4 * 64 / 1_000)  # what has been read, in a microsecond


def test_a_last_read_has_the_next_slot_and_goes_whole() -> None:
    wire = MemoryWire(held=True)
    a, _ = pair(wire, 2)
    a.order(read(1, 0, 20), read(2, 20, 20))
    assert len(under_way(wire)) == 4
    assert a.order(read(3, 40, 5, last=True)) == []
    wire.moves[1].move()
    a.turns()
    last = wire.moves[-1]
    assert last.local == (40, 41, 42, 43, 44)
    wire.moves[0].move()
    a.turns()
    assert wire.moves[-1] is last, "a pre-copy shares its link with it"
    last.move()
    assert [one.transfer_id for one in a.turns()] == [3] and len(under_way(wire)) == 4


@pytest.mark.parametrize("end", ["fails", "is forgotten", "is late", "stops"])
def test_a_pre_copy_that_is_broken_off_is_over_when_its_last_piece_is(end: str) -> None:
    wire = MemoryWire(held=True)
    a, _ = pair(wire, 2)
    a.order(read(1, 0, 20, due_us=a.clock.now_us() + 1_000))
    one, other = under_way(wire)
    match end:
        case "fails":
            one.fail()
        case "is forgotten":
            a.order(Forget(1))
        case "is late":
            a.clock.advance(1_000)
        case "stops":
            assert not a.mover.close()
    one.move()
    assert a.turns() == [] and len(wire.moves) == 2, "the other piece may still write"
    other.move()
    [over] = a.turns()
    assert isinstance(over, ReadOver) and over.transfer_id == 1 and over.error
    assert len(wire.moves) == 2 and not a.mover._active and a.mover._free == 4


def test_last_reads_that_never_end_let_a_pre_copy_get_on() -> None:
    wire = MemoryWire(held=True)
    a, _ = pair(wire, 1, at_once=1)
    a.order(read(1, 0, 3))
    for number in range(2, 4 * OVERTAKES):
        a.order(read(number, 40, 1, last=True), read(number + 1_000, 41, 1, last=True))
        for move in under_way(wire):
            move.move()
    assert [move.local for move in wire.moves if move.local[0] < 3] == [(0,), (1,), (2,)]


@given(
    reads=st.lists(st.tuples(st.booleans(), st.integers(1, 12)), min_size=1, max_size=12),
    piece=st.integers(1, 5),
    at_once=st.integers(1, 4),
    fates=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6), st.booleans()), max_size=80),
)
def test_every_block_once_every_read_once_and_no_pre_copy_past_a_last_read(
    reads: list[tuple[bool, int]], piece: int, at_once: int, fates: list[tuple[int, int, bool]]
) -> None:
    """`fates`: which transfer moves, how many blocks, and whether another read is asked for before."""
    wire = MemoryWire(held=True)
    a, _ = pair(wire, piece, at_once)
    orders = [read(number, LAST if last else 0, count, last) for number, (last, count) in enumerate(reads)]
    over: list[object] = []
    for which, blocks, comes in [*fates, *[(0, 99, True)] * 200]:
        if orders and comes:
            a.mover.take(orders.pop(0))
        moves = under_way(wire)
        assert len(moves) <= at_once
        if moves:
            moves[which % len(moves)].move(blocks)
        known = len(wire.moves)
        over += a.turns(1)
        begun = [move.local[0] >= LAST for move in wire.moves[known:]]
        assert begun == sorted(begun, reverse=True), "a pre-copy went before a last read"
        assert all(begun) or not any(one.read.last for one in a.mover._waiting)
    assert sorted(one.transfer_id for one in over if isinstance(one, ReadOver)) == list(range(len(reads)))
    assert len(over) == len(reads) and not any(one.error for one in over if isinstance(one, ReadOver))
    assert sum(sizes(wire)) == sum(count for _, count in reads)
