"""In what order reads of caches go where they have to wait, for a slot or for a link.

A request stands still only while its last blocks are read. So this read overtakes those of requests that still run
where they are; these are read piece by piece, so that it waits for no more of them than has been begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

IN_FLIGHT_US = 4_000
"""What of pre-copies is under way at once takes so long on its link: longer, and a last read waits."""
PIECE_BYTES = 2**20
"""A piece of a pre-copy has as many at least: fewer, and the link waits for us."""
OVERTAKES = 16
"""After so many last reads one piece of those that they overtook goes first: nobody waits for ever."""

Read = TypeVar("Read")


class ReadOrder(Generic[Read]):
    """First come, first served among last reads, and among the others. A read is here until all of it has begun."""

    def __init__(self) -> None:
        self._last: list[Read] = []
        self._others: list[Read] = []
        self._overtaken = 0

    def __len__(self) -> int:
        return len(self._last) + len(self._others)

    def __iter__(self) -> Iterator[Read]:
        """Who may go, best first, as they are now."""
        if self.others_first:
            return iter([*self._others, *self._last])
        return iter([*self._last, *self._others])

    @property
    def others_first(self) -> bool:
        """They have been overtaken often enough."""
        return self._overtaken >= OVERTAKES

    def add(self, read: Read, last: bool) -> None:
        (self._last if last else self._others).append(read)

    def began(self, read: Read) -> None:
        """A piece of it, or all."""
        if read not in self._last:
            self._overtaken = 0
        elif self._others:
            self._overtaken += 1

    def remove(self, read: Read) -> None:
        """Nothing of it waits any more."""
        for reads in (self._last, self._others):
            if read in reads:
                reads.remove(read)
