"""Links and reads, turn by turn: which transport, how many at once, what is over when."""

from __future__ import annotations

import pytest
from memory_wire import MemoryTransport, MemoryWire
from mover_end import End, storage

from hyperflexis_common.clock import FakeClock
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.links import PROBE_LIMIT_US
from hyperflexis_worker.kv.mover_thread import MoverThread
from hyperflexis_worker.kv.peer_metadata import PeerMetadata
from hyperflexis_worker.kv.relay import ANSWER_LIMIT_US, PIECES_AT_ONCE, RelayTransport
from hyperflexis_worker.kv.storage import HostStorage
from hyperflexis_worker.kv.transfers import Forget, MoverFailed, Read, ReadOver


def test_the_best_transport_that_both_have_and_that_works() -> None:
    fast, slow = MemoryWire(), MemoryWire()
    a, b = End("a", fast, slow), End("b", fast, slow)
    assert [(one.transport, one.wire) for one in a.link(b)] == [("wire0", "memory")]
    fast.unreachable.add("b")
    c = End("c", fast, slow)
    assert [one.transport for one in c.link(b)] == ["wire1"]
    slow.unreachable.add("b")
    [linked] = End("d", fast, slow).link(b)
    assert linked.transport == "" and linked.error == "wire0: b is not to be reached; wire1: b is not to be reached"
    [linked] = End("e", MemoryWire(), relay=True).link(b)
    assert linked.error.startswith("wire0: b is not to be reached")


def test_what_cannot_be_linked_says_why() -> None:
    a, b = End("a", MemoryWire()), End("b", relay=True)
    assert [one.error for one in a.link(b)] == ["no transport in common: here wire0; there grpc"]
    assert [one.error for one in a.link(a)] == ["an engine does not link to itself"]
    assert [one.error for one in a.order(kv.LinkPeer("x", b.metadata.encode()))] == ["it calls itself b"]
    assert "not the metadata of an engine" in a.order(kv.LinkPeer("x", b"?"))[0].error
    other = PeerMetadata("o", b"other", 64, {"wire0": b""})
    [linked] = a.order(kv.LinkPeer("o", other.encode()))
    assert linked.error == "another KV layout there: model, weights, dtype, block size or engine version differ"
    assert a.order(kv.LinkPeer("unknown", remove=True)) == []


def test_a_probe_without_an_answer_leaves_the_transport_to_the_next_one() -> None:
    stuck, fine = MemoryWire(), MemoryWire()
    a, b = End("a", stuck, fine), End("b", stuck, fine)
    post = MemoryTransport.post
    probes = []

    def held(self: MemoryTransport, peer: str, lease_id: int, remote: list[int], local: list[int]) -> int:
        handle = post(self, peer, lease_id, remote, local)
        if self._wire is stuck:
            self._moves[handle].done = 0
            probes.append(self._moves[handle])
        return handle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MemoryTransport, "post", held)
        assert a.link(b) == [] and a.mover.moving
        a.clock.advance(PROBE_LIMIT_US + 1)
        assert [one.transport for one in a.turns()] == ["wire1"]
    assert not a.mover.close(), "the probe may still write"
    probes[0].move()
    a.turns()
    assert a.mover.close()


def test_a_few_reads_at_once_and_those_that_nobody_wants_not_at_all() -> None:
    wire = MemoryWire(held=True)
    a, b = End("a", wire), End("b", wire)
    a.link(b)
    due_us = a.clock.now_us() + 1_000
    assert a.order(*[a.read(number, b, (number,)) for number in (1, 2, 3)], a.read(4, b, (4,), due_us)) == []
    assert len(wire.moves) == 2
    assert a.order(Forget(3), Forget(1)) == [ReadOver(3, error="no longer wanted")]
    a.clock.advance(1_000)
    assert a.turns() == [ReadOver(4, error="its time was over before it began")]
    for move in wire.moves:
        move.move()
    assert [(one.transfer_id, one.transport, one.took_us, one.error) for one in a.turns()] == [
        (1, "wire0", 1_000, ""),
        (2, "wire0", 1_000, ""),
    ]
    assert a.order(a.read(5, End("stranger"))) == [ReadOver(5, error="no link to stranger")]
    assert not a.mover.moving and a.mover.close()


def test_a_link_ends_when_its_last_read_is_over() -> None:
    wire = MemoryWire(held=True)
    a, b = End("a", wire), End("b", wire)
    a.link(b)
    transport = a.mover._transports[0]
    a.order(a.read(1, b))
    a.order(kv.LinkPeer("b", remove=True))
    assert transport._peers, "a read is under way"
    assert a.order(a.read(2, b)) == [ReadOver(2, error="no link to b")]
    wire.moves[0].move()
    assert [one.transfer_id for one in a.turns()] == [1]
    assert not transport._peers


def test_a_read_that_failed_has_its_link_looked_at() -> None:
    wire = MemoryWire(held=True)
    a, b = End("a", wire), End("b", wire)
    a.link(b)
    a.order(a.read(1, b))
    wire.moves[0].failed = True
    assert a.turns() == [ReadOver(1, "wire0", 0, "the transfer failed")]  # the source refused: the link is fine
    a.order(a.read(2, b))
    wire.moves[1].failed = True
    wire.pools.clear()
    over, lost = a.turns()
    assert over.transfer_id == 2 and lost.transport == "" and "no link to b" in lost.error
    assert a.order(a.read(3, b)) == [ReadOver(3, error="no link to b")]


def relay_pair(piece_blocks: int) -> tuple[RelayTransport, list[kv.FetchBytes], HostStorage, FakeClock]:
    clock, asked, pool = FakeClock(), [], storage(64)
    relay = RelayTransport(pool, clock, asked.append)
    relay._blocks = piece_blocks
    relay.connect("b", b"")
    return relay, asked, pool, clock


def test_the_relay_asks_for_few_pieces_at_once_and_writes_each_where_it_belongs() -> None:
    relay, asked, pool, _ = relay_pair(2)
    handle = relay.post("b", 9, list(range(1, 14)), list(range(41, 28, -1)))
    assert [one.blocks for one in asked] == [[1, 2], [3, 4], [5, 6], [7, 8]] and len(asked) == PIECES_AT_ONCE
    while asked:
        fetch = asked.pop()  # answers come in any order
        assert (fetch.peer, fetch.lease_id) == ("b", 9)
        relay.fetched(kv.FetchedBytes(fetch.number, b"".join(bytes([block]) * 64 for block in fetch.blocks)))
    assert relay.poll(handle).value == "done"
    assert [pool.read([42 - block])[0] for block in range(1, 14)] == list(range(1, 14))


@pytest.mark.parametrize("answer", ["refused", "short", "none"])
def test_a_relayed_read_that_fails_is_over_and_late_answers_change_nothing(answer: str) -> None:
    relay, asked, pool, clock = relay_pair(1)
    handle = relay.post("b", 9, [1, 2, 3, 4, 5, 6], [11, 12, 13, 14, 15, 16])
    first, second, *_ = asked
    if answer == "none":
        clock.advance(ANSWER_LIMIT_US)
    else:
        data, error = (b"", "lease 9 does not hold these blocks") if answer == "refused" else (b"12", "")
        relay.fetched(kv.FetchedBytes(first.number, data, error))
    assert relay.poll(handle).value == "failed"
    relay.fetched(kv.FetchedBytes(second.number, b"\xff" * 64))
    assert not any(pool.read(range(64)))
    again = relay.post("b", 9, [1], [11])
    for fetch in asked[-1:]:
        relay.fetched(kv.FetchedBytes(fetch.number, b"\x01" * 64))
    clock.advance(ANSWER_LIMIT_US)
    relay.poll(again)


def test_news_wakes_whoever_waits_and_a_bug_in_the_thread_is_news() -> None:
    import select

    pool = storage()
    thread = MoverThread("a", pool, lambda tell: [RelayTransport(pool, FakeClock(), tell)], FakeClock())
    thread.start()
    try:
        assert thread.order(Read(1, "nobody", 1, (1,), (1,), 10**12))
        assert select.select([thread], [], [], 10)[0]
        assert thread.news() == [ReadOver(1, error="no link to nobody")] and not thread.news()
        assert not select.select([thread], [], [], 0)[0]
        thread.order(object())  # type: ignore[arg-type]
        thread.order(kv.LinkPeer("b", object()))  # type: ignore[arg-type]
        assert select.select([thread], [], [], 10)[0]
        [failed] = thread.news()
        assert isinstance(failed, MoverFailed)
    finally:
        thread.close()
