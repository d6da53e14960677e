"""Which worker keeps which prompt prefixes, as far as their reports tell: what a placement may hope to find there.

Late and incomplete by nature: a worker looks for itself when the request comes. A hash stands for everything up to the
end of its block (common.prefix), so that a worker that has one of a chain has had all before it.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_scheduler.core.loads import Floats, Slots

HASH_BYTES = 16
SLOT_LIMIT = 262_144
"""Hashes kept of one worker; beyond it new ones are not remembered."""


class PrefixIndex:
    """A bit for each slot of WorkerLoads under each hash: one look-up serves a thousand workers."""

    def __init__(self) -> None:
        self._workers: dict[bytes, int] = {}
        self._of: dict[int, set[bytes]] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def stored(self, slot: int, hashes: bytes) -> None:
        """Packed, HASH_BYTES each."""
        held, bit = self._of.setdefault(slot, set()), 1 << slot
        for digest in _unpacked(hashes):
            if len(held) >= SLOT_LIMIT:
                return
            held.add(digest)
            self._workers[digest] = self._workers.get(digest, 0) | bit

    def removed(self, slot: int, hashes: bytes) -> None:
        held = self._of.get(slot, set())
        for digest in _unpacked(hashes):
            if digest in held:
                held.discard(digest)
                self._clear(digest, slot)

    def forget(self, slot: int) -> None:
        """Nothing is known of this worker any more."""
        for digest in self._of.pop(slot, set()):
            self._clear(digest, slot)

    def cached_blocks(self, hashes: bytes, among: Slots) -> Floats | None:
        """[len(among)] Blocks of this chain at each, exactly for whoever has most, at least half for the others; None
        where nobody has any."""
        count = len(hashes) // HASH_BYTES
        found, depth, deepest = None, 1, 0
        while count:
            mask = self._workers.get(hashes[(depth - 1) * HASH_BYTES : depth * HASH_BYTES], 0)
            if not mask:
                break
            found, deepest = self._mark(found, mask, depth, among), depth
            if depth == count:
                return found
            depth = min(2 * depth, count)
        if deepest:
            # Between the last that somebody has and the first that nobody has: how far whoever is ahead goes.
            low, high = deepest, depth
            while high - low > 1:
                middle = (low + high) // 2
                mask = self._workers.get(hashes[(middle - 1) * HASH_BYTES : middle * HASH_BYTES], 0)
                low, high = (middle, high) if mask else (low, middle)
                if mask:
                    found = self._mark(found, mask, middle, among)
        return found

    def blocks_of(self, slot: int, hashes: bytes) -> int:
        """Blocks of this chain at this one, exactly."""
        held = self._of.get(slot, set())
        low, high = 0, len(hashes) // HASH_BYTES + 1
        while high - low > 1:
            middle = (low + high) // 2
            there = hashes[(middle - 1) * HASH_BYTES : middle * HASH_BYTES] in held
            low, high = (middle, high) if there else (low, middle)
        return low

    @staticmethod
    def _mark(found: Floats | None, mask: int, depth: int, among: Slots) -> Floats:
        marked = np.zeros(len(among)) if found is None else found
        for at, slot in enumerate(among.tolist()):
            if mask >> slot & 1:
                marked[at] = depth
        return marked

    def _clear(self, digest: bytes, slot: int) -> None:
        left = self._workers[digest] & ~(1 << slot)
        if left:
            self._workers[digest] = left
        else:
            del self._workers[digest]


def _unpacked(hashes: bytes) -> list[bytes]:
    return [hashes[at : at + HASH_BYTES] for at in range(0, len(hashes) - HASH_BYTES + 1, HASH_BYTES)]
