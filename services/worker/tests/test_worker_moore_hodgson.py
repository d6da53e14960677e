"""Whom to leave behind: as few as can be, the largest first, and never one who is protected."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_worker.steps.moore_hodgson import left_behind

JOBS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 20), st.integers(1, 30), st.booleans()), min_size=1, max_size=8
)
"""(due, own time, size, protected); whole numbers, so that no sum is rounded."""


def behind(jobs: list[tuple[int, int, float]], start: int = 0) -> list[int]:
    due, time, size = (np.array(column, np.float64) for column in zip(*jobs, strict=True))
    return left_behind(due, time, size, float(start)).tolist()


def late(jobs: list[tuple[int, int, float]], without: set[int], start: int) -> list[int]:
    """Positions of those that are late when these are left behind."""
    end, found = start, []
    for at, (due, time, _) in enumerate(jobs):
        if at not in without:
            end += time
            if end > due:
                found.append(at)
    return found


@given(JOBS, st.integers(0, 10))
def test_no_more_than_must_be_where_the_largest_take_longest(drawn: list[tuple[int, int, int, bool]], start: int):
    jobs = sorted((due, time, float(time)) for due, time, _, _ in drawn)
    victims = behind(jobs, start)
    assert not late(jobs, set(victims), start)
    fewer = combinations(range(len(jobs)), max(len(victims) - 1, 0))
    assert not victims or all(late(jobs, set(some), start) for some in fewer)


@given(JOBS, st.integers(0, 10))
def test_who_is_left_behind_is_the_largest_of_those_due_before_somebody_late(drawn, start: int):
    """One after the other, each as the rule says, given those before it."""
    jobs = [(due, time, -np.inf if kept else float(size)) for due, time, size, kept in sorted(drawn)]
    victims = behind(jobs, start)
    assert len(set(victims)) == len(victims)
    for number, victim in enumerate(victims):
        before = set(victims[:number])
        choosable = [at for at in range(len(jobs)) if at not in before and jobs[at][2] > -np.inf]
        # The first who is late and has somebody before it, or itself, who could be left behind.
        first = next(at for at in late(jobs, before, start) if any(other <= at for other in choosable))
        assert victim == max((at for at in choosable if at <= first), key=lambda at: (jobs[at][2], -at))
    still = late(jobs, set(victims), start)
    assert all(jobs[at][2] == -np.inf for at in range(max(still, default=-1) + 1) if at not in victims)


def test_nobody_where_all_are_in_time():
    assert behind([(10, 5, 1.0), (10, 5, 1.0)]) == []
    assert behind([(10, 5, 1.0), (10, 5, 1.0)], start=1) == [0]
