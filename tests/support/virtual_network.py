"""Ordered streams between state machines, in virtual time: delays, drops, breaks, one total order of events."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any


class VirtualTime:
    """Runs callbacks in (time, insertion) order."""

    def __init__(self, start_us: int = 1_000_000) -> None:
        self.now_us = start_us
        self._heap: list[tuple[int, int, Callable[[], object]]] = []
        self._order = itertools.count()

    def after(self, delay_us: int, callback: Callable[[], object]) -> None:
        heapq.heappush(self._heap, (self.now_us + max(delay_us, 0), next(self._order), callback))

    def run_until(self, end_us: int, done: Callable[[], bool] = lambda: False) -> None:
        while self._heap and self._heap[0][0] <= end_us and not done():
            self.now_us, _, callback = heapq.heappop(self._heap)
            callback()
        if not done():
            self.now_us = max(self.now_us, end_us)


class Link:
    """One bidirectional stream. Messages keep their order each way; a break loses what is under way and both
    ends hear of it, each at its own time."""

    def __init__(
        self,
        time: VirtualTime,
        chance: random.Random,
        to_server: Callable[[Any], None],
        to_client: Callable[[Any], None],
        server_closed: Callable[[], None],
        client_closed: Callable[[], None],
        slow_us: int = 3_000,
    ) -> None:
        self._time = time
        self._chance = chance
        self._deliver = {"up": to_server, "down": to_client}
        self._closed = {"up": server_closed, "down": client_closed}
        self._last_us = {"up": 0, "down": 0}
        self._told: set[str] = set()
        self._slow_us = slow_us
        self._held_until_us = {"up": 0, "down": 0}
        self.broken = False

    def send(self, way: str, message: Any) -> None:
        """`way`: "up" = client to server."""
        if self.broken:
            return
        due = max(
            self._time.now_us + self._chance.randrange(50, self._slow_us), self._last_us[way], self._held_until_us[way]
        )
        self._last_us[way] = due
        self._time.after(due - self._time.now_us, lambda: self._arrive(way, message))

    def hold(self, way: str, for_us: int) -> None:
        """Everything sent from now on that way waits at least this long: one stream lags, others go on."""
        self._held_until_us[way] = self._time.now_us + for_us

    def break_now(self, skew_us: int = 50_000) -> None:
        """Loses what is under way; each end hears of it after up to `skew_us`."""
        if self.broken:
            return
        self.broken = True
        for way in ("up", "down"):
            self._time.after(self._chance.randrange(0, skew_us), partial(self._tell, way))

    def close_from(self, way: str) -> None:
        """One end closes: it hears nothing more; what it sent still arrives, then the other end hears the end."""
        if self.broken:
            return
        other = "down" if way == "up" else "up"
        self._told.add(other)
        sent_us = self._last_us[way]
        self._time.after(max(sent_us - self._time.now_us, 0) + 100, lambda: self._finish(way))

    def _finish(self, way: str) -> None:
        self.broken = True
        self._tell(way)

    def _arrive(self, way: str, message: Any) -> None:
        if not self.broken and way not in self._told:
            self._deliver[way](message)

    def _tell(self, way: str) -> None:
        if way not in self._told:
            self._told.add(way)
            self._closed[way]()
