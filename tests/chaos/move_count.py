"""How many running requests have changed workers, and why, and how many prefixes were read from peers: all schedulers
and workers are asked all the time."""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.request
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

from hyperflexis_common.server import cancel_all

SCRAPE_S = 0.2
ANSWER_S = 1.0
KINDS = {"role": "hand_offs", "operator": "migrations", "drain": "drains"}
"""What the scheduler calls the reason, and what we call the move."""
_COUNTED = re.compile(
    r"^hyperflexis_(?:scheduler_moves_(done|failed)|worker_prefix_(pulls))_total"
    r'\{(?:reason|outcome)="([^"]*)"\} (\S+)$',
    re.MULTILINE,
)


class MoveCount:
    """Use as `async with`. What a process does between the last look and its death is not counted: never too many."""

    def __init__(self, metrics: Mapping[str, int]) -> None:
        """`metrics`: the port of each scheduler's and worker's."""
        self._ports = dict(metrics)
        self._last: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in metrics}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        """By why."""
        self.pulls: Counter[str] = Counter()
        """By what came of them."""

    async def __aenter__(self) -> MoveCount:
        self._tasks = [asyncio.create_task(self._look_often(name)) for name in self._ports]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await cancel_all(*self._tasks)
        for name in self._ports:
            await self._look(name)

    def take(self, name: str, text: str) -> None:
        """What its counters are now; they begin anew with each process, and with each time as leader."""
        found: Counter[tuple[str, str]] = Counter()
        for move, pull, reason, count in _COUNTED.findall(text):
            found[move or pull, reason] = int(float(count))
        last = self._last[name]
        if any(found[key] < count for key, count in last.items()):
            last = Counter()
        for (what, reason), count in (found - last).items():
            if what == "done":
                self.done[KINDS.get(reason, reason)] += count
            else:
                (self.pulls if what == "pulls" else self.failed)[reason] += count
        self._last[name] = found

    async def _look_often(self, name: str) -> None:
        while True:
            await self._look(name)
            await asyncio.sleep(SCRAPE_S)

    async def _look(self, name: str) -> None:
        try:
            self.take(name, await asyncio.to_thread(self._read, self._ports[name]))
        except (OSError, http.client.HTTPException):  # it is dead, stopped, not up yet, or died while it answered
            return

    def _read(self, port: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_S) as answer:
            return str(answer.read(), "utf-8")
