"""Blocks held for somebody outside this worker: leases on exported caches, and transfers under way.

A lease lets a peer read what a prefill made; it ends by release or by time. A transfer writes into blocks of this
pool; from its post until it is known to be over its blocks are in quarantine: neither cancellation, nor time, nor the
owner's release makes them free, because a one-sided read that is still in flight would overwrite the next owner.
Both are owners like any other, so the pool needs to know nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hyperflexis_worker.core.blocks import BlockPool

PIN_SHARE = 0.3
"""Of the pool, leased at most: beyond it an export decodes in place instead."""


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: int
    blocks: tuple[int, ...]
    generations: tuple[int, ...]
    """Of those blocks at grant: a reader checks that they did not change."""
    until_us: int


@dataclass(frozen=True, slots=True)
class Transfer:
    transfer_id: int
    blocks: tuple[int, ...]
    due_us: int
    """Not over by then: the transport is broken, and only a new process is safe."""


class Holds:
    """Leases and quarantines over one pool. Ids count up from 1 and are never used again."""

    def __init__(self, pool: BlockPool, pin_share: float = PIN_SHARE) -> None:
        self._pool = pool
        self._limit = int(pool.usable * pin_share)
        self._leases: dict[int, Lease] = {}
        self._transfers: dict[int, Transfer] = {}
        self._next = 1

    @property
    def leased_blocks(self) -> int:
        return len({block for lease in self._leases.values() for block in lease.blocks})

    @property
    def quarantined_blocks(self) -> int:
        return len({block for transfer in self._transfers.values() for block in transfer.blocks})

    @property
    def blocks(self) -> Iterable[int]:
        """Every block once for each hold on it."""
        for lease in self._leases.values():
            yield from lease.blocks
        for transfer in self._transfers.values():
            yield from transfer.blocks

    def lease(self, blocks: Iterable[int], until_us: int) -> Lease | None:
        """Pins owned blocks for a reader elsewhere; None where that would pin too much of the pool."""
        wanted = tuple(blocks)
        pinned = {block for lease in self._leases.values() for block in lease.blocks}
        if len(pinned.union(wanted)) > self._limit:
            return None
        self._pool.share(wanted)
        lease = Lease(self._take_id(), wanted, tuple(self._pool.generations[block] for block in wanted), until_us)
        self._leases[lease.lease_id] = lease
        return lease

    def release(self, lease_id: int) -> bool:
        """Ends a lease; False where it had ended already."""
        lease = self._leases.pop(lease_id, None)
        if lease is not None:
            self._pool.release(lease.blocks)
        return lease is not None

    def expire(self, now_us: int) -> list[int]:
        """Ends the leases whose time is over; their ids."""
        over = [lease.lease_id for lease in self._leases.values() if lease.until_us <= now_us]
        for lease_id in over:
            self.release(lease_id)
        return over

    def post(self, blocks: Iterable[int], due_us: int) -> Transfer:
        """A transfer into owned blocks begins: they are in quarantine until `terminal`."""
        wanted = tuple(blocks)
        self._pool.share(wanted)
        transfer = Transfer(self._take_id(), wanted, due_us)
        self._transfers[transfer.transfer_id] = transfer
        return transfer

    def terminal(self, transfer_id: int) -> None:
        """The transport says that nothing of it can arrive any more. Raises KeyError for an unknown one."""
        self._pool.release(self._transfers.pop(transfer_id).blocks)

    def overdue(self, now_us: int) -> list[Transfer]:
        """Transfers that should have been over: drain and restart this worker."""
        return [transfer for transfer in self._transfers.values() if transfer.due_us <= now_us]

    def _take_id(self) -> int:
        self._next += 1
        return self._next - 1
