"""Blocks set aside for sequences to come, with transfers that end when they like: nothing leaks, and no transfer ever
writes to a block that a sequence owns or that a reservation counts as filled."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.holds import Holds
from hyperflexis_worker.steps.reservations import Reservations

NAMES = st.sampled_from("abc")
ATTEMPTS = st.builds(Attempt, st.just(1), st.integers(1, 2))


class ReservationHistory(RuleBasedStateMachine):
    @initialize(blocks=st.integers(3, 16), block_tokens=st.integers(1, 4))
    def begin(self, blocks: int, block_tokens: int) -> None:
        self.pool = BlockPool(blocks, block_tokens)
        self.holds = Holds(self.pool, pin_share=0.5)
        self.reservations = Reservations(self.pool)
        self.sequences: list[list[int]] = []
        self.transfers: dict[int, tuple[tuple[str, Attempt], tuple[int, ...]]] = {}
        self.leases: set[int] = set()
        self.now = 0

    @rule(name=NAMES, attempt=ATTEMPTS, tokens=st.integers(1, 24), spare=st.integers(0, 2))
    def reserve(self, name: str, attempt: Attempt, tokens: int, spare: int) -> None:
        free, before = self.pool.free, self.reservations.reserved_blocks
        if self.reservations.reserve(name, attempt, tokens, spare):
            assert self.pool.free == free - (self.reservations.reserved_blocks - before)
            assert self.pool.free == free or self.pool.free >= spare
        else:
            assert (self.pool.free, self.reservations.reserved_blocks) == (free, before)

    @rule(name=NAMES, attempt=ATTEMPTS, first=st.integers(-1, 6), count=st.integers(0, 6))
    def read_into(self, name: str, attempt: Attempt, first: int, count: int) -> None:
        busy = self.holds.quarantined
        local = self.reservations.aim(name, attempt, first, count, busy)
        if local is not None:
            assert len(local) == count and not busy.intersection(local)
            transfer = self.holds.post(local, self.now + 5)
            self.transfers[transfer.transfer_id] = ((name, attempt), local)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data(), well=st.booleans())
    def transfer_ends(self, data: st.DataObject, well: bool) -> None:
        transfer_id = data.draw(st.sampled_from(sorted(self.transfers)))
        key, local = self.transfers.pop(transfer_id)
        if well:
            self.reservations.fill(*key, local)
        self.holds.terminal(transfer_id)

    @rule(name=NAMES, attempt=ATTEMPTS)
    def cancel(self, name: str, attempt: Attempt) -> None:
        self.reservations.release(name, attempt)
        assert not self.reservations.release(name, attempt)

    @rule(name=NAMES, attempt=ATTEMPTS)
    def drop(self, name: str, attempt: Attempt) -> None:
        gone = self.reservations.release_until(name, attempt)
        assert all(one <= attempt for one in gone)

    @rule(name=NAMES, attempt=ATTEMPTS, computed=st.integers(0, 24))
    def attach(self, name: str, attempt: Attempt, computed: int) -> None:
        blocks, usable = self.reservations.take(name, attempt, computed, self.holds.quarantined)
        assert usable <= computed and self.pool.blocks_for(usable) <= len(blocks)
        self.sequences.append(blocks)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def sequence_ends(self, data: st.DataObject) -> None:
        self.pool.release(self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1))))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data(), lasts=st.integers(1, 9), alone=st.booleans())
    def export(self, data: st.DataObject, lasts: int, alone: bool) -> None:
        blocks = data.draw(st.sampled_from(self.sequences))
        known = [lease_id for lease_id in sorted(self.leases) if self.holds.get(lease_id)]
        if known and data.draw(st.booleans()):
            lease = self.holds.extend(data.draw(st.sampled_from(known)), blocks, self.now + lasts, alone)
        else:
            lease = self.holds.lease(blocks, self.now + lasts, alone)
        waiting = [w for w in map(self.holds.get, self.leases) if w is not None and w.alone]
        assert lease is not None or waiting
        if lease is not None:
            self.leases.add(lease.lease_id)
            assert set(blocks) <= set(lease.blocks) and len(set(lease.blocks)) == len(lease.blocks)
            assert lease.generations == tuple(self.pool.generations[block] for block in lease.blocks)
        if len(waiting) > 1:
            assert len({block for each in waiting for block in each.blocks}) <= max(
                self.holds.limit, *(len(each.blocks) for each in waiting)
            )

    @rule(passes=st.integers(1, 6))
    def time_passes(self, passes: int) -> None:
        self.now += passes
        self.holds.expire(self.now)
        next_us = self.holds.next_end_us
        assert bool(self.holds) == (next_us is not None)

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "pool"):
            return
        owned = [block for blocks in self.sequences for block in blocks]
        self.pool.check_integrity((*owned, *self.holds.blocks, *self.reservations.blocks))
        writable = {block for _, local in self.transfers.values() for block in local}
        assert writable == self.holds.quarantined
        assert not writable.intersection(owned), "a transfer may write into a sequence"
        filled = {block for one in self.reservations._held.values() for block in one.filled}
        assert not writable.intersection(filled), "a transfer may write over what was read"

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        for name in "abc":
            self.reservations.release_until(name, Attempt(9, 9))
        for blocks in self.sequences:
            self.pool.release(blocks)
        self.holds.expire(10**9)
        for transfer_id in self.transfers:
            self.holds.terminal(transfer_id)
        assert self.pool.free == self.pool.usable


TestReservationHistory = ReservationHistory.TestCase


def test_a_block_that_may_still_be_written_to_is_replaced_before_it_is_read_into_again() -> None:
    pool = BlockPool(8, 4)
    holds, reservations, attempt = Holds(pool), Reservations(pool), Attempt(1, 1)
    assert reservations.reserve("r", attempt, 12)
    first = reservations.aim("r", attempt, 0, 3, holds.quarantined)
    assert first is not None
    late = holds.post(first, 5)
    again = reservations.aim("r", attempt, 1, 2, holds.quarantined)
    assert again is not None and not set(again) & set(first)
    second = holds.post(again, 5)
    reservations.fill("r", attempt, again)
    holds.terminal(second.transfer_id)
    # Its first block is the late transfer's still: nothing of it can be used, but two blocks of room.
    blocks, computed = reservations.take("r", attempt, 12, holds.quarantined)
    assert (sorted(blocks), computed) == (sorted(again), 0)
    holds.terminal(late.transfer_id)
    pool.release(blocks)
    assert pool.free == pool.usable
