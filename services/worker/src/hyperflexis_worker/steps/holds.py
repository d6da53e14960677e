"""Blocks held for somebody outside this worker: leases on exported caches, and transfers under way.

A lease lets a peer read what a prefill made; it ends by release or by time. A transfer writes into blocks of this
pool; from its post until it is known to be over its blocks are in quarantine: neither cancellation, nor time, nor the
owner's release makes them free, because a one-sided read that is still in flight would overwrite the next owner.
Both are owners like any other, so the pool needs to know nothing of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from hyperflexis_worker.steps.blocks import BlockPool

PIN_SHARE = 0.3
"""Of the pool, in leases whose sequence has left, at most: beyond it the next one stays and decodes in place. What a
sequence that runs here owns anyway is leased without limit, and a sequence of any size may leave alone."""


@dataclass(frozen=True, slots=True)
class Lease:
    lease_id: int
    blocks: tuple[int, ...]
    generations: tuple[int, ...]
    """Of those blocks at grant: a reader checks that they did not change."""
    until_us: int
    alone: bool = False
    """No sequence need own what it holds: its own has left, or it is a cached prefix."""


@dataclass(frozen=True, slots=True)
class Transfer:
    transfer_id: int
    blocks: tuple[int, ...]
    due_us: int
    """Not over by then: the transport is broken, and only a new process is safe."""


class Holds:
    """Leases and quarantines over one pool. Ids count up from `first_id` and are never used again."""

    def __init__(self, pool: BlockPool, pin_share: float = PIN_SHARE, first_id: int = 1) -> None:
        self._pool = pool
        self._limit = int(pool.usable * pin_share)
        self._leases: dict[int, Lease] = {}
        self._transfers: dict[int, Transfer] = {}
        self._next = first_id

    def __bool__(self) -> bool:
        """Whether anything is held."""
        return bool(self._leases or self._transfers)

    @property
    def limit(self) -> int:
        """Blocks that leases may hold alone."""
        return self._limit

    @property
    def next_end_us(self) -> int | None:
        """When the next lease ends, or the next transfer is overdue."""
        ends = [lease.until_us for lease in self._leases.values()]
        return min((*ends, *(transfer.due_us for transfer in self._transfers.values())), default=None)

    @property
    def leased_blocks(self) -> int:
        return len({block for lease in self._leases.values() for block in lease.blocks})

    @property
    def quarantined_blocks(self) -> int:
        return len(self.quarantined)

    @property
    def quarantined(self) -> set[int]:
        """Blocks that a transfer may still write to."""
        return {block for transfer in self._transfers.values() for block in transfer.blocks}

    @property
    def blocks(self) -> Iterable[int]:
        """Every block once for each hold on it."""
        for lease in self._leases.values():
            yield from lease.blocks
        for transfer in self._transfers.values():
            yield from transfer.blocks

    def lease(self, blocks: Iterable[int], until_us: int, alone: bool = False) -> Lease | None:
        """Pins owned or cached blocks for a reader elsewhere. `alone`: their sequence leaves, or they need none; None
        where that would pin too much of the pool."""
        wanted = tuple(blocks)
        if alone and not self._may_pin(wanted):
            return None
        self._pool.share(wanted)
        lease = Lease(self._take_id(), wanted, self._generations(wanted), until_us, alone)
        self._leases[lease.lease_id] = lease
        return lease

    def extend(self, lease_id: int, blocks: Iterable[int], until_us: int, alone: bool = False) -> Lease | None:
        """The lease lasts until then, and takes in those of the blocks that it does not have. `alone` as in `lease`;
        None, and nothing changed, where that would pin too much. Raises KeyError for a lease that has ended."""
        lease = self._leases[lease_id]
        has = set(lease.blocks)
        fresh = tuple(block for block in blocks if block not in has)
        if alone and not self._may_pin(lease.blocks + fresh):
            return None
        self._pool.share(fresh)
        generations = lease.generations + self._generations(fresh)
        grown = replace(
            lease, blocks=lease.blocks + fresh, generations=generations, until_us=until_us, alone=lease.alone or alone
        )
        self._leases[lease_id] = grown
        return grown

    def get(self, lease_id: int) -> Lease | None:
        """None where it has ended."""
        return self._leases.get(lease_id)

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

    def _may_pin(self, blocks: tuple[int, ...]) -> bool:
        pinned = {block for lease in self._leases.values() if lease.alone for block in lease.blocks}
        return not pinned or len(pinned.union(blocks)) <= self._limit

    def _generations(self, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._pool.generations[block] for block in blocks)

    def _take_id(self) -> int:
        self._next += 1
        return self._next - 1
