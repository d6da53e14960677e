from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_scheduler.core.dispatch_policy import EarliestFirstToken
from hyperflexis_sim.bound import clairvoyant_bound, fluid_bound
from hyperflexis_sim.cluster import Cluster
from hyperflexis_sim.policies import policy_of
from hyperflexis_sim.request import SimRequest
from hyperflexis_sim.worker_kind import WorkerKind

ONLY_PREFILL = StepTimeModel(0.0, 10.0, 10.0, 0.0, 0.0, 0.0, host_us=0.0)
"""Ten microseconds a token, nothing else."""


def asks(
    number: int, arrival_us: float, prompt: int, ttft_us: float, output: int = 1, tpot_us: float = 5e4
) -> SimRequest:
    return SimRequest(number, arrival_us, "chat", "", prompt, output, ttft_us, tpot_us, 2.5e5, 1.0, 1_000)


def test_where_there_is_room_for_all_both_are_one():
    requests = [asks(n, n * 1e4, 100, 5e5) for n in range(50)]
    assert fluid_bound(requests, ONLY_PREFILL, 1, 1.0) == 1.0
    assert clairvoyant_bound(requests, ONLY_PREFILL, 1) == pytest.approx(1.0)


def test_the_fluid_bound_serves_the_cheap_until_the_time_is_used_up():
    # 10 of 10 ms and 10 of 90 ms in half a second: the cheap take 0.1 s, then 4.44 dear ones fit.
    requests = [asks(n, n * 1e3, 1_000 if n % 2 else 9_000, 5e5) for n in range(20)]
    assert fluid_bound(requests, ONLY_PREFILL, 1, 0.5) == pytest.approx((10 + 4 + 4 / 9) / 20)


def test_who_cannot_be_in_time_alone_is_lost_to_both():
    requests = [asks(0, 0.0, 100_000, 5e5), asks(1, 0.0, 100, 5e5)]
    assert fluid_bound(requests, ONLY_PREFILL, 1, 10.0) == 0.5
    assert clairvoyant_bound(requests, ONLY_PREFILL, 1) == pytest.approx(0.5)


def test_a_burst_can_only_do_what_fits_before_its_deadlines():
    # 100 of 100 ms at once, due in 0.5 s: five fit, however much time comes after.
    requests = [asks(n, 0.0, 10_000, 5e5) for n in range(100)]
    assert clairvoyant_bound(requests, ONLY_PREFILL, 1) == pytest.approx(0.05, rel=0.02)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 8), st.integers(1, 6)), min_size=1, max_size=6))
def test_no_choice_of_whole_jobs_beats_the_clairvoyant_bound(jobs: list[tuple[int, int, int]]):
    """Against every subset of a handful of jobs in slots of time, by preemptive earliest deadline first."""
    slot_us = 1e5
    requests = [
        asks(n, at * slot_us, int(work * slot_us / 10), (work + slack) * slot_us)
        for n, (at, work, slack) in enumerate(jobs)
    ]
    best = 0
    for size in range(len(jobs), 0, -1):
        if any(_feasible(chosen) for chosen in itertools.combinations(jobs, size)):
            best = size
            break
    assert clairvoyant_bound(requests, ONLY_PREFILL, 1) >= best / len(jobs) - 1e-9


def _feasible(jobs: tuple[tuple[int, int, int], ...]) -> bool:
    left = [[at + work + slack, at, work] for at, work, slack in jobs]
    for now in range(40):
        ready = [job for job in left if job[1] <= now and job[2]]
        if ready:
            min(ready)[2] -= 1
        if any(job[2] and job[0] <= now + 1 for job in left):
            return False
    return True


def test_decodes_bear_their_part_of_what_steps_cost_anyway():
    """Steps of 10 ms and more: of 30 ms two thirds are left, of 10 nothing."""
    model = StepTimeModel(10_000.0, 0.0, 0.0, 0.0, 0.0, 100.0, host_us=0.0)
    each = [asks(n, 0.0, 100, 5e5, 101, 30_000.0) for n in range(10)]
    assert fluid_bound(each, model, 1, 0.1) == pytest.approx(0.1 / (100 * 100 * 1.5e-6) / 10)
    assert fluid_bound([asks(0, 0.0, 100, 5e5, 101, 10_000.0)], model, 1, 10.0) == 0.0
    assert fluid_bound([asks(0, 0.0, 100, 5e5, 1, 10_000.0)], model, 1, 10.0) == 1.0
    # Nine of 15 ms, and one of 11 ms a token, which takes 110: the others are not slowed by it.
    mixed = [*each[:9], asks(9, 0.0, 100, 5e5, 101, 11_000.0)]
    assert fluid_bound(mixed, model, 1, 0.2) == pytest.approx((9 + 65 / 110) / 10)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1_000), st.integers(2, 60), st.sampled_from([0.0, 6_000.0]), st.sampled_from([7e3, 3e4, 5e4]))
def test_our_policy_stays_below_the_clairvoyant_bound(seed: int, every_ms: int, step_us: float, tightest_us: float):
    """One request in thirty is of the tightest TPOT; all pay what a step costs whatever is in it."""
    model = StepTimeModel(step_us, 19.0, 19.0, 0.001, 0.03, 4.5, host_us=0.0)
    requests = [
        asks(
            n,
            n * every_ms * 1e3,
            200 + 137 * (n * seed % 29),
            5e5,
            1 + n * seed % 40,
            5e4 if n % 30 else tightest_us,
        )
        for n in range(60)
    ]
    cluster = Cluster(
        [WorkerKind(model, 400_000)], EarliestFirstToken(), policy_of("hyperflexis").step, step_noise=0.0, seed=seed
    )
    bound = clairvoyant_bound(requests, model, 1)
    cluster.run(requests, 1e9)
    assert sum(request.attained for request in requests) / len(requests) <= bound + 1e-9
