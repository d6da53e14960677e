"""The pool at its worst moment, against every moment one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_worker.steps.peak_use import PeakUse

SOME = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=8)


def stepped(running: list[tuple[int, int]]) -> float:
    """Everybody grows by one a step, and is gone after its last."""
    peak = 0
    for step in range(1 + max((left for _, left in running), default=0)):
        peak = max(peak, sum(held + step for held, left in running if left >= step))
    return float(peak)


def peak_use(running: list[tuple[int, int]]) -> PeakUse:
    held, left = np.array(running, np.float64).reshape(-1, 2).T
    return PeakUse(held, left)


@given(SOME, st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), min_size=1, max_size=4))
def test_it_is_the_most_of_any_moment(running, more):
    peak = peak_use(running)
    for number, one in enumerate(more):
        assert peak.with_one(*one) == stepped([*running, *more[: number + 1]])
        peak.add(*one)


def test_who_ends_makes_room_for_those_that_last():
    """Ten that end at once and one that doubles: not everybody's growth at the same time."""
    short, long = [(10, 1)] * 10, (10, 100)
    assert peak_use(short).with_one(*long) == pytest.approx(121)
