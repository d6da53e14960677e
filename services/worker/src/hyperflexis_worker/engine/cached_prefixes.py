"""Beginnings of prompts in the prefix cache: leased to peers that read them, and read from peers that keep them."""

from __future__ import annotations

from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import HASH_BYTES
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.holds import Holds
from hyperflexis_worker.steps.reservations import Reservations


class CachedPrefixes:
    def __init__(self, pool: BlockPool, holds: Holds, reservations: Reservations) -> None:
        self._pool = pool
        self._holds = holds
        self._reservations = reservations

    def export(self, command: kv.ExportPrefix, now_us: int) -> kv.Exported:
        """A lease on the longest beginning that is here, and no more of it than leases may hold alone."""
        number = command.number
        blocks = self._pool.find(_digests(command.hashes))[: self._holds.limit]
        if not blocks:
            return kv.Exported(number, error="nothing of it is cached here")
        lease = self._holds.lease(blocks, now_us + command.lease_us, alone=True)
        if lease is None:
            return kv.Exported(number, error=f"{self._holds.limit} blocks at most may be held for readers", full=True)
        return kv.Exported(
            number=number,
            lease_id=lease.lease_id,
            blocks=blocks,
            generations=list(lease.generations),
            computed=len(blocks) * self._pool.block_tokens,
        )

    def reserve(self, command: kv.ReservePrefix, spare: int) -> kv.Reserved:
        """`spare`: blocks to be left free beside."""
        attempt = Attempt(command.leader_epoch, command.seq)
        digests = _digests(command.hashes)
        found = self._pool.find(digests)
        ok = self._reservations.begin(command.request_id, attempt, found, len(digests) - len(found), spare)
        return kv.Reserved(command.request_id, *attempt, ok, self._pool.free, len(found))

    def keep(self, command: kv.KeepPrefix, quarantined: set[int]) -> None:
        """What was read is found by its hashes, as if it had been computed here; the least recently used goes first."""
        digests = _digests(command.hashes)
        wanted = len(digests) * self._pool.block_tokens
        attempt = Attempt(command.leader_epoch, command.seq)
        blocks, usable = self._reservations.take(command.request_id, attempt, wanted, quarantined)
        for block, digest in zip(blocks[: usable // self._pool.block_tokens], digests, strict=False):
            self._pool.publish(block, digest)
        self._pool.release(blocks)


def _digests(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes) - HASH_BYTES + 1, HASH_BYTES)]
