"""Whom to leave behind when not everybody can be on time.

Moore and Hodgson's rule (1968) keeps the most jobs on time on one machine: take them by deadline, and whenever one
would be late, leave behind the largest so far. Here a job takes its prefill's time, and the size by which victims are
chosen is all the work it still asks of the GPU, divided by what it is worth.
"""

from __future__ import annotations

import numpy as np

from hyperflexis_worker.steps.prefill_queue import Floats, Rows


def left_behind(due_us: Floats, time_us: Floats, size: Floats, start_us: float) -> Rows:
    """Positions of the jobs left behind, in the order in which they were chosen.

    `due_us` ascending; `time_us` is a job's own; who is larger goes first, -inf = never. The machine is free at
    `start_us`. All [n].
    """
    end_us = start_us + np.cumsum(time_us)
    late = end_us > due_us
    victims: list[int] = []
    if not late.any():
        return np.empty(0, dtype=np.intp)
    size = size.copy()
    at = int(late.argmax())
    while True:
        victim = int(size[: at + 1].argmax())
        if size[victim] == -np.inf:
            # Nobody up to here can be left behind: those are late, and so be it. On to the next that is late.
            at += 1
        else:
            victims.append(victim)
            size[victim] = -np.inf
            end_us[victim:] -= time_us[victim]
            due_us = _without(due_us, victim, victims)
        late = end_us[at:] > due_us[at:]
        if not late.any():
            return np.array(victims, dtype=np.intp)
        at += int(late.argmax())


def _without(due_us: Floats, victim: int, victims: list[int]) -> Floats:
    """Who was left behind is no longer late."""
    if len(victims) == 1:
        due_us = due_us.copy()
    due_us[victim] = np.inf
    return due_us
