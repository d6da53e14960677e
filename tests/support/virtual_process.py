"""A core with a clock and a life of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtual_cell import VirtualCell

SECOND = 1_000_000
TICK_US = 50_000
SKEW_US = 5_000_000
"""Every process's clock is up to this far from the others'."""


class Process:
    """A core with its own clock and its own life."""

    def __init__(self, cell: VirtualCell) -> None:
        self.cell = cell
        self.skew_us = cell.chance.randrange(0, SKEW_US)
        self.alive = True
        self.stopped_until_us = 0
        self._backlog: list[Callable[[], None]] = []

    def now_us(self) -> int:
        return self.cell.time.now_us + self.skew_us

    def deliver(self, callback: Callable[[], None]) -> None:
        """Runs now; after it wakes where it is stopped; never where it is dead."""
        if not self.alive:
            return
        if self.cell.time.now_us < self.stopped_until_us:
            self._backlog.append(callback)
            return
        callback()

    def stop_for(self, for_us: int) -> None:
        self.stopped_until_us = self.cell.time.now_us + for_us
        self.cell.time.after(for_us, self._wake)

    def _wake(self) -> None:
        if self.cell.time.now_us >= self.stopped_until_us:
            backlog, self._backlog = self._backlog, []
            for callback in backlog:
                self.deliver(callback)
