"""Blocks set aside for sequences that are still running elsewhere, or wait for a prefix that a peer keeps, filled by
transfers until they come.

What a reservation holds may be trusted only where a transfer has ended well: a block counts as filled from then until
the next transfer into it begins. Blocks that a transfer may still write to are in quarantine (steps.holds); they are
never aimed at again, nor given to a sequence.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.steps.blocks import BlockPool


@dataclass(slots=True)
class _Reservation:
    blocks: list[int]
    filled: set[int] = field(default_factory=set)


class Reservations:
    """At most one for each attempt of a request. An owner of blocks like any other."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._held: dict[tuple[str, Attempt], _Reservation] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def blocks(self) -> Iterable[int]:
        for reservation in self._held.values():
            yield from reservation.blocks

    @property
    def reserved_blocks(self) -> int:
        return sum(len(reservation.blocks) for reservation in self._held.values())

    def reserve(self, request_id: str, attempt: Attempt, tokens: int, spare: int = 0) -> bool:
        """Owns blocks for so many tokens; asked again, it grows, and never shrinks. False, and nothing changed, where
        fewer than that are free beside `spare`: blocks that those who run here need next."""
        held = self._held.get((request_id, attempt))
        more = self._pool.blocks_for(tokens) - (len(held.blocks) if held else 0)
        if more > 0 and more + spare > self._pool.free:
            return False
        taken = self._pool.allocate(max(more, 0))
        if taken is None:
            return False
        if held is None:
            self._held[request_id, attempt] = _Reservation(taken)
        else:
            held.blocks += taken
        return True

    def begin(self, request_id: str, attempt: Attempt, found: list[int], more: int, spare: int = 0) -> bool:
        """A new one: blocks that the cache has, which are filled, and `more` after them. False, and nothing changed,
        where too few are free, as in `reserve`, or the attempt has one."""
        if (request_id, attempt) in self._held or more + self._pool.idle(found) + spare > self._pool.free:
            return False
        self._pool.share(found)
        fresh = self._pool.allocate(more)
        assert fresh is not None, "as many were free"
        self._held[request_id, attempt] = _Reservation(found + fresh, set(found))
        return True

    def aim(
        self, request_id: str, attempt: Attempt, first: int, count: int, busy: Container[int]
    ) -> tuple[int, ...] | None:
        """Its blocks [first, first + count), for a transfer to write to: from now on they are not filled. Those that
        are `busy`, in quarantine, are replaced by fresh ones. None where it has no such blocks, or none are free."""
        held = self._held.get((request_id, attempt))
        if held is None or first < 0 or count < 1 or first + count > len(held.blocks):
            return None
        places = [place for place in range(first, first + count) if held.blocks[place] in busy]
        fresh = self._pool.allocate(len(places))
        if fresh is None:
            return None
        self._pool.release([held.blocks[place] for place in places])
        for place, block in zip(places, fresh, strict=True):
            held.blocks[place] = block
        aimed = tuple(held.blocks[first : first + count])
        held.filled.difference_update(aimed)
        return aimed

    def fill(self, request_id: str, attempt: Attempt, blocks: Iterable[int]) -> None:
        """A transfer into these ended well; harmless where the reservation is gone, or has others by now."""
        held = self._held.get((request_id, attempt))
        if held is not None:
            held.filled.update(set(blocks).intersection(held.blocks))

    def take(self, request_id: str, attempt: Attempt, computed: int, busy: Container[int]) -> tuple[list[int], int]:
        """Ends it: (blocks, which the caller owns now, and how many of the first `computed` tokens are in them).
        Nothing that was not filled is counted, and no busy block is among them. ([], 0) where there is none."""
        held = self._held.pop((request_id, attempt), None)
        if held is None:
            return [], 0
        filled = 0
        while filled < len(held.blocks) and held.blocks[filled] in held.filled:
            filled += 1
        # Blocks without contents are as good in one order as in another.
        kept = [block for place, block in enumerate(held.blocks) if place < filled or block not in busy]
        self._pool.release([block for place, block in enumerate(held.blocks) if place >= filled and block in busy])
        return kept, min(computed, filled * self._pool.block_tokens)

    def release(self, request_id: str, attempt: Attempt) -> bool:
        """Lets it go; False where there is none."""
        held = self._held.pop((request_id, attempt), None)
        if held is not None:
            self._pool.release(held.blocks)
        return held is not None

    def release_until(self, request_id: str, attempt: Attempt) -> list[Attempt]:
        """Lets those of a request go that are for this attempt or older ones; which they were."""
        over = [held for name, held in self._held if name == request_id and held <= attempt]
        for held in over:
            self.release(request_id, held)
        return over
