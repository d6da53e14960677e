"""Workers divided among the promises on TPOT: an ablation. docs/scheduling.md says what it gains, and loses."""

from __future__ import annotations

import math

from hyperflexis_scheduler.core.dispatch_policy import Ask, Choice, EarliestFirstToken
from hyperflexis_scheduler.core.loads import Slots, WorkerLoads

MEMORY = 0.999
"""Of the work seen, what is left after each request."""
DECODE_US = 100.0
"""About what a decode adds to a step."""


class TierPartition:
    """Each TPOT owns a stretch of the workers, as long as its share of the work asked for lately, the tightest first.
    A worker in which two stretches meet serves both."""

    def __init__(self) -> None:
        self._work_us: dict[float, float] = {}
        """By TPOT."""
        self._earliest = EarliestFirstToken()

    def choose(self, ask: Ask, loads: WorkerLoads, among: Slots) -> Choice:
        work_us = self._work_us
        for tpot_us in work_us:
            work_us[tpot_us] *= MEMORY
        asked_us = float(loads.prefill_us(ask.prefill_tokens, among).mean()) + DECODE_US * ask.expected_tokens
        work_us[ask.tpot_us] = work_us.get(ask.tpot_us, 0.0) + asked_us
        scale = len(among) / sum(work_us.values())
        begin = scale * sum(us for tpot_us, us in work_us.items() if tpot_us < ask.tpot_us)
        first = min(int(begin), len(among) - 1)
        last = max(math.ceil(begin + scale * work_us[ask.tpot_us] - 1e-9), first + 1)
        return self._earliest.choose(ask, loads, among[first:last])
