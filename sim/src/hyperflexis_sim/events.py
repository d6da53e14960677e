"""What is to happen when. Events have a total order (time, then the order in which they were made), so that a seed
gives one result."""

from __future__ import annotations

import heapq
from collections.abc import Callable


class Events:
    """Times in microseconds. `now_us` is that of the event which runs."""

    def __init__(self) -> None:
        self.now_us = 0.0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._made = 0

    @property
    def next_us(self) -> float | None:
        """None: nothing is to happen."""
        return self._queue[0][0] if self._queue else None

    def at(self, time_us: float, action: Callable[..., None], *arguments: object) -> None:
        self._made += 1
        heapq.heappush(self._queue, (time_us, self._made, action, arguments))

    def later(self, time_us: float, action: Callable[..., None], *arguments: object) -> None:
        """Like `at`, and tells the action the time."""
        self.at(time_us, lambda: action(*arguments, self.now_us))

    def run_next(self, until_us: float) -> bool:
        """False where it is later than that: it has not run, and nothing is to run any more."""
        self.now_us, _, action, arguments = heapq.heappop(self._queue)
        if self.now_us > until_us:
            return False
        action(*arguments)
        return True
