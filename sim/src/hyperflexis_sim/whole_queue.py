"""All that is queued counts as ahead, whatever its turn: an ablation."""

from __future__ import annotations

import math

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice, EarliestFirstToken
from hyperflexis_scheduler.core.loads import Slots, WorkerLoads


class WholeQueue:
    def __init__(self) -> None:
        self._earliest = EarliestFirstToken()

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        last = self._earliest.choose(ask._replace(ttft_us=math.inf), loads, among)
        return last._replace(foretold=None)
