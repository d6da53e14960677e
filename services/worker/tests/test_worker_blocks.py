"""Property tests of the block pool and of what is held in it: owners, prefix cache, leases, quarantine."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperflexis_worker.steps.blocks import EVENT_LIMIT, BlockPool
from hyperflexis_worker.steps.holds import Holds


class PoolHistory(RuleBasedStateMachine):
    """Owners come and go; each block's bytes are modelled by the generation that wrote them."""

    @initialize(blocks=st.integers(2, 14))
    def begin(self, blocks: int) -> None:
        self.pool = BlockPool(blocks, 1)
        self.holds = Holds(self.pool, pin_share=0.5)
        self.owned: list[list[int]] = []
        self.now = 0
        self.transfers: dict[int, tuple[int, ...]] = {}
        self.leases: dict[int, int] = {}
        self.index: dict[bytes, int] = {}
        """What a reader of the events believes: which hashes are here."""
        self.names = 0

    @rule(count=st.integers(0, 6))
    def allocate(self, count: int) -> None:
        before = self.pool.free
        busy = {block for blocks in self.transfers.values() for block in blocks}
        taken = self.pool.allocate(count)
        assert (taken is None) == (count > before)
        if taken is not None:
            assert self.pool.free == before - count
            assert not busy.intersection(taken), "a block in quarantine was handed out"
            assert 0 not in taken
            self.owned.append(taken)

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.owned.pop(data.draw(st.integers(0, len(self.owned) - 1))))

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), name=st.integers(0, 5))
    def publish(self, data: st.DataObject, name: int) -> None:
        blocks = data.draw(st.sampled_from(self.owned))
        if blocks:
            self.pool.publish(data.draw(st.sampled_from(blocks)), bytes([name]))

    @rule(names=st.lists(st.integers(0, 5), max_size=3))
    def find(self, names: list[int]) -> None:
        before, found = self.pool.free, self.pool.find(bytes([name]) for name in names)
        idle = self.pool.idle(set(found))
        generations = [self.pool.generations[block] for block in found]
        self.pool.share(found)
        assert self.pool.free == before - idle
        assert [self.pool.generations[block] for block in found] == generations, "sharing is not writing"
        self.owned.append(found)

    @precondition(lambda self: self.owned)
    @rule(data=st.data(), lasts=st.integers(1, 20))
    def lease(self, data: st.DataObject, lasts: int) -> None:
        lease = self.holds.lease(data.draw(st.sampled_from(self.owned)), self.now + lasts)
        assert lease is not None, "what is owned anyway may be leased"
        self.leases[lease.lease_id] = lease.until_us

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release_lease(self, data: st.DataObject) -> None:
        lease_id = data.draw(st.sampled_from(sorted(self.leases)))
        del self.leases[lease_id]
        assert self.holds.release(lease_id) and not self.holds.release(lease_id)

    @rule(passes=st.integers(1, 10))
    def time_passes(self, passes: int) -> None:
        self.now += passes
        over = {lease_id for lease_id, until in self.leases.items() if until <= self.now}
        assert set(self.holds.expire(self.now)) == over
        for lease_id in over:
            del self.leases[lease_id]

    @precondition(lambda self: self.owned)
    @rule(data=st.data())
    def post(self, data: st.DataObject) -> None:
        transfer = self.holds.post(data.draw(st.sampled_from(self.owned)), self.now + 5)
        self.transfers[transfer.transfer_id] = transfer.blocks

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def terminal(self, data: st.DataObject) -> None:
        transfer_id = data.draw(st.sampled_from(sorted(self.transfers)))
        del self.transfers[transfer_id]
        self.holds.terminal(transfer_id)

    @rule()
    def other_weights(self) -> None:
        self.pool.forget_prefixes()
        assert self.pool.cached == 0

    @invariant()
    def everything_adds_up(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity((*(block for blocks in self.owned for block in blocks), *self.holds.blocks))
        for stored, digest in self.pool.take_events().changes:
            if stored:
                assert digest not in self.index
                self.index[digest] = 1
            else:
                del self.index[digest]
        assert len(self.index) == self.pool.cached
        assert all(self.pool.find([digest]) for digest in self.index)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for blocks in self.owned:
            self.pool.release(blocks)
        for lease_id in self.leases:
            self.holds.release(lease_id)
        held = {block for blocks in self.transfers.values() for block in blocks}
        assert self.pool.free == self.pool.usable - len(held), "only transfers still hold blocks"
        for transfer_id in self.transfers:
            self.holds.terminal(transfer_id)
        assert self.pool.free == self.pool.usable


TestPoolHistory = PoolHistory.TestCase


def owned(pool: BlockPool, count: int) -> list[int]:
    blocks = pool.allocate(count)
    assert blocks is not None
    return blocks


def test_freeing_twice_is_an_error() -> None:
    pool = BlockPool(4, 2)
    blocks = owned(pool, 2)
    pool.release(blocks)
    with pytest.raises(ValueError, match="not owned"):
        pool.release(blocks)
    with pytest.raises(ValueError, match="not owned"):
        pool.share(blocks)
    with pytest.raises(ValueError, match="not owned"):
        pool.publish(blocks[0], b"x")


def test_a_block_handed_out_again_has_a_higher_generation() -> None:
    pool = BlockPool(2, 2)
    first = owned(pool, 1)
    before = pool.generations[first[0]]
    pool.release(first)
    assert owned(pool, 1) == first
    assert pool.generations[first[0]] == before + 1


def test_the_least_recently_used_suffix_leaves_the_cache_first() -> None:
    pool = BlockPool(5, 1)
    old, new = owned(pool, 2), owned(pool, 2)
    for block, name in zip([*old, *new], (b"old", b"old, more", b"new", b"new, more"), strict=True):
        pool.publish(block, name)
    pool.release(old)
    pool.release(new)
    pool.take_events()
    owned(pool, 3)
    assert pool.take_events().changes == [(False, b"old, more"), (False, b"old"), (False, b"new, more")]
    assert pool.find([b"new", b"new, more"]) == new[:1]


def test_quarantine_outlives_owner_and_lease() -> None:
    pool = BlockPool(3, 1)
    holds = Holds(pool, pin_share=1.0)
    blocks = owned(pool, 2)
    transfer, lease = holds.post(blocks[:1], due_us=50), holds.lease(blocks, until_us=10)
    assert lease is not None and lease.generations == (1, 1)
    pool.release(blocks)
    assert holds.expire(10) == [lease.lease_id] and (holds.leased_blocks, holds.quarantined_blocks) == (0, 1)
    assert owned(pool, 1) == blocks[1:] and pool.allocate(1) is None
    assert not holds.overdue(49) and holds.overdue(50) == [transfer]
    holds.terminal(transfer.transfer_id)
    assert owned(pool, 1) == blocks[:1]
    with pytest.raises(KeyError):
        holds.terminal(transfer.transfer_id)


def test_too_many_unread_events_are_said_to_be_lost() -> None:
    pool = BlockPool(2, 1)
    block = owned(pool, 1)
    for number in range(EVENT_LIMIT):
        pool.publish(block[0], number.to_bytes(4, "little"))
        pool.release(block)
        block = owned(pool, 1)
    events = pool.take_events()
    assert events.lost and len(events.changes) <= EVENT_LIMIT
    assert not pool.take_events().lost
