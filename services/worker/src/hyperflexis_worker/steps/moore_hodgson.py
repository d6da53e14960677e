"""Whom to leave behind when not everybody can be on time.

Moore and Hodgson's rule (1968) keeps the most jobs on time on one machine: take them by deadline, and whenever one
would be late, leave behind the largest so far. Here a job takes its prefill's time, or its part of a pool that is
short; the size by which victims are chosen is all the work that it still asks for, divided by what it is worth.
"""

from __future__ import annotations

import math
from heapq import heappop, heappush

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats, Rows


def left_behind(due_us: Floats, time_us: Floats, size: Floats, start_us: float) -> Rows:
    """Positions of the jobs left behind, in the order in which they were chosen.

    `due_us` ascending; `time_us` is a job's own; who is larger goes first, -inf = never. The machine is free at
    `start_us`. All [n].
    """
    victims: list[int] = []
    if not (start_us + np.cumsum(time_us) > due_us).any():
        return np.empty(0, dtype=np.intp)
    times_us, end_us = time_us.tolist(), start_us
    largest: list[tuple[float, int]] = []
    """Those so far who may be left behind: a heap."""
    for at, (due, own_us, asks) in enumerate(zip(due_us.tolist(), times_us, size.tolist(), strict=True)):
        end_us += own_us
        if asks != -math.inf:
            heappush(largest, (-asks, at))
        while end_us > due and largest:
            victim = heappop(largest)[1]
            end_us -= times_us[victim]
            victims.append(victim)
            if victim == at:
                break
    return np.array(victims, dtype=np.intp)
